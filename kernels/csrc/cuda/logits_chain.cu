// Guidance, temperature, top-k, top-p and the draw: see kernels/logits_chain.py. A block an image and
// position; its values stay in registers, those of 4 neighbours of every 128 with a lane. The k-th value
// and the edge of top-p are looked for between two values that are halved until a few lie between; those
// are then ranked. A pass costs a comparison and an addition a value and one barrier. Sums are taken in
// one order always, those of the few in f64: the same input gives the same token.
#include "arc.cuh"

constexpr int BLOCK = 128, WARPS = 16, MOST = 32, FEW = 128;  // FEW: values that are ranked
constexpr int HALVES = 16;  // halvings between values; later ones halve what is left of their bits
constexpr float NOTHING = -INFINITY;

__device__ inline u32 key_of(float x) {
  const u32 bits = __float_as_uint(x + 0.0f);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float value_of(u32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

// The next larger number.
__device__ inline float next(float x) { return value_of(key_of(x) + 1); }

// Is it? As a number, which counts in one addition and weighs in one fused with a product.
__device__ inline float at_least(float x, float t) {
#ifdef __CUDACC__
  float is;
  asm("set.ge.f32.f32 %0, %1, %2;" : "=f"(is) : "f"(x), "f"(t));
  return is;
#else
  return x >= t;
#endif
}

// Over a warp, the same bits in every lane.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// What the block's warps tell each other, and the few.
struct Room {
  u32 told[2][3][MOST];
  u32 token, count[2], edge[2];
  float few[FEW], mass[FEW];
  u32 top_k, most;
  float top_p, noise[2];
};

// The values of one thread, and their masses when they stay in registers, B blocks a warp. B = 0: in
// shared memory, masses anew each time.
template <int B>
struct Values {
  float x[B ? 4 * B : 1], p[B ? 4 * B : 1], best;
  float* shared;
  int blocks, warp, warps, lane;

  // f(value, mass, token), in order of tokens
  template <class F>
  __device__ void each(F f) const {
    if constexpr (B > 0) {
#pragma unroll
      for (int n = 0; n < 4 * B; ++n) f(x[n], p[n], ((warp + n / 4 * warps) * BLOCK + 4 * lane + n % 4));
    } else {
      for (int block = warp; block < blocks; block += warps)
        for (int n = 0; n < 4; ++n) {
          const int token = block * BLOCK + 4 * lane + n;
          f(shared[token], expf(shared[token] - best), token);
        }
    }
  }
};

struct Found {
  u32 values;
  float mass;
};

template <int B>
struct Block {
  Values<B> mine;
  Room* room;
  int turn = 0;

  // Where warps tell what they found, a place of two in turn: who is slow to read one is seen at the
  // barrier of the next.
  __device__ u32 (&told())[3][MOST] { return room->told[turn++ % 2]; }

  // Of the values at or above t.
  template <bool MASS>
  __device__ Found from(float t) {
    float many = 0, mass = 0;
    mine.each([&](float x, float p, int) {
      const float is = at_least(x, t);
      many += is;
      if (MASS) mass = fmaf(p, is, mass);
    });
    u32(&here)[3][MOST] = told();
    const u32 sum = __reduce_add_sync(~0u, static_cast<u32>(many));
    if (MASS) mass = warp_sum(mass);
    if (mine.lane == 0) {
      here[0][mine.warp] = sum;
      if (MASS) here[1][mine.warp] = __float_as_uint(mass);
    }
    __syncthreads();
    const bool real = mine.lane < mine.warps;
    return {__reduce_add_sync(~0u, real ? here[0][mine.lane] : 0u),
            MASS ? warp_sum(real ? __uint_as_float(here[1][mine.lane]) : 0.0f) : 0.0f};
  }

  // The smallest of the values at or above `low` above which no more than `most` lies: of values, or of
  // mass. `low` is one, n are at or above it.
  template <bool MASS>
  __device__ float edge(float low, u32 n, float most) {
    float lo = low, hi = next(mine.best), mass = 0;  // mass, and how many: at or above hi
    u32 above = 0;
    for (int i = 0; n - above > FEW; ++i) {
      float t = lo / 2 + hi / 2;
      if (i >= HALVES || !(t > lo && t < hi)) {
        t = value_of(key_of(lo) + (key_of(hi) - key_of(lo)) / 2);
        if (!(t > lo)) return lo;
      }
      const Found found = from<MASS>(t);
      if ((MASS ? found.mass : static_cast<float>(found.values)) > most) lo = t, n = found.values;
      else hi = t, above = found.values, mass = found.mass;
    }
    mine.each([&](float x, float p, int) {
      if (!(x >= lo && x < hi)) return;
      const u32 i = atomicAdd(&room->count[MASS], 1u);
      room->few[i] = x;
      if (MASS) room->mass[i] = p;
    });
    __syncthreads();
    const int count = static_cast<int>(room->count[MASS]), lane = mine.lane;
    for (int i = mine.warp; i < count; i += mine.warps) {
      const float x = room->few[i];
      u32 more = 0;
      double heavy = 0;
#pragma unroll
      for (int j = lane; j < FEW; j += 32)
        if (j < count && room->few[j] > x) {
          ++more;
          if (MASS) heavy += room->mass[j];
        }
      const bool light = MASS ? mass + warp_sum(heavy) <= most
                              : above + __reduce_add_sync(~0u, more) <= most;
      if (light && lane == 0) atomicMin(&room->edge[MASS], key_of(x));
    }
    __syncthreads();
    return value_of(room->edge[MASS]);
  }

  // The smallest value that top-k, top-p and `most` sorted values keep.
  __device__ float floor_of(float lowest, u32 finite, u32 top_k, float top_p, u32 most) {
    float floor = NOTHING;
    const u32 k = min(top_k, most);
    if (k > 0 && finite >= k) floor = edge<false>(lowest, finite, static_cast<float>(k - 1));
    if (!(top_p < 1)) return floor;
    const Found more = from<true>(next(floor));
    const u32 same = from<false>(floor).values;
    const float ties = static_cast<float>(min(same, most) - min(more.values, most));
    const float total = more.mass + ties * expf(floor - mine.best);
    const bool all = floor == NOTHING;
    return edge<true>(all ? lowest : floor, all ? finite : same, top_p * total);
  }
};

// The first of 32 * each masses at(lane * each + i) at which the running sum exceeds u of the total; of
// those that have a mass.
template <class F>
__device__ int pick(F at, int each, float u) {
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = 0; i < each; ++i) sum += at(i);
  for (int step = 1; step < 32; step *= 2) {
    const float before = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += before;
  }
  const float share = u * __shfl_sync(~0u, sum, 31);
  sum = __shfl_up_sync(~0u, sum, 1);
  if (lane == 0) sum = 0;
  u32 first = ~0u, last = 0;
  for (int i = 0; i < each; ++i) {
    const float mass = at(i);
    sum += mass;
    if (mass > 0) {
      last = lane * each + i;
      if (sum > share) first = min(first, last);
    }
  }
  first = __reduce_min_sync(~0u, first);
  last = __reduce_max_sync(~0u, last);
  return static_cast<int>(min(first, last));
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};

// Four values from token `at` on, one by one; those beyond v are not there.
template <class T>
__device__ inline Four<T> four(const T* p, int at, int v) {
  Four<T> out = {};
  for (int n = 0; n < 4; ++n)
    if (at + n < v) out.x[n] = p[at + n];
  return out;
}

template <class T, int B>
__global__ void __launch_bounds__(32 * (B ? WARPS : MOST), 1)
logits_chain(const T* logits, const int64_t* row, const int64_t* null_row, const float* scale,
             const float* temperature, const int64_t* top_k, const float* top_p, const int64_t* most,
             const float* noise, int64_t* token, int c, int v) {
  ARC_SHARED(memory);
  Room* const room = reinterpret_cast<Room*>(memory);
  float* const sums = reinterpret_cast<float*>(room + 1);
  const int cell = blockIdx.x, b = cell / c, slot = cell % c, each = (v + 32 * BLOCK - 1) / (32 * BLOCK);
  Block<B> block;
  Values<B>& mine = block.mine;
  block.room = room;
  mine.shared = sums + 32 * each;
  mine.blocks = (v + BLOCK - 1) / BLOCK;
  mine.warp = threadIdx.x / 32, mine.warps = blockDim.x / 32, mine.lane = threadIdx.x % 32;
  const int warp = mine.warp, warps = mine.warps, lane = mine.lane;
  const T* const own = logits + (row[b] * c + slot) * v;
  const T* const twin = logits + (null_row[b] * c + slot) * v;
  const float more = scale[b] - 1, heat = temperature[b], divisor = fmaxf(heat, 1e-5f);
  if (threadIdx.x == 0) {
    room->token = room->edge[0] = room->edge[1] = ~0u;
    room->count[0] = room->count[1] = 0;
  }
  for (int i = threadIdx.x; i < 32 * each; i += blockDim.x) sums[i] = 0;
  const bool whole = v % 4 == 0 && (reinterpret_cast<uintptr_t>(own) | reinterpret_cast<uintptr_t>(
                                        twin)) % sizeof(Four<T>) == 0;
  const auto guided = [&](T a, T z, int at) {
    const float x = arc_float(a), apart = x - arc_float(z);
    return at < v ? x + more * apart : NOTHING;
  };
  const auto ask = [&] {  // once the logits are on their way
    if (threadIdx.x) return;
    room->top_k = static_cast<u32>(top_k[b]), room->most = static_cast<u32>(most[0]);
    room->top_p = top_p[b], room->noise[0] = noise[2 * cell], room->noise[1] = noise[2 * cell + 1];
  };
  if constexpr (B > 0) {
    Four<T> a[B] = {}, z[B] = {};
    if (whole) {
#pragma unroll
      for (int j = 0; j < B; ++j)
        if (const int at = (warp + j * warps) * BLOCK + 4 * lane; at < v) {
          a[j] = *reinterpret_cast<const Four<T>*>(own + at);
          z[j] = *reinterpret_cast<const Four<T>*>(twin + at);
        }
    } else {
#pragma unroll
      for (int j = 0; j < B; ++j) {
        a[j] = four(own, (warp + j * warps) * BLOCK + 4 * lane, v);
        z[j] = four(twin, (warp + j * warps) * BLOCK + 4 * lane, v);
      }
    }
    ask();
#pragma unroll
    for (int n = 0; n < 4 * B; ++n)
      mine.x[n] = guided(a[n / 4].x[n % 4], z[n / 4].x[n % 4],
                         (warp + n / 4 * warps) * BLOCK + 4 * lane + n % 4);
    if (divisor != 1)
#pragma unroll
      for (int n = 0; n < 4 * B; ++n) mine.x[n] /= divisor;
  } else {
    ask();
    for (int j = warp; j < mine.blocks; j += warps) {
      const int at = j * BLOCK + 4 * lane;
      const Four<T> a = four(own, at, v), z = four(twin, at, v);
      for (int n = 0; n < 4; ++n) mine.shared[at + n] = guided(a.x[n], z.x[n], at + n) / divisor;
    }
  }
  // the largest value, the lowest that is there, and how many are
  float high = NOTHING, low = INFINITY;
  u32 finite = 0;
  mine.each([&](float x, float, int) {
    high = fmaxf(high, x);
    if (x > NOTHING) low = fminf(low, x), ++finite;
  });
  u32(&told)[3][MOST] = block.told();
  const u32 mine_high = __reduce_max_sync(~0u, key_of(high)), mine_low = __reduce_min_sync(~0u, key_of(low));
  finite = __reduce_add_sync(~0u, finite);
  if (lane == 0) told[0][warp] = mine_high, told[1][warp] = mine_low, told[2][warp] = finite;
  __syncthreads();
  mine.best = value_of(__reduce_max_sync(~0u, lane < warps ? told[0][lane] : 0u));
  if (!(heat > 0)) {
    u32 first = ~0u;
    mine.each([&](float x, float, int at) {
      if (x == mine.best) first = min(first, static_cast<u32>(at));
    });
    first = __reduce_min_sync(~0u, first);
    if (lane == 0) atomicMin(&room->token, first);
    __syncthreads();
    if (threadIdx.x == 0) token[cell] = room->token;
    return;
  }
  low = value_of(__reduce_min_sync(~0u, lane < warps ? told[1][lane] : ~0u));
  finite = __reduce_add_sync(~0u, lane < warps ? told[2][lane] : 0u);
  if constexpr (B > 0)
#pragma unroll
    for (int n = 0; n < 4 * B; ++n) mine.p[n] = expf(mine.x[n] - mine.best);
  const float floor = block.floor_of(low, finite, room->top_k, room->top_p, room->most);
  // a block of tokens by what their masses sum to, which every warp picks, and a token by who has them
  if constexpr (B > 0) {
#pragma unroll
    for (int j = 0; j < B; ++j) {
      float mass = 0;
#pragma unroll
      for (int n = 4 * j; n < 4 * j + 4; ++n) mass += mine.x[n] >= floor ? mine.p[n] : 0;
      mass = warp_sum(mass);
      if (lane == 0 && warp + j * warps < mine.blocks) sums[warp + j * warps] = mass;
    }
  } else {
    for (int j = warp; j < mine.blocks; j += warps) {
      float mass = 0;
      for (int n = 0; n < 4; ++n) {
        const float x = mine.shared[j * BLOCK + 4 * lane + n];
        mass += x >= floor ? expf(x - mine.best) : 0;
      }
      mass = warp_sum(mass);
      if (lane == 0) sums[j] = mass;
    }
  }
  __syncthreads();
  const int picked = pick([&](int i) { return sums[lane * each + i]; }, each, room->noise[0]);
  if (picked % warps != warp) return;
  float mass[4] = {};
  mine.each([&](float x, float p, int at) {
    if (at / BLOCK == picked) mass[at % 4] = x >= floor ? p : 0;
  });
  const int inner = pick([&](int i) { return mass[i]; }, 4, room->noise[1]);
  if (lane == 0) token[cell] = picked * BLOCK + inner;
}

template <class T, int B>
int chain(const void* logits, const void* row, const void* null_row, const void* scale,
          const void* temperature, const void* top_k, const void* top_p, const void* most,
          const void* noise, void* token, int cells, int c, int v, void* stream) {
  const int blocks = (v + BLOCK - 1) / BLOCK, each = (blocks + 31) / 32;
  const int warps = B ? (blocks + B - 1) / (B ? B : 1) : MOST;
  const int shared = static_cast<int>(sizeof(Room)) + 4 * (32 * each + (B ? 0 : blocks * BLOCK));
  return arc_launch(logits_chain<T, B>, dim3(cells), 32 * warps, shared, stream, (const T*)logits,
                    (const int64_t*)row, (const int64_t*)null_row, (const float*)scale,
                    (const float*)temperature, (const int64_t*)top_k, (const float*)top_p,
                    (const int64_t*)most, (const float*)noise, (int64_t*)token, c, v);
}

// Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_logits_chain(int dtype, const void* logits, const void* row,
                                const void* null_row, const void* scale, const void* temperature,
                                const void* top_k, const void* top_p, const void* most,
                                const void* noise, void* token, int cells, int c, int v, void* stream) {
  const int blocks = (v + BLOCK - 1) / BLOCK;
#define CALL(T)                                                                                       \
  (blocks <= WARPS ? chain<T, 1> : blocks <= 4 * WARPS ? chain<T, 4>                                 \
                               : blocks <= 8 * WARPS ? chain<T, 8> : chain<T, 0>)(                   \
      logits, row, null_row, scale, temperature, top_k, top_p, most, noise, token, cells, c, v, stream)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
