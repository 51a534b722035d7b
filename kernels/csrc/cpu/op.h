// What every custom op needs: its tensors, the session's threads, and how it is declared.
#pragma once
#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "ort.h"

namespace arc {

inline ort::Api api;

struct Tensor {
  std::vector<int64_t> dims;
  void* data;

  float* f32() const { return static_cast<float*>(data); }
  int64_t* i64() const { return static_cast<int64_t*>(data); }
  int32_t* i32() const { return static_cast<int32_t*>(data); }
  int8_t* i8() const { return static_cast<int8_t*>(data); }
  int64_t count() const {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    return n;
  }
};

inline Tensor tensor(const ort::Value* constant) {
  auto* v = const_cast<ort::Value*>(constant);
  ort::Shape* shape = nullptr;
  size_t rank = 0;
  api.at<ort::Status*(const ort::Value*, ort::Shape**)>(65)(v, &shape);
  api.at<ort::Status*(const ort::Shape*, size_t*)>(61)(shape, &rank);
  Tensor t{std::vector<int64_t>(rank), api.data(v)};
  api.at<ort::Status*(const ort::Shape*, int64_t*, size_t)>(62)(shape, t.dims.data(), rank);
  api.at<void(ort::Shape*)>(99)(shape);
  return t;
}

inline Tensor input(ort::Context* c, size_t i) { return tensor(api.input(c, i)); }

// The numbers of an input whose shape others tell: to ask for shapes costs most of a small op.
template <class T = float>
const T* numbers(ort::Context* c, size_t i) {
  return static_cast<const T*>(api.data(const_cast<ort::Value*>(api.input(c, i))));
}

inline Tensor output(ort::Context* c, std::vector<int64_t> dims, size_t i = 0) {
  void* data = api.data(api.output(c, i, dims.data(), dims.size()));
  return {std::move(dims), data};
}

// Run `work(i)` for each part on the session's threads, or here when there is one part.
template <class F>
void each(ort::Context* c, int64_t parts, F work) {
  if (parts <= 1) return work(0);
  api.parallel(c, [](void* f, size_t i) { (*static_cast<F*>(f))(static_cast<int64_t>(i)); },
               static_cast<size_t>(parts), &work);
}

constexpr int64_t WORTH = 1 << 16;  // floats below which threads cost more than they give

inline int64_t cores() {
  static const int64_t n = std::max(1u, std::thread::hardware_concurrency());
  return n;
}

// --- declarations ---------------------------------------------------------------------------------

inline size_t nothing(int**, int**) { return 0; }

inline size_t first_over_first(int** inputs, int** outputs) {
  static int first = 0;
  *inputs = *outputs = &first;
  return 1;
}

struct Declared : ort::Op {
  const char* title;
  std::vector<int> in;
  std::vector<int> out;
  size_t matrices = 0;  // inputs that the kernel packs when it is made: see few.cpp
};

inline Declared declare(const char* title, std::vector<int> in, std::vector<int> out,
                 void (*compute)(void*, ort::Context*), bool in_place = false) {
  ort::Op op{};
  op.version = 18;
  op.create = [](const ort::Op* o, const void*, const ort::Info*) {
    return const_cast<void*>(static_cast<const void*>(o));  // nothing is kept between runs
  };
  op.destroy = [](void*) {};
  op.name = [](const ort::Op* o) { return static_cast<const Declared*>(o)->title; };
  op.provider = [](const ort::Op*) -> const char* { return nullptr; };
  op.inputs = [](const ort::Op* o) { return static_cast<const Declared*>(o)->in.size(); };
  op.input_type = [](const ort::Op* o, size_t i) { return static_cast<const Declared*>(o)->in[i]; };
  op.outputs = [](const ort::Op* o) { return static_cast<const Declared*>(o)->out.size(); };
  op.output_type = [](const ort::Op* o, size_t i) { return static_cast<const Declared*>(o)->out[i]; };
  op.input_kind = op.output_kind = [](const ort::Op*, size_t) { return 0; };  // required
  op.input_memory = [](const ort::Op*, size_t) { return 0; };                  // where the op runs
  op.first_version = [](const ort::Op*) { return 1; };
  op.last_version = [](const ort::Op*) { return INT32_MAX; };
  op.aliases = nothing;
  op.release_may_write_over = op.release_aliases = [](int*, int*) {};
  op.may_write_over = in_place ? first_over_first : nothing;
  op.compute = compute;
  return {op, title, std::move(in), std::move(out)};
}

// The ops of one file.
struct Ops {
  const Declared* first;
  size_t count;
  const Declared* begin() const { return first; }
  const Declared* end() const { return first + count; }
};

Ops conv_ops();    // conv.cpp
Ops decode_ops();  // decode.cpp
Ops linear_ops();  // linear.cpp
Ops few_ops();     // few.cpp
Ops token_ops();   // tokens.cpp

}  // namespace arc
