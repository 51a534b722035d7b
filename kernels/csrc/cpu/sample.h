// From logits to a token, row by row: arcompile/ops/sampling.py says what these mean.
#pragma once
#include <cstdint>

namespace arc {

// Temperature, top-k, top-p over one row of logits: what is filtered out becomes -inf.
// `most`: how many sorted logits count at most.
void filter_logits(const float* x, float* y, int64_t count, float temperature, int64_t top_k,
                   float top_p, int64_t most);

// A token of one row of logits by inverse CDF in two levels, or argmax at temperature 0.
int64_t draw(const float* x, int64_t count, float u_block, float u_token, float temperature);

}  // namespace arc
