// From logits to a token, row by row: arcompile/ops/sampling.py says what these mean.
#pragma once
#include <algorithm>
#include <cstdint>

namespace arc {

// What logits are divided by at a temperature.
inline float divisor(float temperature) { return std::max(temperature, 1e-5f); }

// top-k, top-p over one row of logits that are divided already: what is filtered out becomes -inf.
// `most`: how many sorted logits count at most.
void filter_logits(float* x, int64_t count, int64_t top_k, float top_p, int64_t most);

// A token of one row of logits by inverse CDF in two levels, or argmax at temperature 0.
int64_t draw(const float* x, int64_t count, float u_block, float u_token, float temperature);

// One row of filtered logits as probabilities, where they lie; all on the first best at temperature 0.
void law(float* x, int64_t count, float temperature);

// A token by masses max(p - q, 0) of any sum; by p where there is no q, or where they sum to nothing.
int64_t draw_from(const float* p, const float* q, int64_t count, float u_block, float u_token);

}  // namespace arc
