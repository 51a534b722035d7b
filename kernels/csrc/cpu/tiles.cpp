// The inner loops of tiles.h; ARC_ISA names the instruction set this copy is compiled for.
// No templates of the standard library here: the linker would keep one copy for all of them.
#include "tiles.h"

#include <cmath>

#if defined(__AVX512VNNI__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace arc {
namespace ARC_ISA {
namespace {

typedef uint16_t U16 __attribute__((vector_size(32)));
typedef uint8_t U8 __attribute__((vector_size(16)));

template <class To, class From>
inline To as(From x) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  return reinterpret_cast<To>(x);
}

// --- sums of products ---------------------------------------------------------------------------

struct Float {
  typedef F32 Sum;
  static inline Sum dot(Sum a, I32 x, I32 w) { return a + as<F32>(x) * as<F32>(w); }
};

struct Brain {
  typedef F32 Sum;
  static inline Sum dot(Sum a, I32 x, I32 w) {
#if defined(__AVX512BF16__)
    return as<F32>(_mm512_dpbf16_ps(as<__m512>(a), as<__m512bh>(x), as<__m512bh>(w)));
#else
    const I32 high = I32{} + static_cast<int32_t>(0xffff0000);
    a += as<F32>(x << 16) * as<F32>(w << 16);
    return a + as<F32>(x & high) * as<F32>(w & high);
#endif
  }
};

struct Integer {
  typedef I32 Sum;
  static inline Sum dot(Sum a, I32 x, I32 w) {
#if defined(__AVX512VNNI__)
    return as<I32>(_mm512_dpbusd_epi32(as<__m512i>(a), as<__m512i>(x), as<__m512i>(w)));
#else
    a += (x & 255) * ((w << 24) >> 24);
    a += ((x >> 8) & 255) * ((w << 16) >> 24);
    a += ((x >> 16) & 255) * ((w << 8) >> 24);
    return a + ((x >> 24) & 255) * (w >> 24);
#endif
  }
};

inline I32 words_at(const int32_t* p) {
  I32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Kind, int ROWS, int VECTORS>
void tile(const int32_t* x, const int64_t* taps, int64_t n_taps, int64_t words, int64_t stride,
          const int32_t* w, int32_t* sums, bool more) {
  typename Kind::Sum a[ROWS][VECTORS] = {};
  if (more) std::memcpy(a, sums, sizeof a);
  for (int64_t t = 0; t < n_taps; ++t) {
    const int32_t* at = x + taps[t];
    for (int64_t k = 0; k < words; ++k, w += VECTORS * LANES) {
      I32 v[VECTORS];
      for (int j = 0; j < VECTORS; ++j) v[j] = words_at(w + j * LANES);
      for (int i = 0; i < ROWS; ++i) {
        const I32 one = I32{} + at[i * stride + k];
        for (int j = 0; j < VECTORS; ++j) a[i][j] = Kind::dot(a[i][j], one, v[j]);
      }
    }
  }
  std::memcpy(sums, a, sizeof a);
}

template <class Kind, int VECTORS>
void rows(const int32_t* x, const int64_t* taps, int64_t n_taps, int64_t words, int64_t stride,
          int64_t pixels, const int32_t* w, int32_t* sums, bool more) {
  constexpr int64_t W = VECTORS * LANES;
  int64_t i = 0;
  if (pixels == 8) return tile<Kind, 8, VECTORS>(x, taps, n_taps, words, stride, w, sums, more);
  for (; i + 4 <= pixels; i += 4)
    tile<Kind, 4, VECTORS>(x + i * stride, taps, n_taps, words, stride, w, sums + i * W, more);
  for (; i < pixels; ++i)
    tile<Kind, 1, VECTORS>(x + i * stride, taps, n_taps, words, stride, w, sums + i * W, more);
}

template <class Kind>
void sum(const int32_t* x, const int64_t* taps, int64_t n_taps, int64_t words, int64_t stride,
         int64_t pixels, const int32_t* w, int64_t width, int32_t* sums, bool more) {
  if (width == WIDTH) return rows<Kind, 2>(x, taps, n_taps, words, stride, pixels, w, sums, more);
  rows<Kind, 1>(x, taps, n_taps, words, stride, pixels, w, sums, more);
}

// --- before and after -----------------------------------------------------------------------------

inline void put(Float, int32_t* at, F32 v, float, float) { std::memcpy(at, &v, sizeof v); }

inline void put(Brain, int32_t* at, F32 v, float, float) {  // to nearest, ties to even
  const I32 bits = as<I32>(v);
  const U16 half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, U16);
  std::memcpy(at, &half, sizeof half);
}

inline void put(Integer, int32_t* at, F32 v, float inverse, float zero) {
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  F32 q = v * inverse;
  q = ((q + magic) - magic) + zero;
  q = pick(q < all(0.0f), all(0.0f), pick(q > all(255.0f), all(255.0f), q));
  const U8 bytes = __builtin_convertvector(__builtin_convertvector(q, I32), U8);
  std::memcpy(at, &bytes, sizeof bytes);
}

template <class Kind, int PER>
void pack(const float* x, const float* scale, const float* shift, bool silu, int64_t channels,
          int64_t pixels, float step, float zero, int32_t* words) {
  const float inverse = 1.0f / step;
  for (int64_t p = 0; p < pixels; ++p, x += channels, words += channels / PER)
    for (int64_t c = 0; c < channels; c += LANES) {
      F32 v = load(x + c);
      if (scale) v = v * load(scale + c) + load(shift + c);
      if (silu) v = v / (1.0f + exp(-v));
      put(Kind{}, words + c / PER, v, inverse, zero);
    }
}

void moments(const float* x, const float* pivot, int64_t channels, int64_t pixels, double* sums,
             double* squares, float* least, float* most) {
  constexpr int64_t STRETCH = 64;  // short stretches: f32 is enough for each, a cache holds it
  for (int64_t from = 0; from < pixels; from += STRETCH) {
    const int64_t to = from + STRETCH < pixels ? from + STRETCH : pixels;
    for (int64_t c = 0; c < channels; c += LANES) {
      const F32 middle = load(pivot + c);
      F32 s = {}, q = {}, low = load(least + c), high = load(most + c);
      for (int64_t p = from; p < to; ++p) {
        const F32 v = load(x + p * channels + c), d = v - middle;
        s += d;
        q += d * d;
        low = pick(v < low, v, low);
        high = pick(v > high, v, high);
      }
      store(least + c, low);
      store(most + c, high);
      for (int i = 0; i < LANES; ++i) {
        sums[c + i] += s[i];
        squares[c + i] += q[i];
      }
    }
  }
}

void scale(const int32_t* sums, bool integers, const float* by, const float* shift,
           const float* residual, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const I32 s = words_at(sums + i);
    F32 v = (integers ? __builtin_convertvector(s, F32) : as<F32>(s)) * load(by + i);
    v += load(shift + i);
    store(y + i, residual ? v + load(residual + i) : v);
  }
  for (; i < count; ++i) {
    float s;
    std::memcpy(&s, sums + i, sizeof s);
    s = (integers ? static_cast<float>(sums[i]) : s) * by[i] + shift[i];
    y[i] = residual ? s + residual[i] : s;
  }
}

}  // namespace

#define ARC_TEXT(x) #x
#define ARC_NAME(x) ARC_TEXT(x)
extern const Tiles tile_table;
const Tiles tile_table = {ARC_NAME(ARC_ISA),
                          {sum<Float>, sum<Brain>, sum<Integer>},
                          {pack<Float, 1>, pack<Brain, 2>, pack<Integer, 4>},
                          moments, scale};

}  // namespace ARC_ISA
}  // namespace arc
