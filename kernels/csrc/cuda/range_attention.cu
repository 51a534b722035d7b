// Each query sees key slots [start, end): see kernels/range_attention.py. In 16 bits a block takes 64
// queries of a head, a warp 16 of them, and walks over the keys that any of them sees in tiles of 64,
// the next tile on its way while one is multiplied on tensor cores (as in https://arxiv.org/abs/
// 2307.08691). A warp leaves out tiles that none of its queries sees, and masks those alone that some
// do not see whole. In f32 a warp takes a query.
#include "attend.cuh"
#include "tensor.cuh"

constexpr int ROWS = 64, TILE = 64, WARPS = 4, PAD = 8;  // PAD: rows of a tile start in other banks
enum { FULL, CAUSAL, PREFIX };

struct Range {
  int first, last;
};

// What queries see: ranges [r,s] as given, or as `mask` says of a cache with past[r] slots filled before
// (op `attention`). lengths [r,g] cuts caches of head groups off.
struct Ranges {
  const int *start, *end, *past, *lengths;
  int mask, s, kv_heads, slots;

  __device__ Range of(int row, int m, int own) const {
    if (m >= s) return {slots, 0};
    int last = end ? end[static_cast<long>(row) * s + m] : 0;
    if (!end) {
      const int at = past[row];
      last = mask == CAUSAL || (mask == PREFIX && at <= 0) ? at + m + 1 : at + s;
    }
    if (lengths) last = min(last, lengths[row * kv_heads + own]);
    const int first = start ? start[static_cast<long>(row) * s + m] : 0;
    return {max(first, 0), min(last, slots)};
  }
};

// Keys or values [r,g,slots,e], or pages [n,g,page,e] that `pages` [r,count] lists.
struct Slots {
  const int* pages;
  int count, page, kv_heads, e;

  __device__ long at(int row, int own, int slot) const {
    const long block = pages ? pages[static_cast<long>(row) * count + slot / page] : row;
    return ((block * kv_heads + own) * page + (pages ? slot % page : slot)) * e;
  }
};

// E: the head's size, rounded up.
template <class T, int E>
__global__ void __launch_bounds__(32 * WARPS)
range_tiles(const T* q, const T* k, const T* v, Ranges ranges, Slots slots, T* out, int heads,
            float scale) {
  constexpr int WIDTH = E + PAD, SIZE = TILE * WIDTH;
  ARC_SHARED(memory);
  T* const tiles = reinterpret_cast<T*>(memory);  // two of keys, two of values
  int *const lows = reinterpret_cast<int*>(tiles + 4 * SIZE), *const highs = lows + ROWS;
  const int row = blockIdx.y / heads, head = blockIdx.y % heads, e = slots.e, s = ranges.s;
  const int own = head / (heads / slots.kv_heads), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x < static_cast<unsigned>(ROWS)) {
    const Range mine = ranges.of(row, blockIdx.x * ROWS + threadIdx.x, own);
    lows[threadIdx.x] = mine.first;
    highs[threadIdx.x] = mine.last;
  }
  __syncthreads();
  int first = ranges.slots, last = 0;
  for (int i = 0; i < ROWS; ++i)
    if (lows[i] < highs[i]) first = min(first, lows[i]), last = max(last, highs[i]);
  // of this warp: the keys that some of its queries see, and that all of them do
  int some = ranges.slots, most_of = 0, all = 0, all_of = ranges.slots;
  for (int i = warp * 16; i < warp * 16 + 16; ++i) {
    some = min(some, lows[i]), most_of = max(most_of, highs[i]);
    all = max(all, lows[i]), all_of = min(all_of, highs[i]);
  }
  const auto send = [&](int j) {
    T* const to = tiles + j % 2 * SIZE;
    for (int n = threadIdx.x; n < TILE * (E / WIDE); n += 32 * WARPS) {
      const int slot = j * TILE + n / (E / WIDE), at = n % (E / WIDE) * WIDE;
      const bool real = slot >= first && slot < last && at < e;
      const long from = real ? slots.at(row, own, slot) + at : 0;
      arc_send(to + n / (E / WIDE) * WIDTH + at, k + from, real);
      arc_send(to + 2 * SIZE + n / (E / WIDE) * WIDTH + at, v + from, real);
    }
    arc_sent();
  };
  const int r0 = warp * 16 + lane / 4, column = lane % 4 * 2;  // this lane's rows: r0 and r0 + 8
  u32 query[E / 16][4];
  for (int n = 0; n < E / 16; ++n)
    for (int i = 0; i < 4; ++i) {
      const int m = blockIdx.x * ROWS + r0 + i % 2 * 8, at = n * 16 + column + i / 2 * 8;
      const bool real = m < s && at < e;
      const long from = ((static_cast<long>(row) * s + m) * heads + head) * e + at;
      query[n][i] = real ? *reinterpret_cast<const u32*>(q + from) : 0;
    }
  float acc[E / 8][4] = {}, most[2] = {NEVER, NEVER}, total[2] = {};
  if (first < last) send(first / TILE);
  for (int j = first / TILE; j * TILE < last; ++j) {
    const bool more = (j + 1) * TILE < last;
    if (more) send(j + 1), arc_arrived<1>();
    else arc_arrived<0>();
    __syncthreads();
    const int begin = j * TILE, end = begin + TILE;
    if (begin < most_of && end > some) {
      const T *const keys = tiles + j % 2 * SIZE, *const values = keys + 2 * SIZE;
      float score[TILE / 8][4] = {};
#pragma unroll
      for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int d = 0; d < E / 16; ++d) {
          const T* const key = keys + (n * 8 + lane / 4) * WIDTH + d * 16 + column;
          arc_mma(score[n], query[d], *reinterpret_cast<const u32*>(key),
                  *reinterpret_cast<const u32*>(key + 8), T());
        }
      const bool masked = begin < all || end > all_of;
      float high[2] = {most[0], most[1]};
#pragma unroll
      for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int slot = begin + n * 8 + column + i % 2, mine = r0 + i / 2 * 8;
          const bool seen = !masked || (slot >= lows[mine] && slot < highs[mine]);
          score[n][i] = seen ? score[n][i] * scale : 2 * NEVER;
          high[i / 2] = fmaxf(high[i / 2], score[n][i]);
        }
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // a row lies with four lanes
        high[i] = fmaxf(high[i], __shfl_xor_sync(~0u, high[i], 1));
        high[i] = fmaxf(high[i], __shfl_xor_sync(~0u, high[i], 2));
        const float fade = exp2f(most[i] - high[i]);
        most[i] = high[i];
        total[i] *= fade;
#pragma unroll
        for (int d = 0; d < E / 8; ++d) acc[d][2 * i] *= fade, acc[d][2 * i + 1] *= fade;
      }
#pragma unroll
      for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          score[n][i] = exp2f(score[n][i] - most[i / 2]);
          total[i / 2] += score[n][i];
        }
#pragma unroll
      for (int n = 0; n < TILE / 16; ++n) {
        const float(&p)[4] = score[2 * n], (&next)[4] = score[2 * n + 1];
        const u32 a[4] = {arc_both<T>(p[0], p[1]), arc_both<T>(p[2], p[3]), arc_both<T>(next[0], next[1]),
                          arc_both<T>(next[2], next[3])};
        const T* const value = values + (n * 16 + lane % 16) * WIDTH + lane / 16 * 8;
#pragma unroll
        for (int d = 0; d < E / 16; ++d) {
          u32 b[4];
          arc_load_turned(b, value + d * 16);
          arc_mma(acc[2 * d], a, b[0], b[1], T());
          arc_mma(acc[2 * d + 1], a, b[2], b[3], T());
        }
      }
    }
    __syncthreads();  // the tile is written over by the next but one
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] += __shfl_xor_sync(~0u, total[i], 1);
    total[i] += __shfl_xor_sync(~0u, total[i], 2);
    const int m = blockIdx.x * ROWS + r0 + i * 8;
    const float unit = total[i] > 0 ? 1 / total[i] : 0;
    const long to = ((static_cast<long>(row) * s + m) * heads + head) * e;
    if (m < s)
#pragma unroll
      for (int d = 0; d < E / 8; ++d)
        if (const int at = d * 8 + column; at < e)
          *reinterpret_cast<u32*>(out + to + at) =
              arc_both<T>(acc[d][2 * i] * unit, acc[d][2 * i + 1] * unit);
  }
}

// Without tensor cores: a warp a query.
template <class T>
__global__ void __launch_bounds__(32 * WARPS)
range_rows(const T* q, const T* k, const T* v, Ranges ranges, Slots slots, T* out, int heads,
           float scale) {
  const int row = blockIdx.y / heads, head = blockIdx.y % heads, e = slots.e;
  const int own = head / (heads / slots.kv_heads), lanes = lanes_of(e);
  const int lane = threadIdx.x % 32, at = lane % lanes * WIDE;
  const int m = blockIdx.x * WARPS + threadIdx.x / 32;
  const Range seen = ranges.of(row, m, own);
  const long here = ((static_cast<long>(row) * ranges.s + m) * heads + head) * e + at;
  const bool real = m < ranges.s && at < e;
  float query[WIDE] = {};
  if (real) read(q + here, query);
  for (float& x : query) x *= scale;
  Met met;
  scan<2>(met, query, seen.first, seen.last, lane / lanes, 32 / lanes, lanes,
       [&](int slot, float (&key)[WIDE], float (&value)[WIDE]) {
         for (int i = 0; i < WIDE; ++i) key[i] = value[i] = 0;
         if (at >= e) return;
         const long from = slots.at(row, own, slot) + at;
         read(k + from, key);
         read(v + from, value);
       });
  join_teams(met, lanes);
  for (float& x : met.acc) x = met.total > 0 ? x / met.total : 0;
  if (real && lane < lanes) write(out + here, met.acc);
}

template <class T, int E>
int tiles(const T* q, const T* k, const T* v, const Ranges& ranges, const Slots& slots, T* out, int r,
          int heads, float scale, void* stream) {
  const dim3 grid((ranges.s + ROWS - 1) / ROWS, r * heads);
  const int shared = 4 * TILE * (E + PAD) * 2 + 2 * ROWS * static_cast<int>(sizeof(int));
  return arc_launch(range_tiles<T, E>, grid, 32 * WARPS, shared, stream, q, k, v, ranges, slots, out,
                    heads, scale);
}

template <class T>
int attend(const void* q, const void* k, const void* v, const Ranges& ranges, const Slots& slots,
           void* out, int r, int heads, float scale, void* stream) {
  auto run = slots.e <= 64 ? tiles<T, 64> : tiles<T, 128>;
  return run((const T*)q, (const T*)k, (const T*)v, ranges, slots, (T*)out, r, heads, scale, stream);
}

template <>
int attend<float>(const void* q, const void* k, const void* v, const Ranges& ranges, const Slots& slots,
                  void* out, int r, int heads, float scale, void* stream) {
  const dim3 grid((ranges.s + WARPS - 1) / WARPS, r * heads);
  return arc_launch(range_rows<float>, grid, 32 * WARPS, 0, stream, (const float*)q, (const float*)k,
                    (const float*)v, ranges, slots, (float*)out, heads, scale);
}

// slots: of a cache, or of a page where there are `pages`, `count` of them a row. What is absent is null;
// ranges come from start and end, or from past and mask. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_range_attention(int dtype, const void* q, const void* k, const void* v,
                                   const void* start, const void* end, const void* past, int mask,
                                   const void* lengths, const void* pages, int count, void* out, int r,
                                   int s, int heads, int kv_heads, int e, int slots, float scale,
                                   void* stream) {
  const Ranges ranges{(const int*)start, (const int*)end, (const int*)past, (const int*)lengths,
                      mask, s, kv_heads, pages ? slots * count : slots};
  const Slots where{(const int*)pages, count, slots, kv_heads, e};
#define CALL(T) attend<T>(q, k, v, ranges, where, out, r, heads, scale * LOG2E, stream)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
