// The inner loops of many-row products and convolutions, as a table of functions: tiles.cpp is
// compiled once for each instruction set and `tiles()` picks the table this processor can run.
//
// Operands are words of 32 bits: one f32, two bf16 or four 8-bit integers that follow one another
// along the axis that is summed over. A loop over words is then the same for all three.
#pragma once
#include <cstdint>

namespace arc {

enum Form : int { F32_WORDS, BF16_WORDS, INT8_WORDS, FORMS };
constexpr int64_t PER_WORD[FORMS] = {1, 2, 4};

constexpr int64_t PIXELS = 8;   // rows of a tile
constexpr int64_t WIDTH = 32;   // columns of a tile; 16 where there are no more

// What becomes of the sums of some rows of a linear layer: (sums - 128 own) * scale * step + bias,
// gelu where wanted, times gain and on top of residual where those are there.
struct Tail {
  const int32_t* sums;  // [rows,width]
  int64_t rows, width;
  const float *scale, *own;  // of each column, and the sum of its integers
  const float *steps, *bias;  // steps: of each row
  const float* gain[PIXELS];  // of each row, or null
  const float* residual;      // rows of it and of y lie `stride` apart
  float* y;
  int64_t stride;
  bool gelu;
};

struct Tiles {
  const char* name;
  // sums[pixels,width] = for each tap t and word k: x[taps[t] + pixel * stride + k] . w[t,k,:],
  // on top of what sums holds where `more`. pixels <= PIXELS; sums are f32, or i32 for INT8_WORDS.
  void (*sum[FORMS])(const int32_t* x, const int64_t* taps, int64_t n_taps, int64_t words,
                     int64_t stride, int64_t pixels, const int32_t* w, int64_t width,
                     int32_t* sums, bool more);
  // x * scale + shift per channel (a multiple of 16), its silu where wanted, as words. 8-bit
  // integers are value / step + zero, rounded. scale may be null: x itself.
  void (*pack[FORMS])(const float* x, const float* scale, const float* shift, bool silu,
                      int64_t channels, int64_t pixels, float step, float zero, int32_t* words);
  // Adds to sums and squares [channels] those of x - pivot, and widens least and most.
  void (*moments)(const float* x, const float* pivot, int64_t channels, int64_t pixels,
                  double* sums, double* squares, float* least, float* most);
  // y[pixels,:count] = sums[pixels,width] * scale + shift (+ residual, may be null); rows of y and
  // residual lie `stride` apart.
  void (*scale)(const int32_t* sums, bool integers, const float* scale, const float* shift,
                const float* residual, float* y, int64_t count, int64_t pixels, int64_t width,
                int64_t stride);
  // q = x / step + 128, rounded, for the largest |x| to be 127 steps; returns the step.
  float (*round_row)(const float* x, int64_t count, uint8_t* q);
  void (*tail)(const Tail& t, int64_t count);  // of `count` columns
};

const Tiles& tiles();

}  // namespace arc
