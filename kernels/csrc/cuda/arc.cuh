// What our CUDA kernels share. Without nvcc the same source is C++: emulate.h runs its threads as
// fibers on the CPU, so that every index is executed and checked without a GPU.
#pragma once
#include <cstdint>

using u32 = uint32_t;
using u64 = unsigned long long;  // what atomicAdd takes
struct alignas(16) Line {  // eight numbers of 16 bits
  u32 x[4];
};

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define ARC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define ARC_EXPORT extern "C" __attribute__((visibility("default")))
template <class... P, class... A>
int arc_launch(void (*kernel)(P...), dim3 grid, int threads, int shared, void* stream, A... args) {
  if (shared > 48 * 1024) {
    cudaError_t e =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e != cudaSuccess) return e;
  }
  kernel<<<grid, threads, shared, static_cast<cudaStream_t>(stream)>>>(args...);
  return cudaGetLastError();
}

// The same, and on sm_90 the kernel may begin while the one before it in the stream still runs: it calls
// arc_wait() before it touches what that one makes or reads ("programmatic dependent launch").
template <class... P, class... A>
int arc_launch_early(void (*kernel)(P...), dim3 grid, int threads, int shared, void* stream, A... args) {
  int device = 0, major = 0;
  cudaError_t e = cudaGetDevice(&device);
  if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (e == cudaSuccess && shared > 48 * 1024)
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (e != cudaSuccess) return e;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = grid;
  how.blockDim = dim3(threads);
  how.dynamicSmemBytes = shared;
  how.stream = static_cast<cudaStream_t>(stream);
  how.attrs = &early;
  how.numAttrs = major >= 9;
  return cudaLaunchKernelEx(&how, kernel, args...);
}

// All that the kernels before have written can be read now.
__device__ inline void arc_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel after may begin, and read what nobody writes.
__device__ inline void arc_let_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// 16 bytes that are read once, and that nobody writes.
__device__ inline Line arc_stream(const Line* p) {
  Line v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x[0]), "=r"(v.x[1]), "=r"(v.x[2]), "=r"(v.x[3])
               : "l"(p));
  return v;
}

// It will be read soon. A hint: what others still write is read anew.
__device__ inline void arc_prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// What a kernel that ended a moment ago wrote: from L2, past what this multiprocessor holds of it.
__device__ inline Line arc_line(const Line* p) {
  const uint4 v = __ldcg(reinterpret_cast<const uint4*>(p));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline int arc_fresh(const int* p) { return __ldcg(p); }
__device__ inline float arc_fresh(const __half* p) { return __half2float(__ldcg(p)); }
__device__ inline float arc_fresh(const __nv_bfloat16* p) { return __bfloat162float(__ldcg(p)); }
#else
#include "emulate.h"
#endif

__device__ inline float arc_float(float x) { return x; }
__device__ inline float arc_float(__half x) { return __half2float(x); }
__device__ inline float arc_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float arc_float(int8_t x) { return x; }

// The two numbers of 16 bits in a word, the lower first.
template <class T>
__device__ inline void arc_two(u32 word, float& low, float& high);
template <>
__device__ inline void arc_two<__nv_bfloat16>(u32 word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xFFFF0000u);
}
template <>
__device__ inline void arc_two<__half>(u32 word, float& low, float& high) {
  const u32 other = word >> 16;
  __half a, b;
  memcpy(&a, &word, 2);
  memcpy(&b, &other, 2);
  low = __half2float(a);
  high = __half2float(b);
}

__device__ inline void arc_store(float* p, float x) { *p = x; }
__device__ inline void arc_store(__half* p, float x) { *p = __float2half(x); }
__device__ inline void arc_store(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

// Two numbers of 16 bits as a word, the lower first.
template <class T>
__device__ inline u32 arc_both(float low, float high) {
  T a, b;
  arc_store(&a, low);
  arc_store(&b, high);
  unsigned short x, y;
  memcpy(&x, &a, 2);
  memcpy(&y, &b, 2);
  return x | static_cast<u32>(y) << 16;
}

// The sum of x over a block of whole warps; `room` holds a number a warp. Every thread gets it.
__device__ inline float arc_block_sum(float x, float* room) {
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  int warps = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < warps; ++i) total += room[i];
  return total;
}

// Call body(type*) for the dtype numbered 0 (f32), 1 (f16) or 2 (bf16).
#define ARC_DTYPES(dtype, CALL)                  \
  switch (dtype) {                               \
    case 0: return CALL(float);                  \
    case 1: return CALL(__half);                 \
    case 2: return CALL(__nv_bfloat16);          \
    default: return -1;                          \
  }
