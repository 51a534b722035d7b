// Weights in the order in which products of few rows read them; see rows.h.
#include <algorithm>

#include "rows.h"

namespace arc {

void pack(const float* w, float* packed, int64_t k, int64_t n, int64_t from, int64_t to) {
  constexpr int64_t SOME = 16;  // of k: what is written stays in the nearest cache meanwhile
  for (int64_t b = from; b < to; ++b)
    for (int64_t d = 0; d < k; d += SOME)
      for (int64_t c = 0; c < BLOCK; ++c) {
        const int64_t column = b * BLOCK + c;
        float* const out = packed + b * BLOCK * k + c;
        for (int64_t i = d; i < std::min(d + SOME, k); ++i)
          out[i * BLOCK] = column < n ? w[column * k + i] : 0.0f;
      }
}

void pack(const int8_t* w, uint8_t* packed, int64_t k, int64_t n, int64_t from, int64_t to) {
  const int64_t length = quads(k) * QUAD;
  for (int64_t b = from; b < to; ++b)
    for (int64_t d = 0; d < length; d += QUAD)
      for (int64_t c = 0; c < BLOCK; ++c) {
        const int64_t column = b * BLOCK + c;
        uint8_t* const out = packed + b * BLOCK * length + d * BLOCK + c * QUAD;
        for (int64_t i = 0; i < QUAD; ++i)
          out[i] = column < n && d + i < k ? static_cast<uint8_t>(w[column * k + d + i] + 128) : 128;
      }
}

}  // namespace arc
