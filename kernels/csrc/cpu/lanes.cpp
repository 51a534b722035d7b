// The inner loops; ARC_ISA names the instruction set this copy is compiled for. Meanings:
// arcompile/ops (swiglu, attention, norms, draw), which tests compare them with. No templates of the standard
// library here: the linker would keep one copy of theirs for all instruction sets.
#include "lanes.h"

#include <cmath>

#include "simd.h"

namespace arc {
namespace ARC_ISA {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// --- swiglu ---------------------------------------------------------------------------------------

void swiglu(const float* gate, const float* x, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const F32 g = load(gate + i);
    store(y + i, g / (1.0f + exp(-g)) * load(x + i));
  }
  for (; i < count; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * x[i];
}

// --- attention ------------------------------------------------------------------------------------

// scores[t] = the 16 queries (in lanes) with key t, for KEYS keys from t on.
template <int KEYS>
void score(const float* q, const float* k, int64_t width, int64_t t, float* scores) {
  F32 a[KEYS] = {};
  for (int64_t e = 0; e < width; ++e) {
    const F32 v = load(q + e * LANES);
    for (int i = 0; i < KEYS; ++i) a[i] += v * all(k[(t + i) * width + e]);
  }
  for (int i = 0; i < KEYS; ++i) store(scores + (t + i) * LANES, a[i]);
}

// p = e^(scores - their largest) where the lane may see the key, else 0; returns their sums.
F32 softmax(float* scores, int64_t n, I32 ends) {
  F32 most = load(scores);
  for (int64_t t = 1; t < n; ++t) {
    const F32 s = load(scores + t * LANES);
    most = pick((I32{} + static_cast<int32_t>(t) < ends) & (s > most), s, most);
  }
  F32 total = {};
  for (int64_t t = 0; t < n; ++t) {
    const F32 p = exp(load(scores + t * LANES) - most);
    const F32 seen = pick(I32{} + static_cast<int32_t>(t) < ends, p, F32{});
    store(scores + t * LANES, seen);
    total += seen;
  }
  return total;
}

// out[QUERIES, 16 VECTORS] = p^T @ v, each row divided by its total; p of key t and query i at t by_key + i by_query.
template <int QUERIES, int VECTORS>
void blend(const float* p, int64_t by_key, int64_t by_query, const float* v, int64_t width, int64_t n,
           const float* totals, float* out, int64_t out_stride) {
  F32 a[QUERIES][VECTORS] = {};
  for (int64_t t = 0; t < n; ++t) {
    F32 x[VECTORS];
    for (int j = 0; j < VECTORS; ++j) x[j] = load(v + t * width + j * LANES);
    for (int i = 0; i < QUERIES; ++i)
      for (int j = 0; j < VECTORS; ++j) a[i][j] += x[j] * all(p[t * by_key + i * by_query]);
  }
  for (int i = 0; i < QUERIES; ++i)
    for (int j = 0; j < VECTORS; ++j)
      store(out + i * out_stride + j * LANES, a[i][j] / totals[i]);
}

template <int QUERIES>
void blend_rows(const float* p, int64_t by_key, int64_t by_query, const float* v, int64_t width,
                int64_t n, const float* totals, float* out, int64_t out_stride) {
  int64_t e = 0;
  for (; e + 4 * LANES <= width; e += 4 * LANES)
    blend<QUERIES, 4>(p, by_key, by_query, v + e, width, n, totals, out + e, out_stride);
  for (; e + LANES <= width; e += LANES)
    blend<QUERIES, 1>(p, by_key, by_query, v + e, width, n, totals, out + e, out_stride);
  for (; e < width; ++e)
    for (int i = 0; i < QUERIES; ++i) {
      float a = 0;
      for (int64_t t = 0; t < n; ++t) a += p[t * by_key + i * by_query] * v[t * width + e];
      out[i * out_stride + e] = a / totals[i];
    }
}

// The lanes of a and b, by pairs: first those of a.
F32 pairs(F32 a, F32 b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Lane i: the sum of a[i].
template <int COUNT>
F32 sums(const F32* a) {
  F32 half[COUNT / 2];
  for (int i = 0; i < COUNT / 2; ++i) half[i] = pairs(a[2 * i], a[2 * i + 1]);
  if constexpr (COUNT > 2) return sums<COUNT / 2>(half);
  return half[0];
}

// One query: keys lie side by side in the lanes, so that none of them works for nothing.
// scores[t] = e^(its score with key t - the largest) for the first n keys, then 0 up to `whole`, a
// multiple of the lanes; returns their sum.
float soft_scores(const float* q, const float* k, int64_t width, int64_t n, int64_t whole, float scale,
                  float* scores) {
  F32 best = all(-INFINITY);
  int64_t t = 0;
  for (; width % LANES == 0 && t + LANES <= n; t += LANES) {
    F32 a[LANES];
    for (int i = 0; i < LANES; ++i) {  // key by key: in the order of memory, which is what takes time
      const float* const key = k + (t + i) * width;
      F32 s = {};
      for (int64_t e = 0; e < width; e += LANES) s += load(q + e) * load(key + e);
      a[i] = s;
    }
    const F32 found = sums<LANES>(a) * scale;
    store(scores + t, found);
    best = pick(found > best, found, best);
  }
  float most = max(best);
  for (; t < n; ++t) {
    F32 a = {};
    int64_t e = 0;
    for (; e + LANES <= width; e += LANES) a += load(q + e) * load(k + t * width + e);
    float s = sum(a);
    for (; e < width; ++e) s += q[e] * k[t * width + e];
    scores[t] = s * scale;
    most = scores[t] > most ? scores[t] : most;
  }
  for (; t < whole; ++t) scores[t] = -INFINITY;
  F32 totals = {};
  for (t = 0; t < whole; t += LANES) {
    const F32 p = exp(load(scores + t) - most);
    store(scores + t, p);
    totals += p;
  }
  return sum(totals);
}

constexpr int64_t FEW = 8;  // queries that are better done one by one than side by side

void attend_few(const float* q, int64_t q_stride, int64_t queries, const float* k, const float* v,
                int64_t width, int64_t n, const int32_t* ends, float scale, float* scores, float* out,
                int64_t out_stride) {
  const int64_t whole = (n + LANES - 1) / LANES * LANES;
  float totals[FEW];
  for (int64_t i = 0; i < queries; ++i)
    totals[i] = soft_scores(q + i * q_stride, k, width, ends[i], whole, scale, scores + i * whole);
  int64_t i = 0;
  for (; i + 4 <= queries; i += 4)
    blend_rows<4>(scores + i * whole, 1, whole, v, width, n, totals + i, out + i * out_stride, out_stride);
  for (; i + 2 <= queries; i += 2)
    blend_rows<2>(scores + i * whole, 1, whole, v, width, n, totals + i, out + i * out_stride, out_stride);
  if (i < queries)
    blend_rows<1>(scores + i * whole, 1, whole, v, width, n, totals + i, out + i * out_stride, out_stride);
}

void attend(const float* q, int64_t q_stride, int64_t queries, const float* k, const float* v,
            int64_t width, int64_t n, const int32_t* ends, float scale, float* scratch, float* out,
            int64_t out_stride) {
  if (queries == 1 || (queries <= FEW && width >= LANES))  // scratch is enough then
    return attend_few(q, q_stride, queries, k, v, width, n, ends, scale, scratch, out, out_stride);
  float *scores = scratch, *turned = scratch + n * LANES, *totals = turned + width * LANES;
  I32 sees = I32{} + 1;  // lanes without a query look at one key, and nobody at them
  for (int64_t i = 0; i < queries; ++i) sees[i] = ends[i];
  for (int64_t e = 0; e < width; ++e)
    for (int64_t i = 0; i < LANES; ++i)
      turned[e * LANES + i] = i < queries ? q[i * q_stride + e] * scale : 0;
  int64_t t = 0;
  for (; t + 8 <= n; t += 8) score<8>(turned, k, width, t, scores);
  for (; t < n; ++t) score<1>(turned, k, width, t, scores);
  store(totals, softmax(scores, n, sees));
  int64_t i = 0;
  for (; i + 4 <= queries; i += 4)
    blend_rows<4>(scores + i, LANES, 1, v, width, n, totals + i, out + i * out_stride, out_stride);
  for (; i < queries; ++i)
    blend_rows<1>(scores + i, LANES, 1, v, width, n, totals + i, out + i * out_stride, out_stride);
}

// --- norm -----------------------------------------------------------------------------------------

void residual_norm(const float* x, const float* y, const float* weight, float* norm, float* total,
                   int64_t count, float eps) {
  int64_t i = 0;
  F32 squares = {};
  for (; i + LANES <= count; i += LANES) {
    const F32 s = load(x + i) + load(y + i);
    store(total + i, s);
    squares += s * s;
  }
  float square = sum(squares);
  for (; i < count; ++i) {
    total[i] = x[i] + y[i];
    square += total[i] * total[i];
  }
  const float scale = 1.0f / std::sqrt(square / static_cast<float>(count) + eps);
  for (i = 0; i < count; ++i) norm[i] = total[i] * scale * weight[i];
}

// The sum of (x - from)^power over count values: in short stretches, so that f32 is enough.
template <int POWER>
double moment(const float* x, int64_t count, float from) {
  constexpr int64_t STRETCH = 4096;
  double total = 0;
  for (int64_t at = 0; at < count; at += STRETCH) {
    const int64_t end = smaller(at + STRETCH, count);
    int64_t i = at;
    F32 part = {};
    for (; i + LANES <= end; i += LANES) {
      const F32 d = load(x + i) - from;
      part += POWER == 1 ? d : d * d;
    }
    total += sum(part);
    for (; i < end; ++i) total += POWER == 1 ? x[i] - from : (x[i] - from) * (x[i] - from);
  }
  return total;
}

void group_norm(const float* x, const float* weight, const float* bias, float* y,
                int64_t channels, int64_t area, float eps, bool silu) {
  const int64_t count = channels * area;
  const float mean = static_cast<float>(moment<1>(x, count, 0) / count);
  const float unit = 1.0f / std::sqrt(static_cast<float>(moment<2>(x, count, mean) / count) + eps);
  for (int64_t c = 0; c < channels; ++c) {
    const float scale = unit * weight[c], shift = bias[c] - mean * scale;
    const float* from = x + c * area;
    float* to = y + c * area;
    int64_t i = 0;
    for (; i + LANES <= area; i += LANES) {
      const F32 v = load(from + i) * scale + shift;
      store(to + i, silu ? v / (1.0f + exp(-v)) : v);
    }
    for (; i < area; ++i) {
      const float v = from[i] * scale + shift;
      to[i] = silu ? v / (1.0f + std::exp(-v)) : v;
    }
  }
}

// --- masses -----------------------------------------------------------------------------------------

float masses(const float* x, float* p, int64_t count, float peak) {
  int64_t i = 0;
  F32 total = {};
  for (; i + LANES <= count; i += LANES) {
    const F32 e = exp(load(x + i) - peak);
    store(p + i, e);
    total += e;
  }
  float found = sum(total);
  for (; i < count; ++i) found += p[i] = std::exp(x[i] - peak);
  return found;
}

void guide(const float* own, const float* null, float more, float t, float* y, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const F32 v = load(own + i);
    store(y + i, (v + more * (v - load(null + i))) / t);
  }
  for (; i < count; ++i) y[i] = (own[i] + more * (own[i] - null[i])) / t;
}

float excess(const float* p, const float* q, float* y, int64_t count) {
  int64_t i = 0;
  F32 total = {};
  for (; i + LANES <= count; i += LANES) {
    const F32 d = load(p + i) - load(q + i), v = pick(d > F32{}, d, F32{});
    store(y + i, v);
    total += v;
  }
  float found = sum(total);
  for (; i < count; ++i) found += y[i] = p[i] > q[i] ? p[i] - q[i] : 0;
  return found;
}

float total(const float* x, int64_t count) {
  int64_t i = 0;
  F32 sums = {};
  for (; i + LANES <= count; i += LANES) sums += load(x + i);
  float found = sum(sums);
  for (; i < count; ++i) found += x[i];
  return found;
}

float peak(const float* x, int64_t count) {
  int64_t i = 0;
  F32 most = all(x[0]);
  for (; i + LANES <= count; i += LANES) {
    const F32 v = load(x + i);
    most = pick(v > most, v, most);
  }
  float found = max(most);
  for (; i < count; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

}  // namespace

#define ARC_TEXT(x) #x
#define ARC_NAME(x) ARC_TEXT(x)
extern const Lanes table;
const Lanes table = {ARC_NAME(ARC_ISA), swiglu, attend, residual_norm,
                     group_norm, masses, guide, excess, total, peak};

}  // namespace ARC_ISA
}  // namespace arc
