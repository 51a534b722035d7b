// The CUDA kernels as custom ops of domain `arcompile`, for ONNX Runtime's CUDA provider. Each is also
// a function in the models that use it, so an engine runs, slower, where this library is not. Without
// ARC_CUDA the kernels are emulated and the ops are the CPU provider's: the plumbing can then be
// checked where no GPU is.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "cpu/op.h"

#ifdef ARC_CUDA
#include <cuda_runtime.h>
#endif

#define ARC_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
int arc_add_norm(int dtype, const void* x, const void* y, const void* gate, const void* weight,
                 const void* bias, const void* scale, const void* shift, void* out, void* total, int n,
                 int d, int rows, float eps, float one, int layer, int threads, void* stream);
int arc_logits_chain(int dtype, const void* logits, const void* row, const void* null_row,
                     const void* scale, const void* temperature, const void* top_k, const void* top_p,
                     const void* most, const void* noise, void* token, int cells, int c, int v,
                     void* stream);
int arc_flash_decode(int dtype, int kv, const void* q, const void* k, const void* v, int q_row, int kv_row,
                     void* kc, void* vc, void* ks, void* vs, const void* past, int table, const void* cos,
                     const void* sin, int positions, int pairs, void* out, void* part, int r, int heads,
                     int kv_heads, int e, int slots, int splits, int chunk, int warps, float scale, void* stream);
int arc_append(int dtype, const void* q, const void* k, const void* v, int q_row, int kv_row, void* kc,
               void* vc, const void* past, int table, const void* cos, const void* sin, int positions,
               int pairs, void* turned, int r, int s, int heads, int kv_heads, int e, int slots,
               void* stream);
int arc_range_attention(int dtype, const void* q, const void* k, const void* v, const void* start,
                        const void* end, const void* past, int mask, const void* lengths,
                        const void* pages, int count, void* out, int r, int s, int heads, int kv_heads,
                        int e, int slots, float scale, void* stream);
int arc_group_norm_silu(int dtype, const void* x, const void* w, const void* b, void* out, void* part,
                        int n, int groups, int per, int hw, int chunk, float eps, int silu, int threads,
                        void* stream);
}

namespace arc {
namespace {

#ifdef ARC_CUDA
constexpr const char* PROVIDER = "CUDAExecutionProvider";
#else
constexpr const char* PROVIDER = nullptr;
#endif
constexpr int HOST = -2, FLOAT16 = 10;  // OrtMemTypeCPUInput; an element type
constexpr int FAIL = 1;                 // ORT_FAIL
std::atomic<int64_t> launches{0};

void* stream(const ort::Context* c) {
  void* s = nullptr;
  api.at<ort::Status*(const ort::Context*, void**)>(193)(c, &s);  // null of a CPU
  return s;
}

ort::Status* done(int code) {
  ++launches;
  if (!code) return nullptr;
  return api.at<ort::Status*(int, const char*)>(0)(FAIL, "a CUDA kernel of arcompile did not start");
}

// A tensor's bytes to another place, where they are not there already.
int copied(const Tensor& from, const Tensor& to, int64_t width, void* stream) {
  if (from.data == to.data) return 0;
  const auto bytes = static_cast<size_t>(from.count() * width);
#ifdef ARC_CUDA
  return cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice,
                         static_cast<cudaStream_t>(stream));
#else
  (void)stream;
  std::memcpy(to.data, from.data, bytes);
  return 0;
#endif
}

// A block for `work` items: a power of two of whole warps.
int threads(int64_t work) {
  int n = 32;
  while (n < work && n < 1024) n *= 2;
  return n;
}

// x [r,s,d], ones [d] (which only the function reads), scale and shift [r,1,d], eps [1] -> like x
template <int DTYPE>
ort::Status* ada_norm(void*, ort::Context* c) {
  const Tensor x = input(c, 0), scale = input(c, 2), shift = input(c, 3), eps = input(c, 4),
               y = output(c, x.dims);
  const int64_t s = x.dims[1], d = x.dims[2], n = x.dims[0] * s;
  if (!n || !d) return nullptr;
  return done(arc_add_norm(DTYPE, x.data, nullptr, nullptr, nullptr, nullptr, scale.data, shift.data,
                           y.data, nullptr, static_cast<int>(n), static_cast<int>(d),
                           static_cast<int>(s), eps.f32()[0], 0.0f, 1, threads(d / 4), stream(c)));
}

// logits [r,c,v], row and null_row [b], scale, temperature, top_k and top_p [b], most [1],
// noise [b,c,2] -> token [b,c]
ort::Status* logits_chain(void*, ort::Context* c) {
  std::array<Tensor, 9> in;
  for (size_t i = 0; i < in.size(); ++i) in[i] = input(c, i);
  const int64_t b = in[8].dims[0], each = in[8].dims[1], v = in[0].dims[2];
  const Tensor token = output(c, {b, each});
  if (!b || !each) return nullptr;
  return done(arc_logits_chain(0, in[0].data, in[1].data, in[2].data, in[3].data, in[4].data,
                               in[5].data, in[6].data, in[7].data, in[8].data, token.data,
                               static_cast<int>(b * each), static_cast<int>(each),
                               static_cast<int>(v), stream(c)));
}

constexpr int64_t FEW = 128;   // heads that leave most of a large GPU to each
constexpr int64_t LONG = 320;  // slots that one block of such takes

// qkv [r,s,(h+2g)*e], caches k and v [r,g,slots,e], past i32[r], cos and sin [positions,e/2], how i64[4]
// (h, g, pairs, mask) and scale [1] on the host -> out [r,s,h*e], the caches, and room to work in. One
// new token a row is flash_decode's; several are appended and then range_attention's.
template <int DTYPE>
ort::Status* flash_decode(void*, ort::Context* c) {
  const Tensor qkv = input(c, 0), k = input(c, 1), v = input(c, 2), past = input(c, 3),
               cos = input(c, 4), sin = input(c, 5), how = input(c, 6), scale = input(c, 7);
  constexpr int64_t WIDTH = DTYPE ? 2 : 4;
  const int64_t r = qkv.dims[0], s = qkv.dims[1], heads = how.i64()[0], groups = how.i64()[1];
  const int64_t slots = k.dims[2], e = k.dims[3], stride = qkv.dims[2], each = heads * r;
  int64_t splits = each > FEW ? 4 : slots <= LONG ? 1 : 16;  // as was quickest on an H100
  const int64_t chunk = ((slots + splits - 1) / splits + 31) / 32 * 32;
  splits = std::max<int64_t>((slots + chunk - 1) / chunk, 1);
  const int64_t work = s == 1 ? each * splits * (e + 2) : (each * s * e * WIDTH + 3) / 4;
  const Tensor out = output(c, {r, s, heads * e}), keys = output(c, k.dims, 1),
               values = output(c, v.dims, 2), room = output(c, {work}, 3);
  if (!r || !s) return nullptr;
  void* const on = stream(c);
  int code = copied(k, keys, WIDTH, on);
  if (!code) code = copied(v, values, WIDTH, on);
  const auto at = [&](int64_t numbers) { return static_cast<char*>(qkv.data) + numbers * WIDTH; };
  const void *const key = at(heads * e), *const value = at((heads + groups) * e);
  const auto n = [](int64_t x) { return static_cast<int>(x); };
  const int pairs = n(how.i64()[2]), mask = n(how.i64()[3]), row = n(stride);
  if (!code && s == 1)
    code = arc_flash_decode(DTYPE, 0, qkv.data, key, value, row, row, keys.data, values.data, nullptr,
                            nullptr, past.data, DTYPE, cos.data, sin.data, n(cos.dims[0]), pairs, out.data,
                            room.data, n(r), n(heads), n(groups), n(e), n(slots), n(splits), n(chunk),
                            0, scale.f32()[0], on);
  if (code || s == 1) return done(code);
  code = arc_append(DTYPE, qkv.data, key, value, row, row, keys.data, values.data, past.data, DTYPE,
                    cos.data, sin.data, n(cos.dims[0]), pairs, room.data, n(r), n(s), n(heads), n(groups),
                    n(e), n(slots), on);
  if (!code)
    code = arc_range_attention(DTYPE, room.data, keys.data, values.data, nullptr, nullptr, past.data, mask,
                               nullptr, nullptr, 0, out.data, n(r), n(s), n(heads), n(groups), n(e),
                               n(slots), scale.f32()[0], on);
  return done(code);
}

// q [r,s,h*e], caches k and v [r,g,slots,e] that hold the queries' own slots, past i32[r], how i64[2] (h,
// mask) and scale [1] on the host -> like q
template <int DTYPE>
ort::Status* range_attention(void*, ort::Context* c) {
  const Tensor q = input(c, 0), k = input(c, 1), v = input(c, 2), past = input(c, 3), how = input(c, 4),
               scale = input(c, 5), out = output(c, q.dims);
  if (!q.count()) return nullptr;
  const auto n = [](int64_t x) { return static_cast<int>(x); };
  return done(arc_range_attention(DTYPE, q.data, k.data, v.data, nullptr, nullptr, past.data,
                                  n(how.i64()[1]), nullptr, nullptr, 0, out.data, n(q.dims[0]),
                                  n(q.dims[1]), n(how.i64()[0]), n(k.dims[1]), n(k.dims[3]), n(k.dims[2]),
                                  scale.f32()[0], stream(c)));
}

constexpr int64_t CHUNK = 8192;  // numbers of a group that a block takes

// x [n,c,..], w and b [c], groups i64[1] and eps [1] on the host -> like x, and room to work in
template <int DTYPE, int SILU>
ort::Status* group_norm(void*, ort::Context* c) {
  const Tensor x = input(c, 0), w = input(c, 1), b = input(c, 2), told = input(c, 3), eps = input(c, 4),
               out = output(c, x.dims);
  const int64_t n = x.dims[0], groups = told.i64()[0], per = x.dims[1] / groups;
  const int64_t hw = n ? x.count() / (n * x.dims[1]) : 0, size = per * hw;
  const Tensor room = output(c, {n * groups * ((size + CHUNK - 1) / CHUNK) * 2}, 1);
  if (!x.count()) return nullptr;
  return done(arc_group_norm_silu(DTYPE, x.data, w.data, b.data, out.data, room.data,
                                  static_cast<int>(n), static_cast<int>(groups), static_cast<int>(per),
                                  static_cast<int>(hw), static_cast<int>(CHUNK), eps.f32()[0], SILU,
                                  std::min(threads(std::min(size, CHUNK) / 4), 256), stream(c)));
}

struct OnDevice : Declared {
  size_t host;  // inputs from this one on stay on the host
};

OnDevice on_device(const char* title, std::vector<int> in, std::vector<int> out,
                   ort::Status* (*compute)(void*, ort::Context*), size_t host = SIZE_MAX) {
  OnDevice op{declare(title, std::move(in), std::move(out), nullptr), host};
  op.provider = [](const ort::Op*) { return PROVIDER; };
  op.compute_v2 = compute;
  op.create_v2 = [](const ort::Op* o, const void*, const ort::Info*, void** kernel) -> ort::Status* {
    *kernel = const_cast<void*>(static_cast<const void*>(o));
    return nullptr;
  };
  op.input_memory = [](const ort::Op* o, size_t i) {
    return PROVIDER && i >= static_cast<const OnDevice*>(o)->host ? HOST : 0;
  };
  return op;
}

constexpr int F = ort::FLOAT, H = FLOAT16, B = ort::BFLOAT16, I = ort::INT64, S = ort::INT32;

template <int DTYPE>
OnDevice norm(const char* title, int t) {
  return on_device(title, {t, t, t, t, F}, {t}, ada_norm<DTYPE>, 4);
}

template <int DTYPE>
OnDevice decode(const char* title, int t) {
  return on_device(title, {t, t, t, S, t, t, I, F}, {t, t, t, F}, flash_decode<DTYPE>, 6);
}

template <int DTYPE>
OnDevice attention(const char* title, int t) {
  return on_device(title, {t, t, t, S, I, F}, {t}, range_attention<DTYPE>, 4);
}

template <int DTYPE, int SILU>
OnDevice groups(const char* title, int t) {
  return on_device(title, {t, t, t, I, F}, {t, F}, group_norm<DTYPE, SILU>, 3);
}

const std::array OPS = {
    norm<0>("AdaNorm", F), norm<1>("AdaNormF16", H), norm<2>("AdaNormBF16", B),
    decode<0>("FlashDecode", F), decode<1>("FlashDecodeF16", H), decode<2>("FlashDecodeBF16", B),
    attention<0>("RangeAttention", F), attention<1>("RangeAttentionF16", H),
    attention<2>("RangeAttentionBF16", B),
    groups<0, 0>("GroupNorm", F), groups<1, 0>("GroupNormF16", H), groups<2, 0>("GroupNormBF16", B),
    groups<0, 1>("GroupNormSilu", F), groups<1, 1>("GroupNormSiluF16", H),
    groups<2, 1>("GroupNormSiluBF16", B),
    on_device("LogitsChain", {F, I, I, F, F, I, F, I, F}, {I}, logits_chain),
};

}  // namespace
}  // namespace arc

// How often a kernel was started.
ARC_EXPORT int64_t arcompile_cuda_launches() { return arc::launches; }

// What onnxruntime calls when a session registers this library. The domain stays as long as the
// process: a runtime unloads no library that holds CUDA kernels.
ARC_EXPORT arc::ort::Status* RegisterCustomOps(arc::ort::Options* options, const arc::ort::Base* base) {
  using namespace arc;
  const void* const* slots = base->api(ort::API);
  if (!slots) return nullptr;  // older than 1.17: models fall back on their own functions
  static ort::Domain* domain = nullptr;
  static const void* const* made_by = nullptr;
  if (!domain || made_by != slots) {
    api.slots = slots;
    made_by = slots;
    if (auto* s = api.at<ort::Status*(const char*, ort::Domain**)>(26)("arcompile", &domain)) return s;
    for (const OnDevice& op : OPS)
      if (auto* s = api.at<ort::Status*(ort::Domain*, const ort::Op*)>(27)(domain, &op)) return s;
  }
  return api.at<ort::Status*(ort::Options*, ort::Domain*)>(28)(options, domain);
}
