// The inner loops of products of few rows, as a table of functions: rows.cpp is compiled once for
// each instruction set and `row_loops()` picks one. Weights lie column by column, so that whoever
// has a range of columns reads one stretch of memory from its beginning to its end: a processor's
// prefetchers follow that at the full speed of the memory, and nothing else as well.
#pragma once
#include <cstdint>

namespace arc {

struct RowLoops {
  const char* name;
  // y[rows,n0:n1] = (x[rows,k] . w[n,k]^T)[:, n0:n1]; rows of y are n long. A row's result does not
  // depend on what other rows there are.
  void (*f32)(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n,
              int64_t n0, int64_t n1);
  // q = round(x / scale) with scale = max(|x|) / 127, one row; returns the scale, and the sum of q.
  float (*quantize)(const float* x, int8_t* q, int32_t* sum, int64_t count);
  // The same of integers: times the scale of the column, and of the row. sums: of q's rows.
  void (*int8)(const int8_t* q, const int32_t* sums, const float* scale, const int8_t* w,
               const float* columns, float* y, int64_t rows, int64_t k, int64_t n, int64_t n0,
               int64_t n1);
};

const RowLoops& row_loops();

}  // namespace arc
