// Products of few rows: what takes time is reading the weights, so they are packed when a session is
// made, in the order in which they are read and into large pages.
// What follows a product (the gate of an MLP, a residual sum and its norm) is done in the same
// parallel section: one wait for the threads less.
#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "lanes.h"
#include "large.h"
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

// --- weights --------------------------------------------------------------------------------------

// One matrix, packed as rows.h says.
struct Packed {
  std::shared_ptr<void> memory;
  int64_t k, n;
};

// f(i) for each core, at once; what gets no thread of its own is done here.
template <class F>
void on_every_core(F f) {
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(cores()));
  for (int64_t i = 1; i < cores(); ++i) try {
      others.emplace_back(f, i);
    } catch (const std::system_error&) {
      f(i);
    }
  f(int64_t{0});
  for (std::thread& t : others) t.join();
}

// w [n,k]
template <class From, class To>
Packed packed(const Tensor& w) {
  const int64_t n = w.dims[0], k = w.dims[1], all = blocks(n);
  const auto* const from = static_cast<const From*>(w.data);
  Packed made{large(sizeof(To) * static_cast<size_t>(packed_size(k, n, static_cast<To*>(nullptr)))), k, n};
  auto* const to = static_cast<To*>(made.memory.get());
  const int64_t parts = k * n < WORTH ? 1 : cores();
  if (parts == 1) pack(from, to, k, n, 0, all);
  else on_every_core([&](int64_t i) { pack(from, to, k, n, i * all / parts, (i + 1) * all / parts); });
  leave(w.data, sizeof(From) * static_cast<size_t>(k * n));
  return made;
}

// What a kernel of this file keeps between runs.
struct Kept {
  std::vector<Packed> weights;
};

// Packs the constant weights among the inputs, of which every `STEP`th from the second on is one.
template <class P, size_t STEP>
ort::Status* create(const ort::Op* op, const void*, const ort::Info* info, void** out) {
  const auto failed = [](const std::string& why) {
    return api.at<ort::Status*(int, const char*)>(0)(1, why.c_str());
  };
  try {
    auto kept = std::make_unique<Kept>();
    const auto& declared = *static_cast<const Declared*>(op);
    for (size_t i = 1; i <= STEP * declared.matrices; i += STEP) {
      int constant = 0;
      const ort::Value* w = nullptr;
      if (auto* s = api.at<ort::Status*(const ort::Info*, size_t, int*, const ort::Value**)>(249)(
              info, i, &constant, &w))
        return s;
      if (!constant) return failed(std::string(declared.title) + " takes constant weights only");
      kept->weights.push_back(P::pack(tensor(w)));
    }
    *out = kept.release();
    return nullptr;
  } catch (const std::exception& e) {
    return failed(e.what());
  }
}

// --- products -------------------------------------------------------------------------------------

// x [..,k], then a matrix
struct Floats {
  static constexpr size_t INPUTS = 1;
  const float* x;
  int64_t rows, k;

  explicit Floats(const Tensor& t) : x(t.f32()), rows(0), k(t.dims.back()) {
    rows = k ? t.count() / k : 0;
  }
  static Packed pack(const Tensor& w) { return packed<float, float>(w); }

  struct Weights {
    const Packed& w;
    Weights(const Packed& held, ort::Context*, size_t) : w(held) {}
  };
  void columns(const Weights& m, float* y, int64_t from, int64_t to) const {
    row_loops().f32(x, static_cast<const float*>(m.w.memory.get()), y, rows, k, m.w.n, from, to);
  }
};

// x [..,k], rounded to 8 bits row by row; then a matrix of integers and its scales [n]
struct Int8s {
  static constexpr size_t INPUTS = 2;
  int64_t rows, k;
  int8_t* q;
  int32_t* sums;
  float* scale;

  explicit Int8s(const Tensor& t) : rows(0), k(t.dims.back()) {
    rows = k ? t.count() / k : 0;
    const int64_t length = quads(k) * QUAD;
    q = scratch<int8_t, 0>(rows * length);
    sums = scratch<int32_t, 0>(rows);
    scale = scratch<float, 0>(rows);
    for (int64_t r = 0; r < rows; ++r)
      scale[r] = row_loops().quantize(t.f32() + r * k, q + r * length, sums + r, k);
  }
  static Packed pack(const Tensor& w) { return packed<int8_t, uint8_t>(w); }

  struct Weights {
    const Packed& w;
    const float* scales;
    Weights(const Packed& held, ort::Context* c, size_t at) : w(held), scales(numbers(c, at + 1)) {}
  };
  void columns(const Weights& m, float* y, int64_t from, int64_t to) const {
    row_loops().int8(q, sums, scale, static_cast<const uint8_t*>(m.w.memory.get()), m.scales, y,
                     rows, k, m.w.n, from, to);
  }
};

std::vector<int64_t> product_shape(const Tensor& x, int64_t n) {
  std::vector<int64_t> shape = x.dims;
  shape.back() = n;
  return shape;
}

// Blocks [from,to) of a matrix, one by one: each core begins with its own stretch of memory, and who
// is done first helps the others.
template <class F>
void share(ort::Context* c, const Packed& w, F work) {
  const int64_t all = blocks(w.n);
  if (w.k * w.n < WORTH) return work(0, all);
  each(c, all, [&](int64_t i) { work(i, i + 1); });
}

const Packed& kept(void* kernel, size_t i) { return static_cast<Kept*>(kernel)->weights[i]; }

// x and weights -> their product
template <class P>
void product(void* kernel, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights m(kept(kernel, 0), c, 1);
  const Tensor y = output(c, product_shape(x, m.w.n));
  const P p(x);
  share(c, m.w, [&](int64_t from, int64_t to) { p.columns(m, y.f32(), from, to); });
}

// x, the gate's weights and weights -> silu(x @ gate) * (x @ weights)
template <class P>
void gated(void* kernel, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights gate(kept(kernel, 0), c, 1), m(kept(kernel, 1), c, 1 + P::INPUTS);
  const int64_t n = m.w.n;
  const Tensor y = output(c, product_shape(x, n));
  const P p(x);
  float* const gates = scratch<float, 1>(p.rows * n);
  share(c, m.w, [&](int64_t from, int64_t to) {
    p.columns(gate, gates, from, to);
    p.columns(m, y.f32(), from, to);
    const int64_t first = from * BLOCK, count = std::min(to * BLOCK, n) - first;
    for (int64_t at = first; at < p.rows * n; at += n)
      lanes().swiglu(gates + at, y.f32() + at, y.f32() + at, count);
  });
}

// x, weights, residual [..,n], norm's weight [n], eps [1] -> norm, sum [..,n] as ResidualNorm's of
// the residual and the product. Whoever finishes last does the norm.
template <class P>
void normed(void* kernel, ort::Context* c) {
  const Tensor x = input(c, 0);
  const typename P::Weights m(kept(kernel, 0), c, 1);
  const float *const residual = numbers(c, 1 + P::INPUTS), *const weight = numbers(c, 2 + P::INPUTS),
              *const eps = numbers(c, 3 + P::INPUTS);
  const int64_t n = m.w.n;
  const Tensor norm = output(c, product_shape(x, n)), sum = output(c, norm.dims, 1);
  const P p(x);
  std::atomic<int64_t> left{blocks(n)};
  share(c, m.w, [&](int64_t from, int64_t to) {
    p.columns(m, sum.f32(), from, to);
    if (left.fetch_sub(to - from, std::memory_order_acq_rel) != to - from) return;
    for (int64_t at = 0; at < p.rows * n; at += n)
      lanes().residual_norm(residual + at, sum.f32() + at, weight, norm.f32() + at, sum.f32() + at, n,
                            *eps);
  });
}

// An op with so many matrices among its inputs, packed when the kernel is made.
template <class P>
Declared packing(const char* title, size_t matrices, std::vector<int> in, std::vector<int> out,
                 void (*compute)(void*, ort::Context*)) {
  Declared op = declare(title, std::move(in), std::move(out), compute);
  op.matrices = matrices;
  op.create_v2 = create<P, P::INPUTS>;
  op.destroy = [](void* kernel) { delete static_cast<Kept*>(kernel); };
  return op;
}

constexpr int F = ort::FLOAT, Q = ort::INT8;
const std::array OPS = {
    packing<Floats>("Linear", 1, {F, F}, {F}, product<Floats>),
    packing<Floats>("GatedLinear", 2, {F, F, F}, {F}, gated<Floats>),
    packing<Floats>("LinearResidualNorm", 1, {F, F, F, F, F}, {F, F}, normed<Floats>),
    packing<Int8s>("Int8Linear", 1, {F, Q, F}, {F}, product<Int8s>),
    packing<Int8s>("GatedInt8Linear", 2, {F, Q, F, Q, F}, {F}, gated<Int8s>),
    packing<Int8s>("Int8LinearResidualNorm", 1, {F, Q, F, F, F, F}, {F, F}, normed<Int8s>),
};

}  // namespace

Ops few_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
