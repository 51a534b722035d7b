// Dense tensors in memory, shared by reference; what graphs read and write.
#pragma once

#include <arcompile/arcompile.hpp>
#include <memory>
#include <vector>

#include "dims.hpp"
#include "ort_value.hpp"

namespace arc {

struct Constant;
struct Tensor;
using Ref = std::shared_ptr<Tensor>;

struct Tensor {
  DType dtype = DType::f32;
  Shape shape;
  std::shared_ptr<void> memory;  // owns what `data` points into
  void* data = nullptr;
  bool device = false;  // `data` is an address on the accelerator, and no host's to read
  bool lent = false;   // the loop's or the caller's: a graph may read it, and may not write to it
  ort::Value value{};  // ONNX Runtime's handle on it, made when first bound

  template <class T>
  T* as() const { return static_cast<T*>(data); }
  std::size_t size() const { return count(shape); }
  std::size_t bytes() const { return size() * size_of(dtype); }

  static Ref zeros(DType dtype, Shape shape);
  static Ref blank(DType dtype, Shape shape);  // for what is written before it is read
  static Ref of(const View& view);  // no copy; lent
  static Ref of(const Constant& constant);
  // Rows [from, from + n) of the first axis, in the same memory.
  Ref rows(std::int64_t from, std::int64_t n) const;
  // Another shape, of the same dtype and no more bytes, in the same memory.
  Ref reshaped(Shape to) const;
  Ref copy() const;
  Ref cast(DType to) const;
  Array array() const { return Array(dtype, shape, memory_at()); }
  std::shared_ptr<const void> memory_at() const { return {memory, data}; }
};

Ref reals(const std::vector<float>& values);
Ref integers(const std::vector<std::int64_t>& values);

}  // namespace arc
