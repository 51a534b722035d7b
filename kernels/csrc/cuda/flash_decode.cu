// Rotary, append in place and attention of one new token a row: see kernels/flash_decode.py. A block a
// head and part of the keys; its warps share the keys and join what they met, and where parts are
// several a second launch joins those. A cache holds numbers of T, or integers with a scale a slot.
#include "attend.cuh"

constexpr int MOST_WARPS = 16;
constexpr int FEW = 128;  // blocks that leave most of a large GPU to each
enum { PLAIN, INT8, INT4 };  // what a cache holds

// Rows of new tokens, and the tables that turn them.
struct Turn {
  const void *cos, *sin;  // [positions,e/2], of dtype `table`
  int table, positions, e, pairs;

  __device__ float at(const void* p, long i) const {
    if (table == 0) return static_cast<const float*>(p)[i];
    return table == 1 ? arc_float(static_cast<const __half*>(p)[i])
                      : arc_float(static_cast<const __nv_bfloat16*>(p)[i]);
  }

  // Neighbours first.. of a head at x, turned as position `slot` says; 0 beyond the head.
  template <class T>
  __device__ void read(const T* x, int slot, int first, float (&out)[WIDE]) const {
    const int half = e / 2;
    const long row = static_cast<long>(min(slot, positions - 1)) * half;
    for (int j = 0; j < WIDE; ++j) {
      const int i = first + j;
      out[j] = 0;
      if (i >= e) continue;
      const int pair = pairs ? i / 2 : i % half;
      const bool low = pairs ? i % 2 == 0 : i < half;
      const int other = pairs ? i ^ 1 : low ? i + half : i - half;
      const float b = arc_float(x[other]), turned = low ? -b : b;
      out[j] = arc_float(x[i]) * at(cos, row + pair) + turned * at(sin, row + pair);
    }
  }
};

// A slot of a cache: numbers `at`.. of it.
template <class T, int KV>
struct Cache {
  void* values;
  float* scales;

  // Slots from `first` on will be read soon.
  __device__ void fetch(long first, int count, int e) const {
    const long wide = KV == PLAIN ? e * sizeof(T) : KV == INT8 ? e : e / 2;
    const char* const from = static_cast<const char*>(values) + first * wide;
    for (long i = threadIdx.x * 128L; i < count * wide; i += blockDim.x * 128L) arc_prefetch(from + i);
  }

  __device__ void read(long slot, int e, int at, float (&out)[WIDE]) const {
    if (KV == PLAIN) return ::read(static_cast<const T*>(values) + slot * e + at, out);
    const float scale = scales[slot];
    if (KV == INT8) {
      ::read(static_cast<const int8_t*>(values) + slot * e + at, out);
      for (int i = 0; i < WIDE; ++i) out[i] *= scale;
    } else {
      const u32 word = static_cast<const u32*>(values)[(slot * e + at) / WIDE];
      for (int i = 0; i < WIDE; ++i)
        out[i] = static_cast<float>(static_cast<int>(word >> 4 * i & 15) - 8) * scale;
    }
  }

  // Writes x, where `mine` says so, and leaves in it what can be read back. All of a team come here.
  __device__ void keep(long slot, int e, int at, int lanes, bool mine, float (&x)[WIDE]) const {
    if (KV == PLAIN) {
      for (int i = 0; i < WIDE; ++i) {
        T kept;
        arc_store(&kept, x[i]);
        x[i] = arc_float(kept);
      }
      if (mine) write(static_cast<T*>(values) + slot * e + at, x);
      return;
    }
    float most = 1e-20f;
    for (int i = 0; i < WIDE; ++i) most = fmaxf(most, fabsf(x[i]));
    for (int step = lanes / 2; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    const float scale = most / (KV == INT8 ? 127.0f : 7.0f);
    u32 word = 0;
    Eight<int8_t> bytes;
    for (int i = 0; i < WIDE; ++i) {
      const float q = floorf(x[i] / scale + 0.5f);
      bytes.x[i] = static_cast<int8_t>(q);
      word |= static_cast<u32>(static_cast<int>(q) + 8) << 4 * i;
      x[i] = q * scale;
    }
    if (!mine) return;
    if (KV == INT8) *reinterpret_cast<Eight<int8_t>*>(static_cast<int8_t*>(values) + slot * e + at) = bytes;
    else static_cast<u32*>(values)[(slot * e + at) / WIDE] = word;
    if (at == 0) scales[slot] = scale;
  }
};

// q, k and v lie in rows of their own, or in one (`q_row` and `kv_row` numbers apart). part [r*h,splits,
// e+2] holds values, the largest score and the masses' sum of each part; null where there is one.
// AHEAD: keys of a team that are on their way at once.
template <class T, int KV, int AHEAD>
__global__ void __launch_bounds__(AHEAD == 2 ? 128 : 32 * MOST_WARPS)
flash_decode(const T* q, const T* k, const T* v, long q_row, long kv_row, Cache<T, KV> kc,
             Cache<T, KV> vc, const int* past, Turn turn, T* out, float* part, int heads, int kv_heads,
             int slots, int chunk, float scale) {
  arc_let_next();
  ARC_SHARED(memory);
  float* const room = reinterpret_cast<float*>(memory);  // [warps,e+2]
  const int warps = blockDim.x / 32, e = turn.e, lanes = lanes_of(e), teams = warps * 32 / lanes;
  const int team = threadIdx.x / lanes, lane = threadIdx.x % 32, at = lane % lanes * WIDE;
  const int row = blockIdx.x / heads, head = blockIdx.x % heads, group = heads / kv_heads;
  const long own = static_cast<long>(row) * kv_heads + head / group, base = own * slots;
  const int begin = blockIdx.y * chunk, told = max(0, min(arc_fresh(past + row), slots - 1));
  kc.fetch(base + begin, min(told, begin + chunk) - begin, e);
  vc.fetch(base + begin, min(told, begin + chunk) - begin, e);
  arc_wait();
  const int filled = max(0, min(arc_fresh(past + row), slots - 1));  // nobody writes beyond a cache
  float query[WIDE];
  turn.read(q + row * q_row + static_cast<long>(head) * e, filled, at, query);
  for (float& x : query) x *= scale * LOG2E;
  Met met;
  if (blockIdx.y == 0) {  // this one brings the new token; of heads that share it, the first keeps it
    const bool mine = team == 0 && head % group == 0 && at < e;
    const long here = row * kv_row + static_cast<long>(head / group) * e;
    float key[WIDE], value[WIDE] = {};
    turn.read(k + here, filled, at, key);
    if (at < e) read(v + here + at, value);
    kc.keep(base + filled, e, at, lanes, mine, key);
    vc.keep(base + filled, e, at, lanes, mine, value);
    const float score = dot(query, key, lanes);
    if (team == 0) met.join(score, 1, value);
  }
  scan<AHEAD>(met, query, begin, min(filled, begin + chunk), team, teams, lanes,
       [&](int slot, float (&key)[WIDE], float (&value)[WIDE]) {
         for (int i = 0; i < WIDE; ++i) key[i] = value[i] = 0;
         if (at >= e) return;
         kc.read(base + slot, e, at, key);
         vc.read(base + slot, e, at, value);
       });
  join_teams(met, lanes);
  float* const mine = room + threadIdx.x / 32 * (e + 2);
  if (lane < lanes && at < e) {
    for (int i = 0; i < WIDE; ++i) mine[at + i] = met.acc[i];
    mine[e] = met.most;
    mine[e + 1] = met.total;
  }
  __syncthreads();
  float most = NEVER, total = 0;
  for (int w = 0; w < warps; ++w) most = fmaxf(most, room[w * (e + 2) + e]);
  for (int w = 0; w < warps; ++w)
    total += room[w * (e + 2) + e + 1] * exp2f(room[w * (e + 2) + e] - most);
  for (int i = threadIdx.x; i < e; i += blockDim.x) {
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += room[w * (e + 2) + i] * exp2f(room[w * (e + 2) + e] - most);
    const long cell = blockIdx.x;
    if (part) part[(cell * gridDim.y + blockIdx.y) * (e + 2) + i] = sum;
    else arc_store(out + cell * e + i, sum / total);
  }
  if (part && threadIdx.x == 0) {
    float* const ends = part + (static_cast<long>(blockIdx.x) * gridDim.y + blockIdx.y) * (e + 2) + e;
    ends[0] = most;
    ends[1] = total;
  }
}

// The parts of a head joined: a block a head.
template <class T>
__global__ void join_parts(const float* part, T* out, int e, int splits) {
  arc_let_next();
  arc_wait();
  part += static_cast<long>(blockIdx.x) * splits * (e + 2);
  float most = NEVER, total = 0;
  for (int p = 0; p < splits; ++p) most = fmaxf(most, part[p * (e + 2) + e]);
  for (int p = 0; p < splits; ++p) total += part[p * (e + 2) + e + 1] * exp2f(part[p * (e + 2) + e] - most);
  for (int i = threadIdx.x; i < e; i += blockDim.x) {
    float sum = 0;
    for (int p = 0; p < splits; ++p) sum += part[p * (e + 2) + i] * exp2f(part[p * (e + 2) + e] - most);
    arc_store(out + static_cast<long>(blockIdx.x) * e + i, sum / total);
  }
}

// Several new tokens a row: queries turned into `turned` [r,s,h*e], keys turned and values appended. A
// block a token, a thread a few neighbours. What attends to them is range_attention.
template <class T>
__global__ void append(const T* q, const T* k, const T* v, long q_row, long kv_row, T* kc, T* vc,
                       const int* past, Turn turn, T* turned, int s, int heads, int kv_heads, int slots) {
  const int e = turn.e, each = e / WIDE, row = blockIdx.x / s, i = blockIdx.x % s;
  const int slot = max(0, min(past[row], slots - s)) + i;
  const long token = blockIdx.x;
  for (int n = threadIdx.x; n < (heads + kv_heads) * each; n += blockDim.x) {
    const int head = n / each, at = n % each * WIDE, own = head - heads;
    float x[WIDE];
    if (own < 0) {
      turn.read(q + token * q_row + head * e, slot, at, x);
      write(turned + (token * heads + head) * e + at, x);
      continue;
    }
    const long to = ((static_cast<long>(row) * kv_heads + own) * slots + slot) * e + at;
    turn.read(k + token * kv_row + own * e, slot, at, x);
    write(kc + to, x);
    read(v + token * kv_row + own * e + at, x);
    write(vc + to, x);
  }
}

template <class T, int KV>
int decode(const void* q, const void* k, const void* v, long q_row, long kv_row, void* kc, void* vc,
           void* ks, void* vs, const int* past, Turn turn, void* out, float* part, int r, int heads,
           int kv_heads, int slots, int splits, int chunk, int warps, float scale, void* stream) {
  if (!warps) warps = r * heads * splits <= FEW ? MOST_WARPS : 4;
  const int room = warps * (turn.e + 2) * static_cast<int>(sizeof(float));
  const auto kernel = warps > 4 ? flash_decode<T, KV, 4> : flash_decode<T, KV, 2>;
  const int code = arc_launch_early(
      kernel, dim3(r * heads, splits), 32 * warps, room, stream, (const T*)q, (const T*)k,
      (const T*)v, q_row, kv_row, Cache<T, KV>{kc, (float*)ks}, Cache<T, KV>{vc, (float*)vs}, past, turn,
      (T*)out, splits > 1 ? part : nullptr, heads, kv_heads, slots, chunk, scale);
  if (code || splits == 1) return code;
  return arc_launch_early(join_parts<T>, dim3(r * heads), 64, 0, stream, (const float*)part, (T*)out,
                          turn.e, splits);
}

// warps of a block; 0: as their number suggests. table: the dtype of cos and sin. kv: what the caches hold, as integers where it is not 0, with scales
// ks and vs. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_flash_decode(int dtype, int kv, const void* q, const void* k, const void* v, int q_row,
                                int kv_row, void* kc, void* vc, void* ks, void* vs, const void* past,
                                int table, const void* cos, const void* sin, int positions, int pairs,
                                void* out, void* part, int r, int heads, int kv_heads, int e, int slots,
                                int splits, int chunk, int warps, float scale, void* stream) {
  const Turn turn{cos, sin, table, positions, e, pairs};
#define RUN(T, KV)                                                                                      \
  decode<T, KV>(q, k, v, q_row, kv_row, kc, vc, ks, vs, (const int*)past, turn, out, (float*)part, r,   \
                heads, kv_heads, slots, splits, chunk, warps, scale, stream)
#define CALL(T) kv == INT8 ? RUN(T, INT8) : kv == INT4 ? RUN(T, INT4) : RUN(T, PLAIN)
  ARC_DTYPES(dtype, CALL)
#undef CALL
#undef RUN
}

// Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_append(int dtype, const void* q, const void* k, const void* v, int q_row, int kv_row,
                          void* kc, void* vc, const void* past, int table, const void* cos,
                          const void* sin, int positions, int pairs, void* turned, int r, int s, int heads,
                          int kv_heads, int e, int slots, void* stream) {
  const Turn turn{cos, sin, table, positions, e, pairs};
#define CALL(T)                                                                                         \
  arc_launch(append<T>, dim3(r * s), 128, 0, stream, (const T*)q, (const T*)k, (const T*)v,             \
             static_cast<long>(q_row), static_cast<long>(kv_row), (T*)kc, (T*)vc, (const int*)past,     \
             turn, (T*)turned, s, heads, kv_heads, slots)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
