// Residual sum, RMSNorm or LayerNorm, weight and bias, AdaLN: see kernels/add_norm.py. A block a
// row; the row stays in shared memory as f32, so that it is read once.
#include "arc.cuh"

template <class T>
__global__ void add_norm(const T* x, const T* y, const T* gate, const T* weight, const T* bias,
                         const T* scale, const T* shift, T* out, T* total, int d, int rows,
                         float eps, float one, int layer) {
  ARC_SHARED(memory);
  float* row = reinterpret_cast<float*>(memory);
  float* room = row + d;
  long here = static_cast<long>(blockIdx.x) * d, there = static_cast<long>(blockIdx.x / rows) * d;
  float sum = 0;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float v = arc_float(x[here + i]);
    if (y) {
      float more = arc_float(y[here + i]);
      v += gate ? more * arc_float(gate[there + i]) : more;
      arc_store(total + here + i, v);
      v = arc_float(total[here + i]);
    }
    row[i] = v;
    sum += v;
  }
  float mean = layer ? arc_block_sum(sum, room) / d : 0;
  float squares = 0;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float off = row[i] - mean;
    squares += off * off;
  }
  float unit = 1 / sqrtf(arc_block_sum(squares, room) / d + eps);
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    float v = (row[i] - mean) * unit;
    if (weight) v *= arc_float(weight[i]);
    if (bias) v += arc_float(bias[i]);
    if (scale) v *= arc_float(scale[there + i]) + one;
    if (shift) v += arc_float(shift[there + i]);
    arc_store(out + here + i, v);
  }
}

// Absent operands are null. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_add_norm(int dtype, const void* x, const void* y, const void* gate,
                            const void* weight, const void* bias, const void* scale,
                            const void* shift, void* out, void* total, int n, int d, int rows,
                            float eps, float one, int layer, int threads, void* stream) {
#define CALL(T)                                                                                  \
  arc_launch(add_norm<T>, dim3(n), threads, (d + 32) * static_cast<int>(sizeof(float)), stream,  \
             (const T*)x, (const T*)y, (const T*)gate, (const T*)weight, (const T*)bias,         \
             (const T*)scale, (const T*)shift, (T*)out, (T*)total, d, rows, eps, one, layer)
  ARC_DTYPES(dtype, CALL)
#undef CALL
}
