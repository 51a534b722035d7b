// Memory for what is read from end to end at every step. In pages of 2 MiB one thread reads it 1.3 to
// 1.5 times as fast as in the 4 KiB pages of a mapped file, where prefetchers stop at every page.
#pragma once
#include <cstddef>
#include <memory>

namespace arc {

// `bytes` of memory, aligned to a cache line, in large pages where the system has them: on Linux in
// chunks that allocations share, which go when the last of them does. Throws std::bad_alloc.
std::shared_ptr<void> large(size_t bytes);

// The pages of a mapped file that lie wholly in this memory leave this process, and come back from the
// file when touched; so nobody may have written to them. Memory that is not a file's is left alone.
void leave(const void* from, size_t bytes);

}  // namespace arc
