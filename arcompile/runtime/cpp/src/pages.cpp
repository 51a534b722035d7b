#include "pages.hpp"

#include <algorithm>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace arc {

#ifdef __linux__
namespace {

constexpr std::size_t kSmall = std::size_t{1} << 18;  // bytes below which the heap will do
constexpr std::size_t kBlock = std::size_t{64} << 20;
constexpr std::size_t kLine = 64;

}  // namespace

std::shared_ptr<char> mapped(std::size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error("no memory for a tensor of " + std::to_string(bytes) + " bytes", "", Code::machine);
  }
  return {static_cast<char*>(p), [bytes](char* at) { ::munmap(at, bytes); }};
}

Ref Pages::zeros(DType dtype, Shape shape) {
  auto out = std::make_shared<Tensor>();
  out->dtype = dtype;
  out->shape = std::move(shape);
  const std::size_t need = (out->bytes() + kLine - 1) / kLine * kLine;
  if (need < kSmall) return Tensor::zeros(dtype, std::move(out->shape));
  if (!block_ || size_ - used_ < need) {
    size_ = std::max(need, kBlock), used_ = 0;
    block_ = mapped(size_);
    ::madvise(block_.get(), size_, MADV_HUGEPAGE);  // advice: without it as good, and slower
  }
  out->memory = block_;
  out->data = block_.get() + used_;
  used_ += need;
  return out;
}
#else
std::shared_ptr<char> mapped(std::size_t) { return nullptr; }
Ref Pages::zeros(DType dtype, Shape shape) { return Tensor::zeros(dtype, std::move(shape)); }
#endif

}  // namespace arc
