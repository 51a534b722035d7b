// The few functions of ONNX Runtime's C API that custom ops need, by their place in its table.
// The table only ever grows at its end (API 17, ONNX Runtime >= 1.17), so no headers are needed to
// build. https://onnxruntime.ai/docs/reference/operators/add-custom-op.html
#pragma once
#include <cstddef>
#include <cstdint>

namespace arc::ort {

struct Status;
struct Context;
struct Value;
struct Shape;
struct Options;
struct Domain;
struct Info;

constexpr uint32_t API = 17;
enum Type : int { FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7, BFLOAT16 = 16 };

struct Base {
  const void* const* (*api)(uint32_t version);
  const char* (*version)();
};

struct Api {
  const void* const* slots = nullptr;

  template <class F>
  F* at(int slot) const {
    return reinterpret_cast<F*>(const_cast<void*>(slots[slot]));
  }
  void* data(Value* v) const {
    void* p = nullptr;
    at<Status*(Value*, void**)>(51)(v, &p);
    return p;
  }
  const Value* input(const Context* c, size_t i) const {
    const Value* v = nullptr;
    at<Status*(const Context*, size_t, const Value**)>(90)(c, i, &v);
    return v;
  }
  Value* output(Context* c, size_t i, const int64_t* dims, size_t rank) const {
    Value* v = nullptr;
    at<Status*(Context*, size_t, const int64_t*, size_t, Value**)>(91)(c, i, dims, rank, &v);
    return v;
  }
  void parallel(const Context* c, void (*work)(void*, size_t), size_t total, void* data) const {
    at<Status*(const Context*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
        c, work, total, 0, data);
  }
};

// OrtCustomOp, as of its version 18 (later fields are optional and absent). What is null is unused.
struct Op {
  uint32_t version;
  void* (*create)(const Op*, const void*, const Info*);
  const char* (*name)(const Op*);
  const char* (*provider)(const Op*);
  int (*input_type)(const Op*, size_t);
  size_t (*inputs)(const Op*);
  int (*output_type)(const Op*, size_t);
  size_t (*outputs)(const Op*);
  void (*compute)(void*, Context*);
  void (*destroy)(void*);
  int (*input_kind)(const Op*, size_t);
  int (*output_kind)(const Op*, size_t);
  int (*input_memory)(const Op*, size_t);
  int (*variadic_inputs)(const Op*);
  int (*variadic_inputs_alike)(const Op*);
  int (*variadic_outputs)(const Op*);
  int (*variadic_outputs_alike)(const Op*);
  Status* (*create_v2)(const Op*, const void*, const Info*, void**);
  Status* (*compute_v2)(void*, Context*);
  Status* (*infer_shapes)(const Op*, void*);
  int (*first_version)(const Op*);
  int (*last_version)(const Op*);
  size_t (*may_write_over)(int** inputs, int** outputs);  // which output may reuse which input
  void (*release_may_write_over)(int* inputs, int* outputs);
  size_t (*aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};

}  // namespace arc::ort
