// The inner loops, as a table of functions: lanes.cpp is compiled once for each instruction set
// and `lanes()` picks the table that this processor can run.
#pragma once
#include <cstdint>

namespace arc {

struct Lanes {
  const char* name;
  // y = silu(gate) * x
  void (*swiglu)(const float* gate, const float* x, float* y, int64_t count);
  // Attention of `queries` <= 16 rows of q over n keys and values [n,width], query i over the first
  // ends[i] of them (at least one). Rows of q and out lie q_stride and out_stride apart. scratch:
  // 16 (n + width + 1) floats.
  void (*attend)(const float* q, int64_t q_stride, int64_t queries, const float* k, const float* v,
                 int64_t width, int64_t n, const int32_t* ends, float scale, float* scratch,
                 float* out, int64_t out_stride);
  // sum = x + y; norm = sum / sqrt(mean(sum^2) + eps) * weight: one row.
  void (*residual_norm)(const float* x, const float* y, const float* weight, float* norm,
                        float* sum, int64_t count, float eps);
  // One group of channels, each `area` long: to mean 0 and variance 1 over the group, then weight
  // and bias per channel, then silu where wanted.
  void (*group_norm)(const float* x, const float* weight, const float* bias, float* y,
                     int64_t channels, int64_t area, float eps, bool silu);
  // p = e^(x - peak), and their sum. e^-inf is 0.
  float (*masses)(const float* x, float* p, int64_t count, float peak);
  // y = (own + more (own - null)) / t: guidance and temperature.
  void (*guide)(const float* own, const float* null, float more, float t, float* y, int64_t count);
  // y = max(p - q, 0), and their sum.
  float (*excess)(const float* p, const float* q, float* y, int64_t count);
  float (*total)(const float* x, int64_t count);
  // The largest; count >= 1. Of what is no number any may count.
  float (*peak)(const float* x, int64_t count);
};

const Lanes& lanes();

}  // namespace arc
