// Memory for what a run carries, in large pages: to fill caches in pages of 4 KiB costs more than
// all the rest of appending to them.
#pragma once

#include "tensor.hpp"

namespace arc {

// Zeroed memory straight from the system, and back to it; null where that is not known. The heap
// would learn from blocks of this size to keep what it is given back.
std::shared_ptr<char> mapped(std::size_t bytes);

// Zeroed tensors carved from blocks, each of which goes back to the system when the last of its
// tensors is let go of.
class Pages {
 public:
  Ref zeros(DType dtype, Shape shape);

 private:
  std::shared_ptr<char> block_;
  std::size_t size_ = 0, used_ = 0;
};

}  // namespace arc
