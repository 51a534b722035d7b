#include "tensor.hpp"

#include <cstdlib>
#include <cstring>

#include "pages.hpp"
#include "program.hpp"

namespace arc {

namespace {

constexpr std::size_t kAlign = 64;  // bytes: a cache line, and the widest vector
constexpr std::size_t kLarge = std::size_t{128} << 10;  // bytes that do not come from the heap

float from_half(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, low = h & 1023u;
  std::uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | low << 13;
  } else if (exponent) {
    bits = sign | (exponent + 112) << 23 | low << 13;
  } else {
    const float tiny = static_cast<float>(low) * 0x1p-24f;
    return sign ? -tiny : tiny;
  }
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <class From, class To>
void convert(const void* from, void* to, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    static_cast<To*>(to)[i] = static_cast<To>(static_cast<const From*>(from)[i]);
  }
}

template <class To>
void convert(DType dtype, const void* from, void* to, std::size_t n) {
  switch (dtype) {
    case DType::f32: return convert<float, To>(from, to, n);
    case DType::f64: return convert<double, To>(from, to, n);
    case DType::i64: return convert<std::int64_t, To>(from, to, n);
    case DType::i32: return convert<std::int32_t, To>(from, to, n);
    case DType::i8: return convert<std::int8_t, To>(from, to, n);
    case DType::u8: case DType::boolean: return convert<std::uint8_t, To>(from, to, n);
    case DType::f16:
      for (std::size_t i = 0; i < n; ++i) {
        static_cast<To*>(to)[i] =
            static_cast<To>(from_half(static_cast<const std::uint16_t*>(from)[i]));
      }
      return;
    default: throw Error(std::string("cannot convert ") + name_of(dtype));
  }
}

}  // namespace

namespace {

// In pages of its own, or a block from malloc or calloc, which is larger by kAlign.
Ref in_block(DType dtype, Shape shape, void* (*take)(std::size_t)) {
  auto out = std::make_shared<Tensor>();
  out->dtype = dtype;
  out->shape = std::move(shape);
  if (out->bytes() >= kLarge && (out->memory = mapped(out->bytes()))) {
    out->data = out->memory.get();
    return out;
  }
  void* block = take(out->bytes() + kAlign);
  if (!block) {
    throw Error("no memory for a tensor of " + std::to_string(out->bytes()) + " bytes", "",
                Code::machine);
  }
  out->memory = std::shared_ptr<void>(block, std::free);
  const auto at = reinterpret_cast<std::uintptr_t>(block);
  out->data = reinterpret_cast<void*>((at + kAlign - 1) & ~(kAlign - 1));
  return out;
}

}  // namespace

Ref Tensor::zeros(DType dtype, Shape shape) {
  return in_block(dtype, std::move(shape), [](std::size_t n) { return std::calloc(n, 1); });
}

Ref Tensor::blank(DType dtype, Shape shape) {
  return in_block(dtype, std::move(shape), [](std::size_t n) { return std::malloc(n); });
}

Ref Tensor::of(const View& view) {
  auto out = std::make_shared<Tensor>();
  out->dtype = view.dtype;
  out->shape = view.shape;
  out->data = const_cast<void*>(view.data);  // `lent`: nothing writes to it
  out->lent = true;
  return out;
}

Ref Tensor::of(const Constant& constant) {
  Ref out = zeros(constant.dtype, constant.shape);
  for (std::size_t i = 0; i < out->size(); ++i) {
    if (constant.dtype == DType::i64) {
      out->as<std::int64_t>()[i] = constant.integers[i];
    } else {
      out->as<float>()[i] = static_cast<float>(constant.reals[i]);
    }
  }
  out->lent = true;
  return out;
}

Ref Tensor::rows(std::int64_t from, std::int64_t n) const {
  auto out = std::make_shared<Tensor>();
  out->dtype = dtype;
  out->shape = shape;
  out->memory = memory;
  out->lent = lent;
  out->device = device;
  const std::size_t row = shape[0] ? bytes() / static_cast<std::size_t>(shape[0]) : 0;
  out->data = as<char>() + static_cast<std::size_t>(from) * row;
  out->shape[0] = n;
  return out;
}

Ref Tensor::reshaped(Shape to) const {
  auto out = std::make_shared<Tensor>();
  out->dtype = dtype;
  out->shape = std::move(to);
  out->memory = memory;
  out->data = data;
  out->device = device;
  return out;
}

Ref Tensor::copy() const {
  Ref out = blank(dtype, shape);
  if (bytes()) std::memcpy(out->data, data, bytes());
  return out;
}

Ref Tensor::cast(DType to) const {
  Ref out = zeros(to, shape);
  switch (to) {
    case DType::f32: convert<float>(dtype, data, out->data, size()); break;
    case DType::f64: convert<double>(dtype, data, out->data, size()); break;
    case DType::i64: convert<std::int64_t>(dtype, data, out->data, size()); break;
    case DType::i32: convert<std::int32_t>(dtype, data, out->data, size()); break;
    case DType::boolean: convert<bool>(dtype, data, out->data, size()); break;
    default:
      throw Error(std::string("cannot convert ") + name_of(dtype) + " to " + name_of(to));
  }
  return out;
}

Ref reals(const std::vector<float>& values) {
  Ref out = Tensor::zeros(DType::f32, {static_cast<std::int64_t>(values.size())});
  if (!values.empty()) std::memcpy(out->data, values.data(), out->bytes());
  out->lent = true;
  return out;
}

Ref integers(const std::vector<std::int64_t>& values) {
  Ref out = Tensor::zeros(DType::i64, {static_cast<std::int64_t>(values.size())});
  if (!values.empty()) std::memcpy(out->data, values.data(), out->bytes());
  out->lent = true;
  return out;
}

}  // namespace arc
