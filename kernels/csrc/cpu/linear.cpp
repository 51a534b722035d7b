// Products of many rows by matrices of 8-bit integers, with what stands around them: rows are
// rounded before, each by its own largest value; bias, gelu, a gain per row and a residual follow
// while a tile's sums are in registers' reach. The meaning is in arcompile/ops/linear.py.
#include <algorithm>
#include <array>
#include <vector>

#include "op.h"
#include "tiles.h"

namespace arc {
namespace {

constexpr int64_t DEPTH = 512;  // words of a row at a time: eight rows of them stay in L1
constexpr int64_t LINE = 16;    // floats
constexpr int64_t ZERO = 128;   // what activations count from

struct Linear {
  int64_t rows, k, n, panels, width, words;
  const float *scale, *bias, *gain, *residual;
  int64_t each_gain;  // rows that share a row of gain
  bool gelu;
  const uint8_t* x;
  const float* steps;
  const int32_t* w;
  float* y;
};

// What a tile's tail will touch is fetched while its sums are made: stores wait for their lines one
// after another.
void soon(const Linear& m, int64_t at, int64_t rows, int64_t wide) {
  for (int64_t i = 0; i < rows; ++i, at += m.n)
    for (int64_t j = 0; j < wide; j += LINE) {
      __builtin_prefetch(m.y + at + j, 1);
      if (m.residual) __builtin_prefetch(m.residual + at + j);
    }
}

void panel(const Linear& m, int64_t p, int64_t from, int64_t to) {
  alignas(64) int32_t sums[PIXELS * WIDTH];
  const int64_t at = p * m.width, wide = std::min(m.width, m.n - at);
  const int32_t* w = m.w + p * m.words * m.width;
  const int64_t taps[1] = {0}, columns = m.panels * m.width;
  for (int64_t r = from; r < to; r += PIXELS) {
    const int64_t count = std::min(PIXELS, to - r);
    const int32_t* x = reinterpret_cast<const int32_t*>(m.x + r * m.k);
    soon(m, r * m.n + at, count, wide);
    for (int64_t d = 0; d < m.words; d += DEPTH)
      tiles().sum[INT8_WORDS](x + d, taps, 1, std::min(DEPTH, m.words - d), m.words, count,
                              w + d * m.width, m.width, sums, d > 0);
    Tail t{sums, count, m.width, m.scale + at, m.scale + columns + at, m.steps + r, m.bias + at, {},
           m.residual ? m.residual + r * m.n + at : nullptr, m.y + r * m.n + at, m.n, m.gelu};
    for (int64_t i = 0; m.gain && i < count; ++i)
      t.gain[i] = m.gain + (r + i) / m.each_gain * m.n + at;
    tiles().tail(t, wide);
  }
}

// x [..,k], w i8 [panels,k/4,width,4], scale [2,columns], bias [n], gain [r,1,n] and residual like
// the result, or of one number each (none) -> [..,n]
template <bool GELU>
void linear(void*, ort::Context* c) {
  const Tensor x = input(c, 0), w = input(c, 1), scale = input(c, 2), bias = input(c, 3),
               gain = input(c, 4), residual = input(c, 5);
  std::vector<int64_t> shape = x.dims;
  const int64_t k = shape.back(), n = bias.dims[0], rows = k ? x.count() / k : 0;
  shape.back() = n;
  const Tensor y = output(c, std::move(shape));
  if (!rows) return;
  static thread_local std::vector<uint8_t> rounded;
  static thread_local std::vector<float> steps;
  rounded.resize(std::max(rounded.size(), static_cast<size_t>(rows * k)));
  steps.resize(std::max(steps.size(), static_cast<size_t>(rows)));
  uint8_t* const to = rounded.data();
  float* const step = steps.data();
  const int64_t chunks = rows * k < (1 << 15) ? 1 : std::min(rows, 4 * cores());
  each(c, chunks, [&](int64_t i) {
    for (int64_t r = rows * i / chunks; r < rows * (i + 1) / chunks; ++r)
      step[r] = tiles().round_row(x.f32() + r * k, k, to + r * k);
  });
  const Linear m{rows, k, n, w.dims[0], w.dims[2], w.dims[1], scale.f32(), bias.f32(),
                 gain.count() > 1 ? gain.f32() : nullptr,
                 residual.count() > 1 ? residual.f32() : nullptr,
                 gain.count() > 1 ? rows / (gain.count() / n) : rows, GELU, to, step,
                 static_cast<const int32_t*>(w.data), y.f32()};
  const int64_t parts = std::min(m.panels, 4 * cores());
  each(c, parts, [&](int64_t i) {
    for (int64_t p = m.panels * i / parts; p < m.panels * (i + 1) / parts; ++p)
      panel(m, p, 0, rows);
  });
}

constexpr int F = ort::FLOAT, Q = ort::INT8;

size_t residual_over_result(int** inputs, int** outputs) {
  static int residual = 5, result = 0;
  *inputs = &residual;
  *outputs = &result;
  return 1;
}

Declared declared(const char* title, void (*compute)(void*, ort::Context*)) {
  Declared d = declare(title, {F, Q, F, F, F, F}, {F}, compute);
  d.may_write_over = residual_over_result;
  return d;
}

const std::array OPS = {declared("TiledInt8", linear<false>),
                        declared("TiledInt8Gelu", linear<true>)};

}  // namespace

Ops linear_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
