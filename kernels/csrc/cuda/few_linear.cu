// A few rows times a large matrix, its norm before and a gate or a sum after: see kernels/few_linear.py.
// Such a product waits for the weights alone, so what counts is how many bytes are on their way, and how
// little is left to do when the rows are there. A block makes 16 outputs; its warps share the rows of
// weights, and read their parts whole before anything else is waited for: on sm_90 while the kernel before
// still runs. Then a lane reads the same neighbours of the rows as it holds of the weights, and tensor
// cores multiply: 8 rows cost what one does.
#include "attend.cuh"
#include "tensor.cuh"

constexpr int OUTPUTS = 16, MOST = 8, UNIT = 32;  // UNIT: numbers of a row that a warp takes at once
constexpr int MOST_WARPS = 16;
constexpr int APART = OUTPUTS + 1;  // words between the sums of two rows, so that they lie in other banks

// The least power of two that keeps rows times their norm's weight within f16; bf16 needs none.
template <class T>
constexpr float DOWN = 1;
template <>
constexpr float DOWN<__half> = 1.0f / 64;

// Eight neighbours of a row, times the norm's weight; their squares are added to `squares`.
template <class T>
__device__ inline Line normed(const Line& x, const Line& weight, float& squares) {
  Line out;
  for (int i = 0; i < 4; ++i) {
    float a, b, p, q;
    arc_two<T>(x.x[i], a, b);
    arc_two<T>(weight.x[i], p, q);
    squares = fmaf(a, a, fmaf(b, b, squares));
    out.x[i] = arc_both<T>(a * p * DOWN<T>, b * q * DOWN<T>);
  }
  return out;
}

// c [16 outputs, 8 rows] += what two rows of weights per lane give with a row of x: the order of a sum is
// free, so each lane's eight neighbours are the k of two products that the tensor core thinks its own.
template <class T>
__device__ inline void multiply(float (&c)[4], const Line& low, const Line& high, const Line& x) {
  const u32 first[4] = {low.x[0], high.x[0], low.x[1], high.x[1]};
  const u32 second[4] = {low.x[2], high.x[2], low.x[3], high.x[3]};
  arc_mma(c, first, x.x[0], x.x[1], T());
  arc_mma(c, second, x.x[2], x.x[3], T());
}

// UNITS: of a warp, that are on their way at once. PAIR: two matrices, w the gate's.
template <class T, int UNITS, bool PAIR>
__global__ void __launch_bounds__(32 * MOST_WARPS)
few_linear(const T* x, const T* w, const T* up, const T* weight, const T* y, T* out, int rows, int k,
           int n, int units, float eps) {
  arc_let_next();
  ARC_SHARED(memory);
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4;
  float* const parts = reinterpret_cast<float*>(memory);       // [warps,PAIR + 1,MOST,APART]
  float* const squares = parts + warps * 2 * MOST * APART;     // [warps,MOST]
  const int base = blockIdx.x * OUTPUTS, each = k / WIDE, first = warp * units * 4 + lane % 4;
  const long low = static_cast<long>(min(base + row, n - 1)) * each;
  const long high = static_cast<long>(min(base + row + 8, n - 1)) * each;
  const Line *const gate = reinterpret_cast<const Line*>(w), *const other = reinterpret_cast<const Line*>(up);
  const auto real = [&](int j) { return j < units && first + 4 * j < each; };
  Line a[UNITS][2] = {}, b[PAIR ? UNITS : 1][2] = {};
#pragma unroll
  for (int j = 0; j < UNITS; ++j) {
    if (!real(j)) continue;
    a[j][0] = arc_stream(gate + low + first + 4 * j);
    a[j][1] = arc_stream(gate + high + first + 4 * j);
    if (PAIR) {
      b[j][0] = arc_stream(other + low + first + 4 * j);
      b[j][1] = arc_stream(other + high + first + 4 * j);
    }
    if (weight) arc_prefetch(reinterpret_cast<const Line*>(weight) + first + 4 * j);
  }
  arc_wait();
  const int output = base + threadIdx.x % OUTPUTS, mine = threadIdx.x / OUTPUTS;  // of this thread, at last
  const bool writes = mine < rows && output < n;
  const float more = y && writes ? arc_fresh(y + static_cast<long>(mine) * n + output) : 0;
  float one[4] = {}, two[4] = {}, sum = 0;
  const auto read = [&](int j) {
    Line v = {};
    if (!real(j) || row >= rows) return v;
    v = arc_line(reinterpret_cast<const Line*>(x + static_cast<long>(row) * k) + first + 4 * j);
    return weight ? normed<T>(v, reinterpret_cast<const Line*>(weight)[first + 4 * j], sum) : v;
  };
  Line given[UNITS];
#pragma unroll
  for (int j = 0; j < UNITS; ++j) given[j] = read(j);
#pragma unroll
  for (int j = 0; j < UNITS; ++j) {
    multiply<T>(one, a[j][0], a[j][1], given[j]);
    if (PAIR) multiply<T>(two, b[j][0], b[j][1], given[j]);
  }
  for (int j = UNITS; j < units; ++j) {  // of a very long row
    const Line v = read(j);
    const long at = real(j) ? first + 4 * j : 0;
    multiply<T>(one, arc_stream(gate + low + at), arc_stream(gate + high + at), v);
    if (PAIR) multiply<T>(two, arc_stream(other + low + at), arc_stream(other + high + at), v);
  }
  sum = team_sum(sum, 4);
  if (lane % 4 == 0) squares[warp * MOST + row] = sum;
  float* const room = parts + warp * 2 * MOST * APART;
  for (int i = 0; i < 4; ++i) {
    const int at = (lane % 4 * 2 + i % 2) * APART + row + i / 2 * 8;
    room[at] = one[i];
    if (PAIR) room[MOST * APART + at] = two[i];
  }
  __syncthreads();
  if (!writes) return;
  float total = 0, gated = 0, norm = 0;
  for (int i = 0; i < warps; ++i) {
    const float* const from = parts + i * 2 * MOST * APART + mine * APART + threadIdx.x % OUTPUTS;
    total += from[0];
    if (PAIR) gated += from[MOST * APART];
    norm += squares[i * MOST + mine];
  }
  if (weight) {
    const float unit = 1 / (sqrtf(norm / k + eps) * DOWN<T>);
    total *= unit;
    gated *= unit;
  }
  if (PAIR) total = total / (1 + expf(-total)) * gated;
  arc_store(out + static_cast<long>(mine) * n + output, total + more);
}

template <class T, int UNITS, bool PAIR>
int few(const void* x, const void* w, const void* up, const void* weight, const void* y, void* out,
        int rows, int k, int n, int warps, float eps, void* stream) {
  const int room = warps * (2 * MOST * APART + MOST) * static_cast<int>(sizeof(float));
  const int all = (k + UNIT - 1) / UNIT;
  return arc_launch_early(few_linear<T, UNITS, PAIR>, dim3((n + OUTPUTS - 1) / OUTPUTS), 32 * warps, room,
                          stream, (const T*)x, (const T*)w, (const T*)up, (const T*)weight, (const T*)y,
                          (T*)out, rows, k, n, (all + warps - 1) / warps, eps);
}

// x [rows,k], w and up [n,k], weight [k], y and out [rows,n]; up, weight and y may be null. k is a
// multiple of 8, rows at most 8, warps 8 or 16. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_few_linear(int dtype, const void* x, const void* w, const void* up, const void* weight,
                              const void* y, void* out, int rows, int k, int n, int warps, float eps,
                              void* stream) {
#define RUN(T, UNITS, PAIR) few<T, UNITS, PAIR>(x, w, up, weight, y, out, rows, k, n, warps, eps, stream)
#define CALL(T) up ? RUN(T, 5, true) : k <= 5 * UNIT * warps ? RUN(T, 5, false) : RUN(T, 8, false)
  switch (dtype) {
    case 1: return CALL(__half);
    case 2: return CALL(__nv_bfloat16);
    default: return -1;
  }
#undef CALL
#undef RUN
}
