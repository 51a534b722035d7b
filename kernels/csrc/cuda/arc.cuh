// What our CUDA kernels share. Without nvcc the same source is C++: emulate.h runs its threads as
// fibers on the CPU, so that every index is executed and checked without a GPU.
#pragma once
#include <cstdint>

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
#else
#include "emulate.h"
#endif

using u32 = uint32_t;
using u64 = unsigned long long;  // what atomicAdd takes

__device__ inline float arc_float(float x) { return x; }
__device__ inline float arc_float(__half x) { return __half2float(x); }
__device__ inline float arc_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float arc_float(int8_t x) { return x; }
__device__ inline void arc_store(float* p, float x) { *p = x; }
__device__ inline void arc_store(__half* p, float x) { *p = __float2half(x); }
__device__ inline void arc_store(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

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
