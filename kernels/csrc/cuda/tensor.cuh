// What a warp does together on tensor cores (sm_80 and later), and the same on emulated lanes. Shapes and
// who holds what: https://docs.nvidia.com/cuda/parallel-thread-execution, "mma.m16n8k16" and "ldmatrix".
// Lane l is of row l/4 and column l%4 of a fragment; a register holds two neighbours of 16 bits.
#pragma once
#include "arc.cuh"

#ifdef __CUDACC__
// c [16,8] += a [16,16] b [16,8], summed in f32.
__device__ inline void arc_mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void arc_mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, __nv_bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16 bits from shared memory, each turned over: lane l names row l%8 of matrix l/8
// and gets of each matrix two numbers of column l/4.
__device__ inline void arc_load_turned(u32 (&b)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(static_cast<u32>(__cvta_generic_to_shared(row))));
}

// 16 bytes to shared memory, or zeros; they are there after arc_arrived<n>, which leaves the last n
// groups (what came before an arc_sent) under way.
__device__ inline void arc_send(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<u32>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
__device__ inline void arc_sent() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ inline void arc_arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#else
namespace emulate {
inline uint32_t given[1024][6];        // registers of every thread
inline const void* named[1024];        // rows that it named
inline void offer(const void* x, size_t bytes) {
  std::memcpy(given[now], x, bytes);
  wait(WARP);
}
template <class T>
float number(unsigned lane, int held, int which) {
  T x;
  std::memcpy(&x, reinterpret_cast<const char*>(&given[now / 32 * 32 + lane][held]) + 2 * which, 2);
  return arc_float(x);
}
}  // namespace emulate

template <class T>
void arc_mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, T) {
  const u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  emulate::offer(mine, sizeof mine);
  const int lane = emulate::now % 32;
  for (int i = 0; i < 4; ++i)
    for (int k = 0, row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2; k < 16; ++k)
      c[i] += emulate::number<T>(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2) *
              emulate::number<T>(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
  emulate::wait(emulate::WARP);
}

inline void arc_load_turned(u32 (&b)[4], const void* row) {
  emulate::named[emulate::now] = row;
  emulate::wait(emulate::WARP);
  const unsigned lane = emulate::now % 32, warp = emulate::now - lane;
  for (unsigned matrix = 0; matrix < 4; ++matrix)
    for (unsigned i = 0; i < 2; ++i)
      std::memcpy(reinterpret_cast<char*>(&b[matrix]) + 2 * i,
                  static_cast<const char*>(emulate::named[warp + 8 * matrix + lane % 4 * 2 + i]) +
                      lane / 4 * 2, 2);
  emulate::wait(emulate::WARP);
}

inline void arc_send(void* to, const void* from, bool real) {
  if (real) std::memcpy(to, from, 16);
  else std::memset(to, 0, 16);
}
inline void arc_sent() {}
template <int N>
void arc_arrived() {}
#endif
