#include "large.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace arc {

#ifdef __linux__
namespace {

constexpr size_t PAGE = size_t{2} << 20, CHUNK = size_t{64} << 20, LINE = 64;

struct Chunk {
  char* mapped;
  char* start;  // the first whole page
  size_t size, used = 0;

  explicit Chunk(size_t bytes) : size(bytes) {
    void* p = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mapped = static_cast<char*>(p);
    start = mapped + (PAGE - reinterpret_cast<uintptr_t>(p) % PAGE) % PAGE;
    madvise(start, bytes, MADV_HUGEPAGE);  // advice: without it the memory is as good, and slower
  }
  ~Chunk() { munmap(mapped, size + PAGE); }
  Chunk(const Chunk&) = delete;
};

}  // namespace

std::shared_ptr<void> large(size_t bytes) {
  static std::mutex lock;
  static auto& open = *new std::weak_ptr<Chunk>;  // never destroyed: kernels may outlive statics
  const std::lock_guard<std::mutex> held(lock);
  const size_t need = (bytes + LINE - 1) / LINE * LINE;
  std::shared_ptr<Chunk> chunk = open.lock();
  if (!chunk || chunk->size - chunk->used < need) {
    chunk = std::make_shared<Chunk>(std::max(CHUNK, (need + PAGE - 1) / PAGE * PAGE));
    open = chunk;
  }
  char* const at = chunk->start + chunk->used;
  chunk->used += need;
  return {std::move(chunk), at};
}

void leave(const void* from, size_t bytes) {
  constexpr uintptr_t SMALL = 4096;
  const auto first = (reinterpret_cast<uintptr_t>(from) + SMALL - 1) / SMALL * SMALL;
  const auto last = (reinterpret_cast<uintptr_t>(from) + bytes) / SMALL * SMALL;
  std::FILE* const maps = first < last ? std::fopen("/proc/self/maps", "r") : nullptr;
  if (!maps) return;
  char line[512];
  unsigned long start, end, inode;
  while (std::fgets(line, sizeof line, maps)) {
    const int found = std::sscanf(line, "%lx-%lx %*s %*s %*s %lu", &start, &end, &inode);
    if (found != 3 || first < start || first >= end) continue;
    if (last <= end && inode) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
    break;
  }
  std::fclose(maps);
}

#else

std::shared_ptr<void> large(size_t bytes) {
  constexpr std::align_val_t line{64};
  return {::operator new(bytes, line), [](void* p) { ::operator delete(p, line); }};
}

void leave(const void*, size_t) {}

#endif

}  // namespace arc
