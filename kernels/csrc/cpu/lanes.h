// The inner loops, as a table of functions: lanes.cpp is compiled once for each instruction set
// and `lanes()` picks the table that this processor can run.
#pragma once
#include <cstdint>

namespace arc {

struct Lanes {
  const char* name;
  // y[rows,n0:n1] = x[rows,k] @ w[k,n][:, n0:n1]; all row-major, y's rows are n long.
  void (*matmul)(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n,
                 int64_t n0, int64_t n1);
  // y = silu(gate) * x
  void (*swiglu)(const float* gate, const float* x, float* y, int64_t count);
  // sum = x + y; norm = sum / sqrt(mean(sum^2) + eps) * weight: one row.
  void (*residual_norm)(const float* x, const float* y, const float* weight, float* norm,
                        float* sum, int64_t count, float eps);
  // p = e^(x - peak), and their sum. e^-inf is 0.
  float (*masses)(const float* x, float* p, int64_t count, float peak);
};

const Lanes& lanes();

}  // namespace arc
