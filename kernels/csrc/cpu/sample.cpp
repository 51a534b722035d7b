#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "lanes.h"

namespace arc {
namespace {

constexpr int64_t BLOCK = 128;  // tokens of a block of `draw`
constexpr float NONE = -std::numeric_limits<float>::infinity();

// --- filter ---------------------------------------------------------------------------------------

constexpr int SHIFT = 20;  // of a key, to its bin of the histogram

// An integer that orders as the floats do.
uint32_t key(float v) {
  uint32_t u;
  std::memcpy(&u, &v, sizeof u);
  return u ^ (static_cast<uint32_t>(-static_cast<int32_t>(u >> 31)) | 0x80000000u);
}

// The bin that holds the k-th largest of count values; k becomes its place in there.
uint32_t bin_of(const float* x, int64_t count, int64_t& k) {
  constexpr uint32_t BINS = 1u << (32 - SHIFT);
  static thread_local std::vector<uint32_t> counts;  // twice: neighbours often fall into one bin
  counts.assign(2 * BINS, 0);
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    ++counts[key(x[i]) >> SHIFT];
    ++counts[BINS + (key(x[i + 1]) >> SHIFT)];
  }
  if (i < count) ++counts[key(x[i]) >> SHIFT];
  for (uint32_t bin = BINS - 1;; --bin) {
    const int64_t here = int64_t{counts[bin]} + counts[BINS + bin];
    if (here >= k || bin == 0) return bin;
    k -= here;
  }
}

// The k-th largest of count values, k from 1: one histogram, then a selection in one bin.
float kth_largest(const float* x, int64_t count, int64_t k) {
  static thread_local std::vector<float> inside;
  inside.resize(std::max(inside.size(), static_cast<size_t>(count)));
  const uint32_t bin = bin_of(x, count, k);
  float* end = inside.data();
  for (int64_t i = 0; i < count; ++i) {  // no branch: nobody could foretell it
    *end = x[i];
    end += key(x[i]) >> SHIFT == bin;
  }
  std::nth_element(inside.data(), inside.data() + (k - 1), end, std::greater<>());
  return inside[static_cast<size_t>(k - 1)];
}

// The smallest logit of the nucleus: of those before it the probability does not exceed top_p.
float nucleus(const float* x, int64_t count, float floor, float top_p, int64_t most) {
  std::vector<float> best;
  for (int64_t i = 0; i < count; ++i)
    if (x[i] >= floor) best.push_back(x[i]);
  if (best.empty()) return floor;  // nothing is a number
  std::sort(best.begin(), best.end(), std::greater<>());
  best.resize(std::min(best.size(), static_cast<size_t>(most)));
  std::vector<float> mass(best.size());
  double total = 0, before = 0;
  for (size_t i = 0; i < best.size(); ++i) total += mass[i] = std::exp(best[i] - best[0]);
  size_t last = 0;
  for (size_t i = 0; i < best.size() && before / total <= top_p; before += mass[i++]) last = i;
  return std::max(floor, best[last]);
}

// --- draw -----------------------------------------------------------------------------------------

// The first index whose running sum exceeds u of the total.
int64_t first_past(const float* p, int64_t count, float u) {
  float total = 0, running = 0;
  for (int64_t i = 0; i < count; ++i) total += p[i];
  for (int64_t i = 0; i < count; ++i)
    if ((running += p[i]) > u * total) return i;
  return 0;
}

// A token by masses p, and the sums of their blocks.
int64_t drawn(const float* p, const std::vector<float>& each, int64_t count, float u_block,
              float u_token) {
  const int64_t size = std::min(BLOCK, count), blocks = (count + size - 1) / size;
  const int64_t from = first_past(each.data(), blocks, u_block) * size;
  return from + first_past(p + from, std::min(size, count - from), u_token);
}

}  // namespace

void filter_logits(float* x, int64_t count, int64_t top_k, float top_p, int64_t most) {
  float floor = NONE;
  most = std::min(std::max<int64_t>(most, 1), count);
  if (top_k > 0) floor = kth_largest(x, count, std::min(top_k, most));
  if (top_p < 1) floor = nucleus(x, count, floor, top_p, most);
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] >= floor ? x[i] : NONE;
}

int64_t draw(const float* x, int64_t count, float u_block, float u_token, float temperature) {
  const float* peak = std::max_element(x, x + count);  // the first of equals
  if (!(temperature > 0)) return peak - x;
  const int64_t size = std::min(BLOCK, count), blocks = (count + size - 1) / size;
  std::vector<float> p(static_cast<size_t>(count)), each(static_cast<size_t>(blocks));
  for (int64_t b = 0, from = 0; b < blocks; ++b, from += size)
    each[b] = lanes().masses(x + from, p.data() + from, std::min(size, count - from), *peak);
  return drawn(p.data(), each, count, u_block, u_token);
}

void law(float* x, int64_t count, float temperature) {
  if (temperature > 0) {
    const float unit = 1 / lanes().masses(x, x, count, lanes().peak(x, count));
    for (int64_t i = 0; i < count; ++i) x[i] *= unit;
    return;
  }
  const int64_t best = std::max_element(x, x + count) - x;  // the first of equals
  std::fill(x, x + count, 0.0f);
  x[best] = 1;
}

int64_t draw_from(const float* p, const float* q, int64_t count, float u_block, float u_token) {
  const int64_t size = std::min(BLOCK, count), blocks = (count + size - 1) / size;
  static thread_local std::vector<float> left, each;
  left.resize(std::max(left.size(), static_cast<size_t>(count)));
  each.resize(static_cast<size_t>(blocks));
  float sum = 0;
  for (int64_t b = 0, from = 0; q && b < blocks; ++b, from += size)
    sum += each[b] = lanes().excess(p + from, q + from, left.data() + from, std::min(size, count - from));
  if (sum > 0) return drawn(left.data(), each, count, u_block, u_token);
  for (int64_t b = 0, from = 0; b < blocks; ++b, from += size)
    each[b] = lanes().total(p + from, std::min(size, count - from));
  return drawn(p, each, count, u_block, u_token);
}

}  // namespace arc
