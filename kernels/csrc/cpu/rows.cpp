// The inner loops of rows.h; ARC_ISA names the instruction set this copy is compiled for. Meanings:
// arcompile/ops (matmul, quantize_rows, matmul_int8), which tests compare them with.
#include "rows.h"

#include <cmath>

#include "simd.h"
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

namespace arc {
namespace ARC_ISA {
namespace {

typedef int8_t I8 __attribute__((vector_size(16)));

// --- floats ---------------------------------------------------------------------------------------

// ROWS rows by COLUMNS columns. Each sum runs along k in steps of the lanes, whatever ROWS and
// COLUMNS are.
template <int ROWS, int COLUMNS>
void dots(const float* x, const float* w, float* y, int64_t k, int64_t n) {
  F32 a[ROWS][COLUMNS] = {};
  int64_t d = 0;
  for (; d + LANES <= k; d += LANES) {
    F32 v[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) v[c] = load(w + c * k + d);
    for (int r = 0; r < ROWS; ++r) {
      const F32 from = load(x + r * k + d);
      for (int c = 0; c < COLUMNS; ++c) a[r][c] += v[c] * from;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLUMNS; ++c) {
      float total = sum(a[r][c]);
      for (int64_t i = d; i < k; ++i) total += w[c * k + i] * x[r * k + i];
      y[r * n + c] = total;
    }
}

template <int COLUMNS>
void all_rows(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n) {
  constexpr int MOST = COLUMNS > 4 ? 2 : 4;  // rows that the registers hold
  int64_t r = 0;
  for (; r + MOST <= rows; r += MOST) dots<MOST, COLUMNS>(x + r * k, w, y + r * n, k, n);
  switch (rows - r) {
    case 3: dots<3, COLUMNS>(x + r * k, w, y + r * n, k, n); break;
    case 2: dots<2, COLUMNS>(x + r * k, w, y + r * n, k, n); break;
    case 1: dots<1, COLUMNS>(x + r * k, w, y + r * n, k, n); break;
  }
}

// Eight columns are as many streams: enough for memory that is far away, or that others use too.
void f32(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n, int64_t n0,
         int64_t n1) {
  int64_t c = n0;
  if (rows <= 2)
    for (; c + 8 <= n1; c += 8) all_rows<8>(x, w + c * k, y + c, rows, k, n);
  for (; c + 4 <= n1; c += 4) all_rows<4>(x, w + c * k, y + c, rows, k, n);
  for (; c < n1; ++c) all_rows<1>(x, w + c * k, y + c, rows, k, n);
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
  *sum = total;
  return scale;
}

#ifdef __AVX512VNNI__

// sums[r,c] = q[r,k] . (w[c,k] + 128): the instruction multiplies unsigned by signed bytes.
template <int ROWS, int COLUMNS>
void dots(const int8_t* q, const int8_t* w, int64_t k, int32_t (*sums)[COLUMNS]) {
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512i a[ROWS][COLUMNS];
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLUMNS; ++c) a[r][c] = _mm512_setzero_si512();
  for (int64_t d = 0; d < k; d += 64) {
    const __mmask64 some = k - d < 64 ? (1ull << (k - d)) - 1 : ~0ull;  // zeros of q add nothing
    __m512i v[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c)
      v[c] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(some, w + c * k + d), flip);
    for (int r = 0; r < ROWS; ++r) {
      const __m512i from = _mm512_maskz_loadu_epi8(some, q + r * k + d);
      for (int c = 0; c < COLUMNS; ++c) a[r][c] = _mm512_dpbusd_epi32(a[r][c], v[c], from);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLUMNS; ++c) sums[r][c] = _mm512_reduce_add_epi32(a[r][c]);
}

constexpr int32_t FLIPPED = 128;

#else

template <int ROWS, int COLUMNS>
void dots(const int8_t* q, const int8_t* w, int64_t k, int32_t (*sums)[COLUMNS]) {
  for (int r = 0; r < ROWS; ++r)
    for (int c = 0; c < COLUMNS; ++c) {
      int32_t total = 0;
      for (int64_t d = 0; d < k; ++d) total += int16_t{q[r * k + d]} * int16_t{w[c * k + d]};
      sums[r][c] = total;
    }
}

constexpr int32_t FLIPPED = 0;

#endif

struct Int8 {
  const int8_t* q;
  const int32_t* totals;
  const float* scale;
  int64_t rows, k, n;

  template <int ROWS, int COLUMNS>
  void block(const int8_t* w, const float* columns, float* y, int64_t r) const {
    int32_t sums[ROWS][COLUMNS];
    dots<ROWS, COLUMNS>(q + r * k, w, k, sums);
    for (int i = 0; i < ROWS; ++i)
      for (int c = 0; c < COLUMNS; ++c)
        y[(r + i) * n + c] = static_cast<float>(sums[i][c] - FLIPPED * totals[r + i]) *
                             columns[c] * scale[r + i];
  }
  template <int COLUMNS>
  void all_rows(const int8_t* w, const float* columns, float* y) const {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) block<4, COLUMNS>(w, columns, y, r);
    for (; r + 2 <= rows; r += 2) block<2, COLUMNS>(w, columns, y, r);
    for (; r < rows; ++r) block<1, COLUMNS>(w, columns, y, r);
  }
};

void int8(const int8_t* q, const int32_t* totals, const float* scale, const int8_t* w,
          const float* columns, float* y, int64_t rows, int64_t k, int64_t n, int64_t n0,
          int64_t n1) {
  const Int8 all{q, totals, scale, rows, k, n};
  int64_t c = n0;
  for (; c + 4 <= n1; c += 4) all.all_rows<4>(w + c * k, columns + c, y + c);
  for (; c < n1; ++c) all.all_rows<1>(w + c * k, columns + c, y + c);
}

}  // namespace

#define ARC_TEXT(x) #x
#define ARC_NAME(x) ARC_TEXT(x)
extern const RowLoops row_table;
const RowLoops row_table = {ARC_NAME(ARC_ISA), f32, quantize, int8};

}  // namespace ARC_ISA
}  // namespace arc
