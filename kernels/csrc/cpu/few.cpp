// Products of few rows: what takes time is reading the weights, once and where they are mapped.
// What follows a product (the gate of an MLP, a residual sum and its norm) is done in the same
// parallel section: one wait for the threads less.
#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "lanes.h"
#include "op.h"
#include "rows.h"

namespace arc {
namespace {

// Scratch of the calling thread, at least so large. An op uses each place once at a time.
template <class T, int PLACE>
T* scratch(int64_t count) {
  static thread_local std::vector<T> held;
  if (held.size() < static_cast<size_t>(count)) held.resize(static_cast<size_t>(count));
  return held.data();
}

// x [..,k], and the inputs after it: w [n,k]
struct Floats {
  static constexpr size_t INPUTS = 1;
  const float* x;
  int64_t rows, k;

  explicit Floats(const Tensor& t) : x(t.f32()), rows(0), k(t.dims.back()) {
    rows = k ? t.count() / k : 0;
  }
  struct Weights {
    Tensor w;
    Weights(ort::Context* c, size_t at) : w(input(c, at)) {}
  };
  void columns(const Weights& m, float* y, int64_t from, int64_t to) const {
    row_loops().f32(x, m.w.f32(), y, rows, k, m.w.dims[0], from, to);
  }
};

// x [..,k], rounded to 8 bits row by row; then w i8[n,k] and scales [n]
struct Int8s {
  static constexpr size_t INPUTS = 2;
  int64_t rows, k;
  int8_t* q;
  int32_t* sums;
  float* scale;

  explicit Int8s(const Tensor& t) : rows(0), k(t.dims.back()) {
    rows = k ? t.count() / k : 0;
    q = scratch<int8_t, 0>(rows * k);
    sums = scratch<int32_t, 0>(rows);
    scale = scratch<float, 0>(rows);
    for (int64_t r = 0; r < rows; ++r)
      scale[r] = row_loops().quantize(t.f32() + r * k, q + r * k, sums + r, k);
  }
  struct Weights {
    Tensor w, scales;
    Weights(ort::Context* c, size_t at) : w(input(c, at)), scales(input(c, at + 1)) {}
  };
  void columns(const Weights& m, float* y, int64_t from, int64_t to) const {
    row_loops().int8(q, sums, scale, m.w.i8(), m.scales.f32(), y, rows, k, m.w.dims[0], from, to);
  }
};

std::vector<int64_t> product_shape(const Tensor& x, int64_t n) {
  std::vector<int64_t> shape = x.dims;
  shape.back() = n;
  return shape;
}

// Columns [from,to) of n in a few parts for each core, so that nobody waits long for a core that has
// other work to do; whole cache lines each.
template <class F>
void share(ort::Context* c, int64_t k, int64_t n, F work) {
  const int64_t parts = k * n < WORTH ? 1 : 4 * cores();
  const int64_t step = ((n + parts - 1) / parts + 63) / 64 * 64;
  each(c, parts, [&](int64_t i) { work(std::min(i * step, n), std::min(i * step + step, n)); });
}

// x and weights -> their product
template <class P>
void product(void*, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights m(c, 1);
  const int64_t n = m.w.dims[0];
  const Tensor y = output(c, product_shape(x, n));
  const P p(x);
  share(c, p.k, n, [&](int64_t from, int64_t to) {
    if (from < to) p.columns(m, y.f32(), from, to);
  });
}

// x, the gate's weights and weights -> silu(x @ gate) * (x @ weights)
template <class P>
void gated(void*, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights gate(c, 1), m(c, 1 + P::INPUTS);
  const int64_t n = m.w.dims[0];
  const Tensor y = output(c, product_shape(x, n));
  const P p(x);
  float* const gates = scratch<float, 1>(p.rows * n);
  share(c, p.k, n, [&](int64_t from, int64_t to) {
    if (from >= to) return;
    p.columns(gate, gates, from, to);
    p.columns(m, y.f32(), from, to);
    for (int64_t at = from; at < p.rows * n; at += n)
      lanes().swiglu(gates + at, y.f32() + at, y.f32() + at, to - from);
  });
}

// x, weights, residual [..,n], norm's weight [n], eps [1] -> norm, sum [..,n] as ResidualNorm's of
// the residual and the product. Whoever finishes last does the norm.
template <class P>
void normed(void*, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights m(c, 1);
  const Tensor residual = input(c, 1 + P::INPUTS), weight = input(c, 2 + P::INPUTS),
               eps = input(c, 3 + P::INPUTS);
  const int64_t n = m.w.dims[0];
  const Tensor norm = output(c, residual.dims), sum = output(c, residual.dims, 1);
  const P p(x);
  std::atomic<int64_t> left{n};
  share(c, p.k, n, [&](int64_t from, int64_t to) {
    if (from >= to) return;
    p.columns(m, sum.f32(), from, to);
    if (left.fetch_sub(to - from, std::memory_order_acq_rel) != to - from) return;
    for (int64_t at = 0; at < p.rows * n; at += n)
      lanes().residual_norm(residual.f32() + at, sum.f32() + at, weight.f32(), norm.f32() + at,
                            sum.f32() + at, n, eps.f32()[0]);
  });
}

constexpr int F = ort::FLOAT, Q = ort::INT8;
const std::array OPS = {
    declare("Linear", {F, F}, {F}, product<Floats>),
    declare("GatedLinear", {F, F, F}, {F}, gated<Floats>),
    declare("LinearResidualNorm", {F, F, F, F, F}, {F, F}, normed<Floats>),
    declare("Int8Linear", {F, Q, F}, {F}, product<Int8s>),
    declare("GatedInt8Linear", {F, Q, F, Q, F}, {F}, gated<Int8s>),
    declare("Int8LinearResidualNorm", {F, Q, F, F, F, F}, {F, F}, normed<Int8s>),
};

}  // namespace

Ops few_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
