// The inner loops of rows.h; ARC_ISA names the instruction set this copy is compiled for. Meanings:
// arcompile/ops (matmul, quantize_rows, matmul_int8), which tests compare them with.
#include "rows.h"

#include <cmath>
#include <type_traits>

#include "simd.h"
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

namespace arc {
namespace ARC_ISA {
namespace {

typedef int8_t I8 __attribute__((vector_size(16)));

// --- floats ---------------------------------------------------------------------------------------

// What the registers hold of sums: so many rows by so many vectors of columns.
#if defined(__AVX512F__)
constexpr int ROWS_AT_ONCE = 8, VECTORS = 2;
#elif defined(__AVX2__)
constexpr int ROWS_AT_ONCE = 2, VECTORS = 2;
#else
constexpr int ROWS_AT_ONCE = 2, VECTORS = 1;
#endif
constexpr int WIDTH = VECTORS * LANES;  // columns

void put(float* y, F32 v, int64_t have) {
  if (have >= LANES) return store(y, v);
  for (int64_t l = 0; l < have; ++l) y[l] = v[l];
}

// Many rows take as long to compute as their weights to read, so those are asked for early, into L2:
// a load that misses keeps one of L1's few places for what is under way. With few rows the
// processor's own prefetching is enough, and this only in its way.
template <int ROWS>
void soon(const void* w) {
  constexpr int64_t AHEAD = 8192, LINE = 64;
  if constexpr (ROWS > 4)
    for (int c = 0; c < VECTORS; ++c)
      __builtin_prefetch(static_cast<const char*>(w) + AHEAD + c * LINE, 0, 2);
}

// ROWS rows by VECTORS vectors of one block. Each sum runs along k, whatever ROWS is.
template <int ROWS>
void tile(const float* x, const float* w, float* y, int64_t k, int64_t n, int64_t have) {
  F32 a[ROWS][VECTORS] = {};
  for (int64_t d = 0; d < k; ++d) {
    soon<ROWS>(w + d * BLOCK);
    F32 v[VECTORS];
    for (int c = 0; c < VECTORS; ++c) v[c] = load(w + d * BLOCK + c * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const F32 from = all(x[r * k + d]);
      for (int c = 0; c < VECTORS; ++c) a[r][c] += v[c] * from;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < VECTORS; ++c) put(y + r * n + c * LANES, a[r][c], have - c * LANES);
}

// f(rows at once, the first of them), as an integral constant and a number, for all rows.
template <int MOST = ROWS_AT_ONCE, class F>
void by_rows(int64_t rows, F f, int64_t r = 0) {
  for (; r + MOST <= rows; r += MOST) f(std::integral_constant<int, MOST>{}, r);
  if constexpr (MOST > 1)
    if (r < rows) by_rows<MOST - 1>(rows, f, r);
}

void f32(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t from,
         int64_t to) {
  for (int64_t b = from; b < to; ++b)
    for (int64_t c = 0; c < BLOCK && b * BLOCK + c < n; c += WIDTH)
      by_rows(rows, [&](auto many, int64_t r) {
        tile<many>(x + r * k, w + b * BLOCK * k + c, y + r * n + b * BLOCK + c, k, n,
                   n - b * BLOCK - c);
      });
}

// --- integers -------------------------------------------------------------------------------------

F32 rounded(F32 x) {
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  return (x + magic) - magic;
}

float quantize(const float* x, int8_t* q, int32_t* sum, int64_t count) {
  int64_t i = 0;
  F32 most = {};
  for (; i + LANES <= count; i += LANES) {
    const F32 v = load(x + i), size = pick(v < F32{}, -v, v);
    most = pick(size > most, size, most);
  }
  float peak = max(most);
  for (; i < count; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
  const float scale = (peak > 1e-30f ? peak : 1e-30f) / 127.0f;
  I32 totals = {};
  for (i = 0; i + LANES <= count; i += LANES) {
    const I32 v = __builtin_convertvector(rounded(load(x + i) / scale), I32);
    const I8 narrow = __builtin_convertvector(v, I8);
    std::memcpy(q + i, &narrow, sizeof narrow);
    totals += v;
  }
  int32_t total = 0;
  for (int l = 0; l < LANES; ++l) total += totals[l];
  for (; i < count; ++i) {
    q[i] = static_cast<int8_t>(std::nearbyint(x[i] / scale));
    total += q[i];
  }
  for (; i % QUAD; ++i) q[i] = 0;
  *sum = total;
  return scale;
}

// a + the products of four bytes of each lane: v unsigned, from signed
#ifdef __AVX512VNNI__
I32 plus_products(I32 a, I32 v, int32_t from) {
  return reinterpret_cast<I32>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(v), _mm512_set1_epi32(from)));
}
#else
I32 plus_products(I32 a, I32 v, int32_t from) {
  for (int i = 0; i < QUAD; ++i) a += (v >> (8 * i) & 255) * int32_t{static_cast<int8_t>(from >> (8 * i))};
  return a;
}
#endif

template <class T>
T read(const void* from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

struct Int8 {
  const int8_t* q;
  const int32_t* totals;
  const float* scale;
  int64_t k, n;

  // ROWS rows from r on by VECTORS vectors of one block
  template <int ROWS>
  void tile(const uint8_t* w, const float* columns, float* y, int64_t r, int64_t have) const {
    const int64_t length = quads(k) * QUAD;
    I32 a[ROWS][VECTORS] = {};
    for (int64_t d = 0; d < length; d += QUAD) {
      soon<ROWS>(w + d * BLOCK);
      I32 v[VECTORS];
      for (int c = 0; c < VECTORS; ++c) v[c] = read<I32>(w + d * BLOCK + c * QUAD * LANES);
      for (int i = 0; i < ROWS; ++i) {
        const auto from = read<int32_t>(q + (r + i) * length + d);
        for (int c = 0; c < VECTORS; ++c) a[i][c] = plus_products(a[i][c], v[c], from);
      }
    }
    for (int c = 0; c < VECTORS && c * LANES < have; ++c) {
      F32 by = {};
      std::memcpy(&by, columns + c * LANES,
                  sizeof(float) * static_cast<size_t>(have - c * LANES < LANES ? have - c * LANES : LANES));
      for (int i = 0; i < ROWS; ++i) {
        const F32 sums = __builtin_convertvector(a[i][c] - 128 * totals[r + i], F32);
        put(y + (r + i) * n + c * LANES, sums * by * scale[r + i], have - c * LANES);
      }
    }
  }
};

void int8(const int8_t* q, const int32_t* totals, const float* scale, const uint8_t* w,
          const float* columns, float* y, int64_t rows, int64_t k, int64_t n, int64_t from,
          int64_t to) {
  const Int8 all{q, totals, scale, k, n};
  for (int64_t b = from; b < to; ++b)
    for (int64_t c = 0; c < BLOCK && b * BLOCK + c < n; c += WIDTH)
      by_rows(rows, [&](auto many, int64_t r) {
        all.tile<many>(w + b * BLOCK * quads(k) * QUAD + c * QUAD, columns + b * BLOCK + c,
                       y + b * BLOCK + c, r, n - b * BLOCK - c);
      });
}

}  // namespace

#define ARC_TEXT(x) #x
#define ARC_NAME(x) ARC_TEXT(x)
extern const RowLoops row_table;
const RowLoops row_table = {ARC_NAME(ARC_ISA), f32, quantize, int8};

}  // namespace ARC_ISA
}  // namespace arc
