// The inner loops of tiles.h; ARC_ISA names the instruction set this copy is compiled for.
// No templates of the standard library here: the linker would keep one copy for all of them.
#include "tiles.h"

#include <cmath>

#if defined(__AVX512F__)
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

#if defined(__AVX512F__)
// e^-v by powers of two that saturate, 1 / (1 + e^-v) by one Newton step.
inline F32 sigmoid(F32 v) {
  const __m512 x = _mm512_min_ps(as<__m512>(-v), as<__m512>(all(87.0f)));
  const F32 n = as<F32>(_mm512_roundscale_ps(as<__m512>(as<F32>(x) * 1.44269504088896341f), 0));
  const F32 r = (as<F32>(x) - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  F32 p = all(1.0f / 720) * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const F32 d = 1.0f + as<F32>(_mm512_scalef_ps(as<__m512>(p), as<__m512>(n)));
  const F32 y = as<F32>(_mm512_rcp14_ps(as<__m512>(d)));
  return y * (2.0f - d * y);
}
#endif

inline F32 silu(F32 v) {
#if defined(__AVX512F__)
  return v * sigmoid(v);
#else
  return v / (1.0f + exp(-v));
#endif
}

template <class Kind, int PER>
void pack(const float* x, const float* scale, const float* shift, bool active, int64_t channels,
          int64_t pixels, float step, float zero, int32_t* words) {
  const float inverse = 1.0f / step;
  for (int64_t p = 0; p < pixels; ++p, x += channels, words += channels / PER)
    for (int64_t c = 0; c < channels; c += LANES) {
      F32 v = load(x + c);
      if (scale) v = v * load(scale + c) + load(shift + c);
      if (active) v = silu(v);
      put(Kind{}, words + c / PER, v, inverse, zero);
    }
}

// Of VECTORS vectors of channels from c on.
template <int VECTORS>
void stretch(const float* x, const float* pivot, int64_t channels, int64_t pixels, double* sums,
             double* squares, float* least, float* most) {
  F32 middle[VECTORS], s[VECTORS] = {}, q[VECTORS] = {}, low[VECTORS], high[VECTORS];
  for (int j = 0; j < VECTORS; ++j) {
    middle[j] = load(pivot + j * LANES);
    low[j] = load(least + j * LANES);
    high[j] = load(most + j * LANES);
  }
  for (int64_t p = 0; p < pixels; ++p)
    for (int j = 0; j < VECTORS; ++j) {
      const F32 v = load(x + p * channels + j * LANES), d = v - middle[j];
      s[j] += d;
      q[j] += d * d;
      low[j] = pick(v < low[j], v, low[j]);
      high[j] = pick(v > high[j], v, high[j]);
    }
  for (int j = 0; j < VECTORS; ++j) {
    store(least + j * LANES, low[j]);
    store(most + j * LANES, high[j]);
    for (int i = 0; i < LANES; ++i) {
      sums[j * LANES + i] += s[j][i];
      squares[j * LANES + i] += q[j][i];
    }
  }
}

void moments(const float* x, const float* pivot, int64_t channels, int64_t pixels, double* sums,
             double* squares, float* least, float* most) {
  constexpr int64_t STRETCH = 128;  // pixels at a time: f32 is enough for their sums
  for (int64_t p = 0; p < pixels; p += STRETCH) {
    const int64_t n = p + STRETCH < pixels ? STRETCH : pixels - p;
    const float* at = x + p * channels;
    int64_t c = 0;
    for (; c + 4 * LANES <= channels; c += 4 * LANES)
      stretch<4>(at + c, pivot + c, channels, n, sums + c, squares + c, least + c, most + c);
    for (; c < channels; c += LANES)
      stretch<1>(at + c, pivot + c, channels, n, sums + c, squares + c, least + c, most + c);
  }
}

void scale(const int32_t* sums, bool integers, const float* by, const float* shift,
           const float* residual, float* y, int64_t count, int64_t pixels, int64_t width,
           int64_t stride) {
  for (int64_t p = 0; p < pixels; ++p, sums += width, y += stride) {
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
    if (residual) residual += stride;
  }
}

// --- linear layers --------------------------------------------------------------------------------

float round_row(const float* x, int64_t count, uint8_t* q) {
  const I32 magnitude = I32{} + 0x7fffffff;
  F32 most = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const F32 v = as<F32>(as<I32>(load(x + i)) & magnitude);
    most = pick(v > most, v, most);
  }
  float peak = max(most);
  for (; i < count; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
  const float step = (peak > 1e-30f ? peak : 1e-30f) / 127.0f, inverse = 1.0f / step;
  for (i = 0; i + LANES <= count; i += LANES)
    put(Integer{}, reinterpret_cast<int32_t*>(q + i), load(x + i), inverse, 128.0f);
  for (; i < count; ++i) {
    const float v = std::nearbyint(x[i] * inverse) + 128.0f;
    q[i] = static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
  }
  return step;
}

// x * sigmoid(2 u), the tanh form of gelu: u = sqrt(2/pi) (x + 0.044715 x^3).
inline F32 gelu(F32 x) {
  const F32 u = x * (1.5957691216f + 0.0713548162726f * x * x);
#if defined(__AVX512F__)
  return x * sigmoid(u);
#else
  return x / (1.0f + exp(-u));
#endif
}

inline F32 some(const float* p, int64_t count) {
  float held[LANES] = {};
  std::memcpy(held, p, count * sizeof(float));
  return load(held);
}

// One vector of columns from c on, of which n count: what all rows share is read once.
template <bool WHOLE>
inline void tail_of(const Tail& t, int64_t c, int64_t n) {
  const auto at = [=](const float* p) { return WHOLE ? load(p + c) : some(p + c, n); };
  const I32 zero = __builtin_convertvector(load(t.own + c), I32) * 128;  // padded to LANES
  const F32 scale = load(t.scale + c), bias = at(t.bias);
  const int32_t* sums = t.sums + c;
  const float* residual = t.residual;
  float* y = t.y;
  for (int64_t r = 0; r < t.rows; ++r, sums += t.width, y += t.stride) {
    F32 v = __builtin_convertvector(words_at(sums) - zero, F32) * scale * t.steps[r] + bias;
    if (t.gelu) v = gelu(v);
    if (t.gain[r]) v = v * at(t.gain[r]);
    if (residual) {
      v += at(residual);
      residual += t.stride;
    }
    if (WHOLE) store(y + c, v);
    else std::memcpy(y + c, &v, n * sizeof(float));
  }
}

void tail(const Tail& t, int64_t count) {
  int64_t c = 0;
  for (; c + LANES <= count; c += LANES) tail_of<true>(t, c, LANES);
  if (c < count) tail_of<false>(t, c, count - c);
}

}  // namespace

#define ARC_TEXT(x) #x
#define ARC_NAME(x) ARC_TEXT(x)
extern const Tiles tile_table;
const Tiles tile_table = {ARC_NAME(ARC_ISA),
                          {sum<Float>, sum<Brain>, sum<Integer>},
                          {pack<Float, 1>, pack<Brain, 2>, pack<Integer, 4>},
                          moments, scale, round_row, tail};

}  // namespace ARC_ISA
}  // namespace arc
