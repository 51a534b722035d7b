// A few rows times a large matrix, its norm before and a gate or a sum after: see kernels/few_linear.py.
// Such a product waits for the weights alone, so what counts is how many bytes are on their way: a row of
// weights is read whole, 16 bytes a lane, by `ways` warps, before anything else is waited for. On sm_90
// that is while the kernel before still runs.
#include "arc.cuh"
#include "attend.cuh"

constexpr int FEW_WARPS = 8;
constexpr int FEW_THREADS = 32 * FEW_WARPS;

// The sum over a warp; every lane gets it.
__device__ inline float warp_sum(float x) { return team_sum(x, 32); }

// Rows of x, times the norm's weight where there is one, as f32 into shared memory: [ROWS][k], the two
// halves of eight neighbours apart so that lanes meet no bank twice. squares[ROWS][FEW_WARPS]: of x.
template <class T, int ROWS>
__device__ inline void stage(const T* x, const T* weight, int rows, int k, float* held, float* squares) {
  const int each = k / WIDE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int m = 0; m < ROWS; ++m) {
    float sum = 0;
    for (int i = threadIdx.x; i < each; i += FEW_THREADS) {
      float v[WIDE] = {};
      if (m < rows) {
        const Line line = arc_line(reinterpret_cast<const Line*>(x + static_cast<long>(m) * k) + i);
        for (int j = 0; j < WIDE / 2; ++j) arc_two<T>(line.x[j], v[2 * j], v[2 * j + 1]);
      }
      for (float a : v) sum = fmaf(a, a, sum);
      if (weight) {
        float g[WIDE];
        read(weight + i * WIDE, g);
        for (int j = 0; j < WIDE; ++j) v[j] *= g[j];
      }
      float* const to = held + static_cast<long>(m) * k;
      for (int j = 0; j < WIDE; ++j) to[(j / 4) * (k / 2) + i * 4 + j % 4] = v[j];
    }
    sum = warp_sum(sum);
    if (lane == 0) squares[m * FEW_WARPS + warp] = sum;
  }
}

// acc[m] += sum over eight neighbours i of w times row m.
template <class T, int ROWS>
__device__ inline void add_eight(const Line& w, const float* held, int k, int i, float (&acc)[ROWS]) {
  float v[WIDE];
  for (int j = 0; j < WIDE / 2; ++j) arc_two<T>(w.x[j], v[2 * j], v[2 * j + 1]);
#pragma unroll
  for (int m = 0; m < ROWS; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Four four = *reinterpret_cast<const Four*>(held + static_cast<long>(m) * k + half * (k / 2) + i * 4);
      for (int j = 0; j < 4; ++j) acc[m] = fmaf(v[half * 4 + j], four.x[j], acc[m]);
    }
}

// CHUNKS: loads of a lane and row that are on their way at once. PAIR: two matrices, w the gate's.
template <class T, int ROWS, int CHUNKS, bool PAIR>
__global__ void __launch_bounds__(FEW_THREADS, 2)
few_linear(const T* x, const T* w, const T* up, const T* weight, const T* y, T* out, int rows, int k,
           int n, int ways, float eps) {
  ARC_SHARED(memory);
  float* const held = reinterpret_cast<float*>(memory);  // [ROWS,k]
  float* const squares = held + static_cast<long>(ROWS) * k;  // [ROWS,FEW_WARPS]
  float* const parts = squares + ROWS * FEW_WARPS;            // [FEW_WARPS,PAIR + 1,ROWS]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, way = warp % ways;
  const int column = blockIdx.x * (FEW_WARPS / ways) + warp / ways, own = min(column, n - 1);
  const int each = k / WIDE, stride = 32 * ways;
  const T* const first = w + static_cast<long>(own) * k;
  const T* const second = PAIR ? up + static_cast<long>(own) * k : nullptr;
  Line a[CHUNKS], b[PAIR ? CHUNKS : 1];
  arc_let_next();
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int i = c * stride + way * 32 + lane;
    if (i >= each) continue;
    a[c] = arc_stream(reinterpret_cast<const Line*>(first) + i);
    if (PAIR) b[c] = arc_stream(reinterpret_cast<const Line*>(second) + i);
  }
  arc_wait();
  float more = 0;  // what is added to what this lane writes
  if (y && way == 0 && lane < rows) more = arc_fresh(y + static_cast<long>(lane) * n + own);
  stage<T, ROWS>(x, weight, rows, k, held, squares);
  __syncthreads();
  float one[ROWS] = {}, two[ROWS] = {};
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int i = c * stride + way * 32 + lane;
    if (i >= each) continue;
    add_eight<T, ROWS>(a[c], held, k, i, one);
    if (PAIR) add_eight<T, ROWS>(b[c], held, k, i, two);
  }
  for (int i = CHUNKS * stride + way * 32 + lane; i < each; i += stride) {  // of a very long row
    add_eight<T, ROWS>(arc_stream(reinterpret_cast<const Line*>(first) + i), held, k, i, one);
    if (PAIR) add_eight<T, ROWS>(arc_stream(reinterpret_cast<const Line*>(second) + i), held, k, i, two);
  }
  float mine = 0, gated = 0;  // of row `lane`
  for (int m = 0; m < ROWS; ++m) {
    const float s = warp_sum(one[m]), t = PAIR ? warp_sum(two[m]) : 0;
    if (lane == m) mine = s, gated = t;
  }
  if (ways > 1) {
    if (lane < ROWS) parts[(warp * 2) * ROWS + lane] = mine, parts[(warp * 2 + 1) * ROWS + lane] = gated;
    __syncthreads();
    if (way == 0 && lane < ROWS)
      for (int other = 1; other < ways; ++other) {
        mine += parts[((warp + other) * 2) * ROWS + lane];
        gated += parts[((warp + other) * 2 + 1) * ROWS + lane];
      }
  }
  if (way || lane >= rows || column >= n) return;
  float unit = 1;
  if (weight) {
    float sum = 0;
    for (int i = 0; i < FEW_WARPS; ++i) sum += squares[lane * FEW_WARPS + i];
    unit = 1 / sqrtf(sum / k + eps);
  }
  mine *= unit;
  if (PAIR) mine = mine / (1 + expf(-mine)) * (gated * unit);
  arc_store(out + static_cast<long>(lane) * n + column, mine + more);
}

template <class T, int ROWS, int CHUNKS>
int few(const void* x, const void* w, const void* up, const void* weight, const void* y, void* out,
        int rows, int k, int n, int ways, float eps, void* stream) {
  const int room = (ROWS * k + ROWS * FEW_WARPS + FEW_WARPS * 2 * ROWS) * static_cast<int>(sizeof(float));
  const int columns = FEW_WARPS / ways;
  const auto kernel = up ? few_linear<T, ROWS, CHUNKS, true> : few_linear<T, ROWS, CHUNKS, false>;
  return arc_launch_early(kernel, dim3((n + columns - 1) / columns), FEW_THREADS, room, stream, (const T*)x,
                          (const T*)w, (const T*)up, (const T*)weight, (const T*)y, (T*)out, rows, k, n,
                          ways, eps);
}

// x [rows,k], w and up [n,k], weight [k], y and out [rows,n]; up, weight and y may be null. k is a
// multiple of 8, rows at most 8, ways 1, 2, 4 or 8. Returns a CUDA error code, 0 for none.
ARC_EXPORT int arc_few_linear(int dtype, const void* x, const void* w, const void* up, const void* weight,
                              const void* y, void* out, int rows, int k, int n, int ways, float eps,
                              void* stream) {
  const bool small = k <= 5 * 32 * WIDE * ways;
#define RUN(T, ROWS)                                                                               \
  small ? few<T, ROWS, 5>(x, w, up, weight, y, out, rows, k, n, ways, eps, stream)                 \
        : few<T, ROWS, 8>(x, w, up, weight, y, out, rows, k, n, ways, eps, stream)
#define CALL(T) rows <= 2 ? (RUN(T, 2)) : rows <= 4 ? (RUN(T, 4)) : (RUN(T, 8))
  switch (dtype) {
    case 1: return CALL(__half);
    case 2: return CALL(__nv_bfloat16);
    default: return -1;
  }
#undef CALL
#undef RUN
}
