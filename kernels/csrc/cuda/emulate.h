// CUDA's threads as fibers on one CPU thread: blocks one after the other, and in a block every
// thread up to the next barrier, in turn. Warps are 32 threads; a shuffle is a barrier of its warp.
// A barrier that not all of its threads reach is an error, as it would hang a GPU.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __restrict__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define ARC_SHARED(name) unsigned char* name = emulate::shared.data()
#define ARC_EXPORT extern "C" __attribute__((visibility("default")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using __half = _Float16;
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return static_cast<__half>(x); }
inline float __bfloat162float(__nv_bfloat16 x) {
  uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  return {static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16)};
}

namespace emulate {
enum State { READY, BLOCK, WARP, DONE };
constexpr size_t STACK = 64 << 10;

struct Fiber {
  ucontext_t here;
  State state = READY;
  std::vector<char> stack;
};

inline dim3 grid, block, thread;
inline unsigned threads;
inline std::vector<Fiber> fibers;
inline ucontext_t home;
inline unsigned now;
inline std::vector<unsigned char> shared;
inline std::function<void()> body;
inline uint64_t lanes[32 * 32];  // what each thread of each warp offers to the others

inline void wait(State s) {
  fibers[now].state = s;
  swapcontext(&fibers[now].here, &home);
}

inline void start() {
  body();
  fibers[now].state = DONE;
}

// Let those go whose whole warp, or whole block, waits. False when nobody can.
inline bool release() {
  bool any = false;
  for (unsigned w = 0; w < threads / 32; ++w) {
    unsigned waiting = 0;
    for (unsigned i = 32 * w; i < 32 * w + 32; ++i) waiting += fibers[i].state == WARP;
    if (waiting == 32) {
      for (unsigned i = 32 * w; i < 32 * w + 32; ++i) fibers[i].state = READY;
      any = true;
    }
  }
  if (any) return true;
  for (auto& f : fibers)
    if (f.state != BLOCK) return false;
  for (auto& f : fibers) f.state = READY;
  return true;
}

inline int run_block() {
  for (auto& f : fibers) {
    getcontext(&f.here);
    f.stack.resize(STACK);
    f.here.uc_stack.ss_sp = f.stack.data();
    f.here.uc_stack.ss_size = STACK;
    f.here.uc_link = &home;
    f.state = READY;
    makecontext(&f.here, start, 0);
  }
  for (;;) {
    bool ran = false, all = true;
    for (now = 0; now < threads; ++now) {
      if (fibers[now].state != READY) continue;
      thread = dim3(now);
      ran = true;
      swapcontext(&home, &fibers[now].here);
    }
    for (auto& f : fibers) all = all && f.state == DONE;
    if (all) return 0;
    if (!ran && !release()) return 719;  // a barrier that some threads never reach
  }
}
}  // namespace emulate

#define threadIdx (emulate::thread)
#define blockIdx (emulate::block)
#define gridDim (emulate::grid)
#define blockDim (dim3(emulate::threads))

inline void __syncthreads() { emulate::wait(emulate::BLOCK); }
inline void __syncwarp() { emulate::wait(emulate::WARP); }

// What `lane` of this thread's warp offers, once every lane has.
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  const unsigned me = emulate::now, warp = me / 32 * 32;
  std::memcpy(&emulate::lanes[me], &x, sizeof x);
  emulate::wait(emulate::WARP);
  T out;
  std::memcpy(&out, &emulate::lanes[warp + lane], sizeof out);
  emulate::wait(emulate::WARP);
  return out;
}
template <class T>
T __shfl_xor_sync(unsigned all, T x, int step) {
  return __shfl_sync(all, x, (emulate::now % 32) ^ step);
}
template <class T>
T __shfl_up_sync(unsigned all, T x, int step) {
  const int lane = emulate::now % 32;
  return __shfl_sync(all, x, lane < step ? lane : lane - step);
}

namespace emulate {
template <class F>
uint32_t reduce(uint32_t x, F f) {
  lanes[now] = x;
  wait(WARP);
  uint32_t out = static_cast<uint32_t>(lanes[now / 32 * 32]);
  for (unsigned i = 1; i < 32; ++i) out = f(out, static_cast<uint32_t>(lanes[now / 32 * 32 + i]));
  wait(WARP);
  return out;
}
}  // namespace emulate
inline uint32_t __reduce_add_sync(unsigned, uint32_t x) {
  return emulate::reduce(x, [](uint32_t a, uint32_t b) { return a + b; });
}
inline uint32_t __reduce_min_sync(unsigned, uint32_t x) {
  return emulate::reduce(x, [](uint32_t a, uint32_t b) { return std::min(a, b); });
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t x) {
  return emulate::reduce(x, [](uint32_t a, uint32_t b) { return std::max(a, b); });
}

template <class T, class V>
T atomicAdd(T* p, V x) {
  T was = *p;
  *p += x;
  return was;
}

template <class T>
T atomicMin(T* p, T x) {
  T was = *p;
  *p = std::min(was, x);
  return was;
}

template <class T>
T atomicMax(T* p, T x) {
  T was = *p;
  *p = std::max(was, x);
  return was;
}

inline uint32_t __float_as_uint(float x) {
  uint32_t out;
  std::memcpy(&out, &x, 4);
  return out;
}
inline float __uint_as_float(uint32_t x) {
  float out;
  std::memcpy(&out, &x, 4);
  return out;
}
using std::max;
using std::min;

template <class... P, class... A>
int arc_launch(void (*kernel)(P...), dim3 grid, int threads, int shared, void*, A... args) {
  emulate::grid = grid;
  emulate::threads = threads;
  emulate::fibers = std::vector<emulate::Fiber>(threads);
  emulate::body = [=] { kernel(args...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        emulate::block = dim3(x, y, z);
        emulate::shared.assign(shared + 16, 0xA5);  // what is read before it is written shows
        if (int wrong = emulate::run_block()) return wrong;
      }
  return 0;
}

// Kernels run one after the other here.
template <class... P, class... A>
int arc_launch_early(void (*kernel)(P...), dim3 grid, int threads, int shared, void* stream, A... args) {
  return arc_launch(kernel, grid, threads, shared, stream, args...);
}
inline void arc_wait() {}
inline void arc_let_next() {}
inline void arc_prefetch(const void*) {}
inline Line arc_stream(const Line* p) { return *p; }
inline Line arc_line(const Line* p) { return *p; }
inline int arc_fresh(const int* p) { return *p; }
inline float arc_fresh(const __half* p) { return __half2float(*p); }
inline float arc_fresh(const __nv_bfloat16* p) { return __bfloat162float(*p); }
