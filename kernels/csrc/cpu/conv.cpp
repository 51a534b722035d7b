// Convolutions over channels-last images, stride 1 and the same size, with what surrounds them in
// image decoders: GroupNorm and SiLU before, nearest x2 before, a residual after. The meaning of
// each is in arcompile/ops/channels_last.py.
//
// A band of rows is normalised and packed into words once, into a buffer that a cache holds, and
// multiplied from there: no normalised or enlarged image is ever written to memory.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "op.h"
#include "tiles.h"

namespace arc {
namespace {

constexpr float LEAST_SILU = -0.27846455f;  // of silu
constexpr float LEVELS = 255;
constexpr int64_t BUFFER = 512 << 10;  // bytes of packed rows that a cache keeps beside weights

// What becomes of an image's numbers before they are multiplied.
struct Before {
  const float *scale = nullptr, *shift = nullptr;  // per channel; null: nothing
  bool silu = false;
  float step = 1, zero = 0;  // of 8-bit integers
};

struct Shape {
  Form form;
  int64_t n, h, w, ci, co, sets, panels, k, words, width;

  int64_t pad() const { return k > 1; }
  int64_t times() const { return sets == 4 ? 2 : 1; }  // larger than the input
  int64_t row() const { return (w + 2 * pad()) * words; }
  int64_t columns() const { return panels * width; }
};

// --- statistics -----------------------------------------------------------------------------------

struct Channel {  // of one image: sums over its pixels of x - pivot, and its extremes
  std::vector<double> sum, square;
  std::vector<float> least, most;
  explicit Channel(int64_t n)
      : sum(n), square(n), least(n, INFINITY), most(n, -INFINITY) {}
};

Channel measure(ort::Context* c, const float* x, int64_t pixels, int64_t channels) {
  const int64_t parts = std::min<int64_t>(4 * cores(), pixels), step = (pixels + parts - 1) / parts;
  std::vector<Channel> found(parts, Channel(channels));
  each(c, parts, [&](int64_t i) {
    const int64_t from = std::min(i * step, pixels), to = std::min(from + step, pixels);
    Channel& f = found[i];
    tiles().moments(x + from * channels, x, channels, to - from, f.sum.data(), f.square.data(),
                    f.least.data(), f.most.data());
  });
  for (int64_t i = 1; i < parts; ++i)
    for (int64_t j = 0; j < channels; ++j) {
      found[0].sum[j] += found[i].sum[j];
      found[0].square[j] += found[i].square[j];
      found[0].least[j] = std::min(found[0].least[j], found[i].least[j]);
      found[0].most[j] = std::max(found[0].most[j], found[i].most[j]);
    }
  return std::move(found[0]);
}

// scale and shift per channel [2,channels] that normalise each group, then weight and bias.
std::vector<float> normalise(const Channel& s, const float* pivot, int64_t pixels, int64_t channels,
                             int64_t groups, const float* weight, const float* bias, float eps) {
  std::vector<float> made(2 * channels);
  const int64_t each_group = channels / groups;
  const double n = static_cast<double>(pixels);
  for (int64_t g = 0; g < groups; ++g) {
    double mean = 0, square = 0;
    for (int64_t j = g * each_group; j < (g + 1) * each_group; ++j) mean += pivot[j] + s.sum[j] / n;
    mean /= each_group;
    for (int64_t j = g * each_group; j < (g + 1) * each_group; ++j) {
      const double own = s.sum[j] / n, off = pivot[j] + own - mean;
      square += std::max(0.0, s.square[j] / n - own * own) + off * off;
    }
    const double unit = 1 / std::sqrt(square / each_group + eps);
    for (int64_t j = g * each_group; j < (g + 1) * each_group; ++j) {
      made[j] = static_cast<float>(unit * weight[j]);
      made[channels + j] = static_cast<float>(bias[j] - mean * unit * weight[j]);
    }
  }
  return made;
}

float silu(float v) { return v / (1 + std::exp(-v)); }

// 8-bit integers for [low, high]; zero itself is exact.
void range(Before& b, float low, float high) {
  low = std::min(low, 0.0f), high = std::max(high, 0.0f);
  b.step = std::max((high - low) / LEVELS, 1e-30f);
  b.zero = std::nearbyint(-low / b.step);
}

void range_of(Before& b, const Channel& s, int64_t channels) {
  float low = b.silu ? LEAST_SILU : INFINITY, high = -INFINITY;
  for (int64_t j = 0; j < channels; ++j)
    for (float v : {s.least[j], s.most[j]}) {
      v = b.scale ? v * b.scale[j] + b.shift[j] : v;
      low = std::min(low, v * !b.silu);
      high = std::max(high, b.silu ? silu(v) : v);
    }
  range(b, b.silu ? LEAST_SILU : low, high);
}

// --- the product ----------------------------------------------------------------------------------

struct Image {
  const float *x, *residual;
  const int32_t* w;
  std::vector<float> scale, shift;  // of the sums, [sets * columns]
  Before before;
  float* y;
};

// Row r of the image, as words with a margin; rows outside count as zero.
void fill(const Shape& s, const Image& m, int64_t r, int32_t* row) {
  const int zero = s.form == INT8_WORDS ? static_cast<int>(m.before.zero) : 0;
  const size_t margin = s.pad() * s.words * 4;
  std::memset(row, zero, margin);
  std::memset(row + s.row() - s.pad() * s.words, zero, margin);
  if (r < 0 || r >= s.h) {
    std::memset(row, zero, s.row() * 4);
    return;
  }
  const Before& b = m.before;
  tiles().pack[s.form](m.x + r * s.w * s.ci, b.scale, b.shift, b.silu, s.ci, s.w, b.step, b.zero,
                       row + s.pad() * s.words);
}

// What a tile's sums will be written to is fetched while they are made: stores wait for their lines
// one after another.
void soon(const Shape& s, const Image& m, int64_t to, int64_t pixels, int64_t wide) {
  constexpr int64_t LINE = 16;  // floats
  for (int64_t i = 0; i < pixels; ++i, to += s.co * s.times())
    for (int64_t j = 0; j < wide; j += LINE) {
      __builtin_prefetch(m.y + to + j, 1);
      if (m.residual) __builtin_prefetch(m.residual + to + j);
    }
}

// Output rows of `count` input rows from `first` on; `buffer` holds them and their margin.
void band(const Shape& s, const Image& m, const int32_t* buffer, int64_t first, int64_t count) {
  alignas(64) int32_t sums[PIXELS * WIDTH];
  const int64_t panel_size = s.k * s.k * s.words * s.width;
  int64_t taps[9];
  for (int64_t set = 0; set < s.sets; ++set) {
    const int64_t py = set / 2, px = set % 2;
    for (int64_t t = 0; t < s.k * s.k; ++t)
      taps[t] = (py + t / s.k) * s.row() + (px + t % s.k) * s.words;
    for (int64_t p = 0; p < s.panels; ++p) {
      const int32_t* w = m.w + (set * s.panels + p) * panel_size;
      const int64_t at = p * s.width, wide = std::min(s.width, s.co - at);
      const float *scale = m.scale.data() + set * s.columns() + at,
                  *shift = m.shift.data() + set * s.columns() + at;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t x = 0; x < s.w; x += PIXELS) {
          const int64_t n = std::min(PIXELS, s.w - x);
          const int64_t row = (first + r) * s.times() + py, col = x * s.times() + px;
          const int64_t to = (row * s.w * s.times() + col) * s.co + at;
          soon(s, m, to, n, wide);
          tiles().sum[s.form](buffer + r * s.row() + x * s.words, taps, s.k * s.k, s.words, s.words,
                              n, w, s.width, sums, false);
          tiles().scale(sums, s.form == INT8_WORDS, scale, shift,
                        m.residual ? m.residual + to : nullptr, m.y + to, wide, n, s.width,
                        s.co * s.times());
        }
    }
  }
}

// Rows [from, to) of the input, band by band; neighbours share the rows of their margin.
void segment(const Shape& s, const Image& m, int64_t from, int64_t to) {
  const int64_t margin = 2 * s.pad();
  const int64_t most = std::max<int64_t>(1, BUFFER / (4 * s.row()) - margin);
  static thread_local std::vector<int32_t> buffer;
  buffer.resize((std::min(most, to - from) + margin) * s.row());
  int64_t held = 0;  // rows of the buffer that are there already
  for (int64_t at = from; at < to; at += most) {
    const int64_t count = std::min(most, to - at);
    for (int64_t i = held; i < count + margin; ++i)
      fill(s, m, at - s.pad() + i, buffer.data() + i * s.row());
    band(s, m, buffer.data(), at, count);
    std::memmove(buffer.data(), buffer.data() + count * s.row(), margin * s.row() * 4);
    held = margin;
  }
}

// What the sums of one image are multiplied by, and what is added.
void after(const Shape& s, Image& m, const float* scale, const float* bias) {
  const bool integers = s.form == INT8_WORDS;
  const int64_t n = s.columns();
  m.scale.resize(s.sets * n);
  m.shift.resize(s.sets * n);
  for (int64_t set = 0; set < s.sets; ++set)
    for (int64_t j = 0; j < s.co; ++j) {  // scale [sets,2,columns]: of each, then its integers' sum
      const float own = scale[2 * set * n + j] * (integers ? m.before.step : 1);
      m.scale[set * n + j] = own;
      m.shift[set * n + j] = bias[j] - (integers ? m.before.zero * own * scale[(2 * set + 1) * n + j] : 0);
    }
}

// x [n,h,w,ci], weights [sets,panels,k,k,ci/per,width,per], scale [sets,2,columns], bias [co],
// residual like the result or of one number (none); for NORM also weight and bias [ci], groups
// i64[1] and eps [1] -> [n,h,w,co], or twice as high and wide where there are four sets.
template <Form FORM, bool NORM>
void conv(void*, ort::Context* c) {
  const Tensor x = input(c, 0), w = input(c, 1), scale = input(c, 2), bias = input(c, 3),
               residual = input(c, 4);
  const Shape s{FORM, x.dims[0], x.dims[1], x.dims[2], x.dims[3], bias.dims[0], w.dims[0],
                w.dims[1], w.dims[2], w.dims[4], w.dims[5]};
  const int64_t pixels = s.h * s.w, made = pixels * s.times() * s.times() * s.co;
  const Tensor y = output(c, {s.n, s.h * s.times(), s.w * s.times(), s.co});
  for (int64_t i = 0; i < s.n; ++i) {
    Image m{x.f32() + i * pixels * s.ci, nullptr, static_cast<const int32_t*>(w.data), {}, {}, {},
            y.f32() + i * made};
    if (residual.count() > 1) m.residual = residual.f32() + i * made;
    std::vector<float> affine;
    if (NORM || FORM == INT8_WORDS) {
      const Channel found = measure(c, m.x, pixels, s.ci);
      if (NORM) {
        affine = normalise(found, m.x, pixels, s.ci, input(c, 7).i64()[0], input(c, 5).f32(),
                           input(c, 6).f32(), input(c, 8).f32()[0]);
        m.before.scale = affine.data(), m.before.shift = affine.data() + s.ci, m.before.silu = true;
      }
      if (FORM == INT8_WORDS) range_of(m.before, found, s.ci);
    }
    after(s, m, scale.f32(), bias.f32());
    const int64_t parts = std::min(s.h, s.h < 64 ? cores() : 4 * cores());
    each(c, parts, [&](int64_t part) {
      segment(s, m, s.h * part / parts, s.h * (part + 1) / parts);
    });
  }
}

constexpr int F = ort::FLOAT, I = ort::INT64, B = ort::BFLOAT16, Q = ort::INT8;

size_t residual_over_result(int** inputs, int** outputs) {
  static int residual = 4, result = 0;
  *inputs = &residual;
  *outputs = &result;
  return 1;
}

Declared declared(const char* title, int weights, bool norm, void (*compute)(void*, ort::Context*)) {
  std::vector<int> in = {F, weights, F, F, F};
  if (norm) in.insert(in.end(), {F, F, I, F});
  Declared d = declare(title, std::move(in), {F}, compute);
  d.may_write_over = residual_over_result;
  return d;
}

const std::array OPS = {
    declared("ConvF32", F, false, conv<F32_WORDS, false>),
    declared("ConvBf16", B, false, conv<BF16_WORDS, false>),
    declared("ConvInt8", Q, false, conv<INT8_WORDS, false>),
    declared("TwiceConvF32", F, false, conv<F32_WORDS, false>),
    declared("TwiceConvBf16", B, false, conv<BF16_WORDS, false>),
    declared("TwiceConvInt8", Q, false, conv<INT8_WORDS, false>),
    declared("NormConvF32", F, true, conv<F32_WORDS, true>),
    declared("NormConvBf16", B, true, conv<BF16_WORDS, true>),
    declared("NormConvInt8", Q, true, conv<INT8_WORDS, true>),
};

}  // namespace

Ops conv_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
