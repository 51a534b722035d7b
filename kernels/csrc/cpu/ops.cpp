// The custom ops of domain `arcompile`, for ONNX Runtime's CPU provider. Each is also a function in
// the models that use it, so an engine runs, slower, where this library is not.
#include <algorithm>
#include <array>
#include <mutex>
#include <utility>
#include <vector>

#include "lanes.h"
#include "op.h"

namespace arc {
namespace {

// --- the ops --------------------------------------------------------------------------------------

void swiglu(void*, ort::Context* c) {
  const Tensor gate = input(c, 0), x = input(c, 1), y = output(c, gate.dims);
  const int64_t n = y.count(), parts = n < WORTH ? 1 : cores(), step = (n + parts - 1) / parts;
  each(c, parts, [&](int64_t i) {
    const int64_t from = std::min(i * step, n), to = std::min(from + step, n);
    lanes().swiglu(gate.f32() + from, x.f32() + from, y.f32() + from, to - from);
  });
}

enum Mask : int64_t { FULL, CAUSAL, PREFIX };

// How many keys query i of s sees, when `filled` are there: PREFIX is CAUSAL while nothing is past.
int32_t end_of(int64_t mask, int64_t i, int64_t s, int64_t filled) {
  const bool causal = mask == CAUSAL || (mask == PREFIX && filled == s);
  return static_cast<int32_t>(causal ? filled - s + i + 1 : filled);
}

// q [r,s,heads*width], k and v [r,kv,slots,width], filled i64[r] with the queries' own slots,
// how i64[2] (heads, mask), scale [1] -> like q
void cached_attention(void*, ort::Context* c) {
  const Tensor q = input(c, 0), k = input(c, 1), v = input(c, 2), filled = input(c, 3),
               how = input(c, 4), scale = input(c, 5), out = output(c, q.dims);
  constexpr int64_t TILE = 16;
  const int64_t rows = q.dims[0], s = q.dims[1], heads = how.i64()[0], mask = how.i64()[1];
  const int64_t kv = k.dims[1], slots = k.dims[2], width = k.dims[3], tiles = (s + TILE - 1) / TILE;
  each(c, rows * heads * tiles, [&](int64_t task) {
    const int64_t from = task % tiles * TILE, head = task / tiles % heads, row = task / tiles / heads;
    const int64_t queries = std::min(TILE, s - from), n = std::min(filled.i64()[row], slots);
    int32_t ends[TILE];
    for (int64_t i = 0; i < queries; ++i) ends[i] = std::max(1, end_of(mask, from + i, s, n));
    const int64_t seen = *std::max_element(ends, ends + queries);
    static thread_local std::vector<float> scratch;
    scratch.resize(std::max(scratch.size(), static_cast<size_t>(TILE * (slots + width + 1))));
    const int64_t at = (row * s + from) * heads * width + head * width;
    const int64_t cache = (row * kv + head * kv / heads) * slots * width;
    lanes().attend(q.f32() + at, heads * width, queries, k.f32() + cache, v.f32() + cache, width,
                   seen, ends, scale.f32()[0], scratch.data(), out.f32() + at, heads * width);
  });
}

// x, y [..,n], weight [n], eps [1] -> norm, sum [..,n]
void residual_norm(void*, ort::Context* c) {
  const Tensor x = input(c, 0), y = input(c, 1), weight = input(c, 2), eps = input(c, 3),
               norm = output(c, x.dims), sum = output(c, x.dims, 1);
  const int64_t n = x.dims.back(), rows = n ? x.count() / n : 0;
  const int64_t parts = x.count() < WORTH ? 1 : cores(), step = (rows + parts - 1) / parts;
  each(c, parts, [&](int64_t i) {
    for (int64_t r = i * step; r < std::min((i + 1) * step, rows); ++r)
      lanes().residual_norm(x.f32() + r * n, y.f32() + r * n, weight.f32(), norm.f32() + r * n,
                            sum.f32() + r * n, n, eps.f32()[0]);
  });
}

// x [n,c,...], weight and bias [c], groups i64[1], eps [1] -> like x
template <bool SILU>
void group_norm(void*, ort::Context* c) {
  const Tensor x = input(c, 0), weight = input(c, 1), bias = input(c, 2), groups = input(c, 3),
               eps = input(c, 4), y = output(c, x.dims);
  const int64_t each_group = x.dims[1] / groups.i64()[0], tasks = x.dims[0] * groups.i64()[0];
  const int64_t area = x.dims[0] ? x.count() / x.dims[0] / x.dims[1] : 0;
  each(c, tasks, [&](int64_t task) {
    const int64_t first = task % groups.i64()[0] * each_group, at = task * each_group * area;
    lanes().group_norm(x.f32() + at, weight.f32() + first, bias.f32() + first, y.f32() + at,
                       each_group, area, eps.f32()[0], SILU);
  });
}

constexpr int F = ort::FLOAT, I = ort::INT64;
const std::array OPS = {
    declare("SwiGLU", {F, F}, {F}, swiglu, true),
    declare("CachedAttention", {F, F, F, I, I, F}, {F}, cached_attention),
    declare("ResidualNorm", {F, F, F, F}, {F, F}, residual_norm),
    declare("GroupNorm", {F, F, F, I, F}, {F}, group_norm<false>, true),
    declare("GroupNormSilu", {F, F, F, I, F}, {F}, group_norm<true>, true),
};

// The domain with all ops: one for each copy of ONNX Runtime in the process. Sessions refer to it,
// so it is released when this library goes, which a runtime unloads after its last session.
struct Domains {
  std::mutex lock;
  std::vector<std::pair<const void* const*, ort::Domain*>> made;  // by the runtime's own functions
  ~Domains() {
    for (const auto& [slots, domain] : made) ort::Api{slots}.at<void(ort::Domain*)>(101)(domain);
  }
};

ort::Status* domain_of(const void* const* runtime, ort::Domain** out) {
  static Domains all;
  const std::lock_guard<std::mutex> held(all.lock);
  for (const auto& [slots, domain] : all.made)
    if (slots == runtime) return *out = domain, nullptr;
  ort::Domain* domain = nullptr;
  if (auto* s = api.at<ort::Status*(const char*, ort::Domain**)>(26)("arcompile", &domain)) return s;
  for (const Ops& ops : {Ops{OPS.data(), OPS.size()}, conv_ops(), decode_ops(), linear_ops(), few_ops(),
                        token_ops()})
    for (const Declared& op : ops)
      if (auto* s = api.at<ort::Status*(ort::Domain*, const ort::Op*)>(27)(domain, &op)) return s;
  all.made.emplace_back(runtime, domain);
  return *out = domain, nullptr;
}

}  // namespace
}  // namespace arc

#define ARC_EXPORT extern "C" __attribute__((visibility("default")))

// What onnxruntime calls when a session registers this library.
ARC_EXPORT arc::ort::Status* RegisterCustomOps(arc::ort::Options* options, const arc::ort::Base* base) {
  using namespace arc;
  const void* const* slots = base->api(ort::API);
  if (!slots) return nullptr;  // older than 1.17: models fall back on their own functions
  api.slots = slots;
  ort::Domain* domain = nullptr;
  if (auto* s = domain_of(slots, &domain)) return s;
  return api.at<ort::Status*(ort::Options*, ort::Domain*)>(28)(options, domain);
}
