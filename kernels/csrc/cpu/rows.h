// The inner loops of products of few rows, as a table of functions: rows.cpp is compiled once for
// each instruction set and `row_loops()` picks one. What takes time is reading the weights, so they
// are packed in the order in which they are read: by blocks of BLOCK columns, in a block by k, and
// for one k the columns side by side; of integers four k stand together, as the processors' byte
// products take them. The last block is filled up.
#pragma once
#include <cstdint>

namespace arc {

constexpr int64_t BLOCK = 32, QUAD = 4;

inline int64_t blocks(int64_t n) { return (n + BLOCK - 1) / BLOCK; }
inline int64_t quads(int64_t k) { return (k + QUAD - 1) / QUAD; }

// Of a packed matrix, in numbers.
inline int64_t packed_size(int64_t k, int64_t n, const float*) { return blocks(n) * BLOCK * k; }
inline int64_t packed_size(int64_t k, int64_t n, const uint8_t*) {
  return blocks(n) * BLOCK * quads(k) * QUAD;
}

// w [n,k] -> blocks [from,to) of it. Integers become w + 128, unsigned.
void pack(const float* w, float* packed, int64_t k, int64_t n, int64_t from, int64_t to);
void pack(const int8_t* w, uint8_t* packed, int64_t k, int64_t n, int64_t from, int64_t to);

struct RowLoops {
  const char* name;
  // Blocks [from,to) of y[rows,n] = x[rows,k] . w[n,k]^T, w packed. A row's result does not depend
  // on what other rows there are.
  void (*f32)(const float* x, const float* w, float* y, int64_t rows, int64_t k, int64_t n,
              int64_t from, int64_t to);
  // q = round(x / scale) with scale = max(|x|) / 127, one row, with zeros up to whole quads; returns
  // the scale, and the sum of q.
  float (*quantize)(const float* x, int8_t* q, int32_t* sum, int64_t count);
  // The same of integers, rows of q quads(k) * QUAD long: times the scale of the column, and of the
  // row. sums: of q's rows.
  void (*int8)(const int8_t* q, const int32_t* sums, const float* scale, const uint8_t* w,
               const float* columns, float* y, int64_t rows, int64_t k, int64_t n, int64_t from,
               int64_t to);
};

const RowLoops& row_loops();

}  // namespace arc
