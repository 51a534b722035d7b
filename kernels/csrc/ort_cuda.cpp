// The CUDA kernels as custom ops of domain `arcompile`, for ONNX Runtime's CUDA provider. Each is also
// a function in the models that use it, so an engine runs, slower, where this library is not. Without
// ARC_CUDA the kernels are emulated and the ops are the CPU provider's: the plumbing can then be
// checked where no GPU is.
#include <algorithm>
#include <array>
#include <atomic>

#include "cpu/op.h"

#define ARC_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
int arc_add_norm(int dtype, const void* x, const void* y, const void* gate, const void* weight,
                 const void* bias, const void* scale, const void* shift, void* out, void* total, int n,
                 int d, int rows, float eps, float one, int layer, int threads, void* stream);
int arc_logits_chain(int dtype, const void* logits, const void* row, const void* null_row,
                     const void* scale, const void* temperature, const void* top_k, const void* top_p,
                     const void* most, const void* noise, void* token, int cells, int c, int v,
                     int threads, void* stream);
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
                               static_cast<int>(v), threads(v / 8), stream(c)));
}

struct OnDevice : Declared {
  size_t host;  // the input that stays on the host, if there is one
};

OnDevice on_device(const char* title, std::vector<int> in, int out,
                   ort::Status* (*compute)(void*, ort::Context*), size_t host = SIZE_MAX) {
  OnDevice op{declare(title, std::move(in), {out}, nullptr), host};
  op.provider = [](const ort::Op*) { return PROVIDER; };
  op.compute_v2 = compute;
  op.create_v2 = [](const ort::Op* o, const void*, const ort::Info*, void** kernel) -> ort::Status* {
    *kernel = const_cast<void*>(static_cast<const void*>(o));
    return nullptr;
  };
  op.input_memory = [](const ort::Op* o, size_t i) {
    return PROVIDER && static_cast<const OnDevice*>(o)->host == i ? HOST : 0;
  };
  return op;
}

constexpr int F = ort::FLOAT, H = FLOAT16, B = ort::BFLOAT16, I = ort::INT64;
const std::array OPS = {
    on_device("AdaNorm", {F, F, F, F, F}, F, ada_norm<0>, 4),
    on_device("AdaNormF16", {H, H, H, H, F}, H, ada_norm<1>, 4),
    on_device("AdaNormBF16", {B, B, B, B, F}, B, ada_norm<2>, 4),
    on_device("LogitsChain", {F, I, I, F, F, I, F, I, F}, I, logits_chain),
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
