// Attention of a decoding step in one op: rotary on query and key, key and value appended to their
// caches where those lie, and the new queries over all that is filled.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "op.h"

namespace arc {
namespace {

// One head at a position: its numbers turn in pairs that lie side by side, or `half` apart.
void turn(const float* x, const float* cos, const float* sin, float* y, int64_t half, bool pairs) {
  const int64_t step = pairs ? 2 : 1, other = pairs ? 1 : half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i * step], b = x[i * step + other];
    y[i * step] = a * cos[i] - b * sin[i];
    y[i * step + other] = b * cos[i] + a * sin[i];
  }
}

// `count` numbers, where they are not there already.
void copy(const float* from, float* to, int64_t count) {
  if (from != to) std::memcpy(to, from, sizeof(float) * static_cast<size_t>(count));
}

// qkv [r,s,(h+2g)*e], caches k and v [r,g,slots,e], last i32[r] (slot of the last query), most (of
// them; for the function alone), cos and sin [positions,e/2], how i64[3] (h, g, pairs), scale [1]
// -> out [r,s,h*e], the caches. A task is one head of keys and the heads of queries that read it.
void decode_attention(void*, ort::Context* c) {
  const Tensor qkv = input(c, 0), k = input(c, 1), cos = input(c, 5);
  const float *const v = numbers(c, 2), *const sin = numbers(c, 6), scale = *numbers(c, 8);
  const int32_t* const last = numbers<int32_t>(c, 3);
  const int64_t* const how = numbers<int64_t>(c, 7);
  constexpr int64_t TILE = 16;
  const int64_t rows = qkv.dims[0], s = qkv.dims[1], stride = qkv.dims[2], heads = how[0];
  const int64_t kv = how[1], slots = k.dims[2], width = k.dims[3], half = width / 2;
  const bool pairs = how[2] != 0;
  const Tensor out = output(c, {rows, s, heads * width}), keys = output(c, k.dims, 1),
               values = output(c, k.dims, 2);
  each(c, rows * kv, [&](int64_t task) {
    const int64_t row = task / kv, head = task % kv, cache = task * slots * width;
    // nobody writes beyond a cache, whatever `last` says
    const int64_t room = std::max<int64_t>(slots - s, 0), count = std::min(s, slots);
    const int64_t begin = std::clamp<int64_t>(int64_t{last[row]} + 1 - s, 0, room);
    const auto angle = [&](int64_t i) { return std::min(begin + i, cos.dims[0] - 1) * half; };
    float *const own_k = keys.f32() + cache, *const own_v = values.f32() + cache;
    copy(k.f32() + cache, own_k, slots * width);
    copy(v + cache, own_v, slots * width);
    for (int64_t i = 0; i < count; ++i) {
      const float* const from = qkv.f32() + (row * s + i) * stride + (heads + head) * width;
      const int64_t at = (begin + i) * width;
      turn(from, cos.f32() + angle(i), sin + angle(i), own_k + at, half, pairs);
      copy(from + kv * width, own_v + at, width);
    }
    static thread_local std::vector<float> held;
    held.resize(std::max(held.size(), static_cast<size_t>(TILE * (slots + 2 * width + 1))));
    float *const turned = held.data(), *const scratch = turned + TILE * width;
    for (int64_t h = head * heads / kv; h < (head + 1) * heads / kv; ++h)
      for (int64_t first = 0; first < count; first += TILE) {
        const int64_t queries = std::min(TILE, count - first);
        int32_t ends[TILE];
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t at = first + i;
          ends[i] = static_cast<int32_t>(begin + at + 1);
          turn(qkv.f32() + (row * s + at) * stride + h * width, cos.f32() + angle(at),
               sin + angle(at), turned + i * width, half, pairs);
        }
        lanes().attend(turned, width, queries, own_k, own_v, width, ends[queries - 1], ends,
                       scale, scratch, out.f32() + ((row * s + first) * heads + h) * width,
                       heads * width);
      }
  });
}

constexpr int F = ort::FLOAT, I = ort::INT64, S = ort::INT32;
const std::array OPS = {
    declare("DecodeAttention", {F, F, F, S, S, F, F, I, F}, {F, F, F}, decode_attention),
};

}  // namespace

Ops decode_ops() { return {OPS.data(), OPS.size()}; }

}  // namespace arc
