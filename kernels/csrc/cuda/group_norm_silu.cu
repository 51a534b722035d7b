// GroupNorm, and SiLU behind it: see kernels/group_norm_silu.py. Many blocks a group: one launch takes the
// moments of chunks, each about its own mean, and one joins them (Chan, Golub and LeVeque 1983) and
// applies them. A group is `per` channels of `hw` numbers, which lie side by side.
#include "arc.cuh"

// part [n*groups,chunks,2]: a chunk's mean, and the sum of squared distances from it.
template <class T>
__global__ void moments(const T* x, float* part, long size, long chunk) {
  ARC_SHARED(memory);
  float* room = reinterpret_cast<float*>(memory);
  x += blockIdx.x * size;
  const long first = blockIdx.y * chunk, last = min(first + chunk, size);
  float sum = 0, squares = 0;
  for (long i = first + threadIdx.x; i < last; i += blockDim.x) sum += arc_float(x[i]);
  const float mean = arc_block_sum(sum, room) / static_cast<float>(last - first);
  for (long i = first + threadIdx.x; i < last; i += blockDim.x) {
    const float off = arc_float(x[i]) - mean;
    squares += off * off;
  }
  squares = arc_block_sum(squares, room);
  if (threadIdx.x) return;
  float* mine = part + 2 * (static_cast<long>(blockIdx.x) * gridDim.y + blockIdx.y);
  mine[0] = mean;
  mine[1] = squares;
}

template <class T>
__global__ void normalise(const T* x, const T* w, const T* b, T* out, const float* part, int groups,
                          int per, long hw, long chunk, float eps, int silu) {
  const long size = per * hw, here = blockIdx.x * size, first = blockIdx.y * chunk;
  const long last = min(first + chunk, size);
  const int chunks = gridDim.y;
  part += 2 * static_cast<long>(blockIdx.x) * chunks;
  const auto count = [&](int i) { return static_cast<float>(min(chunk, size - i * chunk)); };
  float mean = 0, squares = 0;
  for (int i = 0; i < chunks; ++i) mean += part[2 * i] * count(i);
  mean /= static_cast<float>(size);
  for (int i = 0; i < chunks; ++i) {
    const float off = part[2 * i] - mean;
    squares += part[2 * i + 1] + off * off * count(i);
  }
  const float unit = 1 / sqrtf(squares / static_cast<float>(size) + eps);
  const int channel = blockIdx.x % groups * per;
  for (long i = first + threadIdx.x; i < last; i += blockDim.x) {
    const int c = channel + static_cast<int>(i / hw);
    float v = (arc_float(x[here + i]) - mean) * unit * arc_float(w[c]) + arc_float(b[c]);
    if (silu) v /= 1 + expf(-v);
    arc_store(out + here + i, v);
  }
}

// x [n,groups*per,hw]; part f32[n*groups,ceil(per*hw/chunk),2]. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_group_norm_silu(int dtype, const void* x, const void* w, const void* b, void* out,
                                   void* part, int n, int groups, int per, int hw, int chunk, float eps,
                                   int silu, int threads, void* stream) {
  const long size = static_cast<long>(per) * hw, each = chunk;
  const dim3 grid(n * groups, static_cast<unsigned>((size + each - 1) / each));
  int code;
#define CALL(T)                                                                                         \
  (code = arc_launch(moments<T>, grid, threads, 32 * static_cast<int>(sizeof(float)), stream,           \
                     (const T*)x, (float*)part, size, each))                                            \
      ? code                                                                                            \
      : arc_launch(normalise<T>, grid, threads, 0, stream, (const T*)x, (const T*)w, (const T*)b,       \
                   (T*)out, (const float*)part, groups, per, static_cast<long>(hw), each, eps, silu)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
