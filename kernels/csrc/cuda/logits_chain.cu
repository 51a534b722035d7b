// Guidance, temperature, top-k, top-p and the draw: see kernels/logits_chain.py. A block an image
// and position. The logits lie in shared memory as integers of the same order; the k-th value and
// the edge of top-p are found digit by digit, with histograms of 256 bins. Masses are summed as
// integers of 2^-40, so that the order of the additions cannot change a token.
#include "arc.cuh"

constexpr int BLOCK = 128, BINS = 256;
constexpr u32 NOTHING = 0x007FFFFF;  // the key of -inf

__device__ inline u32 key_of(float x) {
  u32 bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float value_of(u32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

__device__ inline float mass_of(u32 key, float best) { return expf(value_of(key) - best); }

__device__ inline u64 fixed(float mass) { return static_cast<u64>(mass * 1099511627776.0f); }

// Keys that agree with `prefix` in the digits above `shift`.
__device__ inline bool agrees(u32 key, u32 prefix, int shift) {
  return shift == 24 || (key >> (shift + 8)) == (prefix >> (shift + 8));
}

// The largest t with k or more keys at or above it.
__device__ u32 kth(const u32* keys, int v, u32 k, u64* bins, u32* found) {
  u32 prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < v; i += blockDim.x)
      if (agrees(keys[i], prefix, shift)) atomicAdd(&bins[(keys[i] >> shift) & 255], u64(1));
    __syncthreads();
    if (threadIdx.x == 0) {
      u32 left = k;
      int digit = 255;
      while (digit > 0 && bins[digit] < left) left -= static_cast<u32>(bins[digit--]);
      found[0] = digit;
      found[1] = left;
    }
    __syncthreads();
    prefix |= found[0] << shift;
    k = found[1];
  }
  return prefix;
}

// The smallest t at or above `floor` with a mass of at most `limit` above it.
__device__ u32 edge(const u32* keys, int v, u32 floor, float best, u64 limit, u64* bins,
                    u64* found) {
  u32 prefix = 0;
  u64 above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < v; i += blockDim.x)
      if (keys[i] >= floor && agrees(keys[i], prefix, shift))
        atomicAdd(&bins[(keys[i] >> shift) & 255], fixed(mass_of(keys[i], best)));
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      while (digit > 0 && above + bins[digit] <= limit) above += bins[digit--];
      found[0] = digit;
      found[1] = above;
    }
    __syncthreads();
    prefix |= static_cast<u32>(found[0]) << shift;
    above = found[1];
  }
  return max(prefix, floor);
}

// The first of n masses at which the running sum exceeds u of the total.
__device__ inline int pick(const float* p, int n, float u) {
  float total = 0, sum = 0;
  for (int i = 0; i < n; ++i) total += p[i];
  for (int i = 0; i < n; ++i)
    if ((sum += p[i]) > u * total) return i;
  return n - 1;
}

template <class T>
__global__ void logits_chain(const T* logits, const int64_t* row, const int64_t* null_row,
                             const float* scale, const float* temperature, const int64_t* top_k,
                             const float* top_p, const int64_t* most, const float* noise,
                             int64_t* token, int c, int v) {
  ARC_SHARED(memory);
  u64* bins = reinterpret_cast<u64*>(memory);
  u64* found = bins + BINS;  // 4 numbers
  u32* top = reinterpret_cast<u32*>(found + 4);
  u32* first = top + 1;
  float* sums = reinterpret_cast<float*>(top + 2);  // of blocks, then the masses of one
  int blocks = (v + BLOCK - 1) / BLOCK;
  u32* keys = reinterpret_cast<u32*>(sums + blocks + BLOCK);
  int cell = blockIdx.x, b = cell / c, slot = cell % c;
  const T* own = logits + (row[b] * c + slot) * v;
  const T* twin = logits + (null_row[b] * c + slot) * v;
  float more = scale[b] - 1, heat = temperature[b], divisor = fmaxf(heat, 1e-5f);
  if (threadIdx.x == 0) top[0] = 0, first[0] = v;
  __syncthreads();
  u32 mine = 0;
  for (int i = threadIdx.x; i < v; i += blockDim.x) {
    float x = arc_float(own[i]);
    float apart = x - arc_float(twin[i]);
    x = (x + more * apart) / divisor;
    keys[i] = key_of(x);
    mine = max(mine, keys[i]);
  }
  atomicMax(top, mine);
  __syncthreads();
  u32 high = top[0];
  if (!(heat > 0)) {
    for (int i = threadIdx.x; i < v; i += blockDim.x)
      if (keys[i] == high) atomicMin(first, static_cast<u32>(i));
    __syncthreads();
    if (threadIdx.x == 0) token[cell] = first[0];
    return;
  }
  float best = value_of(high);
  u32 floor = NOTHING, k = static_cast<u32>(top_k[b]), n = static_cast<u32>(most[0]);
  if (k > 0) floor = kth(keys, v, min(k, n), bins,
                           reinterpret_cast<u32*>(found));
  if (top_p[b] < 1) {
    if (threadIdx.x < 4) found[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < v; i += blockDim.x) {
      if (keys[i] < floor) continue;
      atomicAdd(&found[keys[i] > floor ? 0 : 1], u64(1));
      if (keys[i] > floor) atomicAdd(&found[2], fixed(mass_of(keys[i], best)));
    }
    __syncthreads();
    u64 ties = min(found[0] + found[1], u64(n)) - min(found[0], u64(n));
    u64 total = found[2] + ties * fixed(mass_of(floor, best));
    u64 limit = static_cast<u64>(static_cast<double>(top_p[b]) * static_cast<double>(total));
    __syncthreads();
    floor = edge(keys, v, floor, best, limit, bins, found);
  }
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) {
    float sum = 0;
    for (int j = i * BLOCK; j < min(v, (i + 1) * BLOCK); ++j)
      if (keys[j] >= floor) sum += mass_of(keys[j], best);
    sums[i] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) first[0] = pick(sums, blocks, noise[2 * cell]);
  __syncthreads();
  int start = first[0] * BLOCK, count = min(BLOCK, v - start);
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    sums[blocks + i] = keys[start + i] >= floor ? mass_of(keys[start + i], best) : 0;
  __syncthreads();
  if (threadIdx.x == 0) token[cell] = start + pick(sums + blocks, count, noise[2 * cell + 1]);
}

// Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_logits_chain(int dtype, const void* logits, const void* row,
                                const void* null_row, const void* scale, const void* temperature,
                                const void* top_k, const void* top_p, const void* most,
                                const void* noise, void* token, int cells, int c, int v,
                                int threads, void* stream) {
  int blocks = (v + BLOCK - 1) / BLOCK;
  int shared = (BINS + 4) * 8 + 8 + (blocks + BLOCK + v) * 4;
#define CALL(T)                                                                                  \
  arc_launch(logits_chain<T>, dim3(cells), threads, shared, stream, (const T*)logits,            \
             (const int64_t*)row, (const int64_t*)null_row, (const float*)scale,                 \
             (const float*)temperature, (const int64_t*)top_k, (const float*)top_p,              \
             (const int64_t*)most, (const float*)noise, (int64_t*)token, c, v)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
