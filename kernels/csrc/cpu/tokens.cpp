// From logits to tokens, and the drafts of a window: arcompile/ops/sampling.py and speculation.py say
// what these mean. Sizes: b images, c positions, v tokens of the vocabulary. A task is one position.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "lanes.h"
#include "op.h"
#include "sample.h"

namespace arc {
namespace {

// What filters need to know, one temperature, top_k and top_p per image: inputs from `at` on.
struct Filters {
  Tensor temperature, top_k, top_p, most;

  Filters(ort::Context* c, size_t at)
      : temperature(input(c, at)), top_k(input(c, at + 1)), top_p(input(c, at + 2)),
        most(input(c, at + 3)) {}
  float divides(int64_t image) const { return divisor(temperature.f32()[image]); }
  void keep(float* x, int64_t count, int64_t image) const {
    filter_logits(x, count, top_k.i64()[image], top_p.f32()[image], most.i64()[0]);
  }
};

// logits [b,c,v], filters
void filter(void*, ort::Context* c) {
  const Tensor x = input(c, 0), y = output(c, x.dims);
  const Filters f(c, 1);
  const int64_t v = x.dims[2];
  each(c, x.dims[0] * x.dims[1], [&](int64_t i) {
    const int64_t image = i / x.dims[1];
    const float *const from = x.f32() + i * v, t = f.divides(image);
    float* const to = y.f32() + i * v;
    for (int64_t k = 0; k < v; ++k) to[k] = from[k] / t;
    f.keep(to, v, image);
  });
}

// The row that an image's row of indices names, within `rows` whatever it says.
int64_t row_of(const Tensor& index, int64_t image, int64_t rows) {
  return std::clamp<int64_t>(index.i64()[image], 0, rows - 1);
}

// logits [r,c,v], row and null_row [b], guidance less 1 [b,1 or c,1], filters -> [b,c,v]
void guided_filter(void*, ort::Context* c) {
  const Tensor x = input(c, 0), row = input(c, 1), null_row = input(c, 2), more = input(c, 3);
  const Filters f(c, 4);
  const int64_t rows = x.dims[0], slots = x.dims[1], v = x.dims[2], steps = more.dims[1];
  const Tensor y = output(c, {row.dims[0], slots, v});
  if (!rows) return;
  each(c, row.dims[0] * slots, [&](int64_t i) {
    const int64_t image = i / slots, slot = i % slots;
    const auto logits = [&](const Tensor& index) {
      return x.f32() + (row_of(index, image, rows) * slots + slot) * v;
    };
    lanes().guide(logits(row), logits(null_row), more.f32()[image * steps + std::min(slot, steps - 1)],
                  f.divides(image), y.f32() + i * v, v);
    f.keep(y.f32() + i * v, v, image);
  });
}

// logits [b,c,v], noise [b,c,2], temperature [b] -> token [b,c]
void draw(void*, ort::Context* c) {
  const Tensor x = input(c, 0), noise = input(c, 1), temperature = input(c, 2),
               y = output(c, {x.dims[0], x.dims[1]});
  const int64_t rows = x.dims[0] * x.dims[1], v = x.dims[2];
  each(c, rows, [&](int64_t i) {
    const float* u = noise.f32() + 2 * i;
    y.i64()[i] = arc::draw(x.f32() + i * v, v, u[0], u[1], temperature.f32()[i / x.dims[1]]);
  });
}

// filtered logits [b,c,v], temperature [b]
void laws(void*, ort::Context* c) {
  const Tensor x = input(c, 0), temperature = input(c, 1), p = output(c, x.dims);
  const int64_t v = x.dims[2];
  each(c, x.dims[0] * x.dims[1], [&](int64_t i) {
    float* const own = p.f32() + i * v;
    if (p.data != x.data) std::memcpy(own, x.f32() + i * v, sizeof(float) * static_cast<size_t>(v));
    law(own, v, temperature.f32()[i / x.dims[1]]);
  });
}

// laws [b,k,v], shift [b], guesses [b,w] -> [b,w,v]: the laws moved down; past them, what holds
// nothing but the guess
void slide_laws(void*, ort::Context* c) {
  const Tensor x = input(c, 0), shift = input(c, 1), guess = input(c, 2);
  const int64_t k = x.dims[1], v = x.dims[2], w = guess.dims[1];
  const Tensor y = output(c, {guess.dims[0], w, v});
  each(c, guess.dims[0] * w, [&](int64_t i) {
    const int64_t image = i / w, at = i % w + shift.i64()[image], only = guess.i64()[i];
    float* const to = y.f32() + i * v;
    const size_t bytes = sizeof(float) * static_cast<size_t>(v);
    if (at >= 0 && at < k) {
      std::memcpy(to, x.f32() + (image * k + at) * v, bytes);
    } else {
      std::memset(to, 0, bytes);
      if (only >= 0 && only < v) to[only] = 1;
    }
  });
}

enum Coupling : int64_t { INDEPENDENT, MAXIMAL, GUMBEL };

// The first best of log p + shared. log p is not above 0 but for rounding: few logarithms are taken.
int64_t likeliest(const float* p, const float* shared, int64_t count) {
  constexpr float ROUNDING = 1e-5f;
  float best = -std::numeric_limits<float>::infinity();
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(p[i] > 0) || shared[i] + ROUNDING < best) continue;
    const float here = std::log(p[i]) + shared[i];
    if (here > best) best = here, found = i;
  }
  return found;
}

// p [b,c,v], q (masses of a rejected draft are max(p - q, 0)) or those masses, weight and draft [b,c],
// chance [b,c,1], noise [b,c,2], done [b], how i64[2] (coupling; whether it is q), gumbel [b,c,v] where
// the coupling is by it -> token [b,c], accepted [b]
template <bool SHARED>
void verify(void*, ort::Context* c) {
  const Tensor p = input(c, 0), q = input(c, 1), weight = input(c, 2), draft = input(c, 3),
               chance = input(c, 4), noise = input(c, 5), done = input(c, 6), how = input(c, 7);
  const float* const shared = SHARED ? input(c, 8).f32() : nullptr;
  const int64_t b = p.dims[0], slots = p.dims[1], v = p.dims[2], coupling = how.i64()[0];
  const Tensor token = output(c, {b, slots}), accepted = output(c, {b}, 1);
  each(c, b * slots, [&](int64_t i) {
    const int64_t image = i / slots, slot = i % slots, held = done.i64()[image];
    const auto kept = [&](int64_t k) {
      const int64_t at = image * slots + k;
      return k < held || chance.f32()[at] < weight.f32()[at];
    };
    int64_t first = 0;
    while (first < slots && kept(first)) ++first;
    if (slot == 0) accepted.i64()[image] = std::min(first + 1, slots);
    const float *const own = p.f32() + i * v, *const other = q.f32() + i * v;
    const float* const u = noise.f32() + 2 * i;
    const auto rejected = [&] {
      if (how.i64()[1]) return draw_from(own, other, v, u[0], u[1]);
      return draw_from(lanes().total(other, v) > 0 ? other : own, nullptr, v, u[0], u[1]);
    };
    token.i64()[i] = slot < first || (coupling == MAXIMAL && kept(slot)) ? draft.i64()[i]
                     : slot == first || coupling == MAXIMAL              ? rejected()
                     : SHARED ? likeliest(own, shared + i * v, v)
                              : draw_from(own, nullptr, v, u[0], u[1]);
  });
}

constexpr int F = ort::FLOAT, I = ort::INT64;
const std::array OPS = {
    declare("FilterLogits", {F, F, I, F, I}, {F}, filter, true),
    declare("GuidedFilter", {F, I, I, F, F, I, F, I}, {F}, guided_filter),
    declare("Draw", {F, F, F}, {I}, draw),
    declare("Law", {F, F}, {F}, laws, true),
    declare("SlideLaws", {F, I, I}, {F}, slide_laws),
    declare("Verify", {F, F, F, I, F, F, I, I}, {I, I}, verify<false>),
    declare("VerifyShared", {F, F, F, I, F, F, I, I, F}, {I, I}, verify<true>),
};

}  // namespace

Ops token_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
