#include <sched.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "loop.hpp"
#include "plan.hpp"
#include "request.hpp"
#include "text.hpp"

namespace arc {

namespace {

constexpr std::int64_t kSmall = 16 << 20;  // bytes of working memory that are kept between runs

int cores() {
#if defined(__linux__)
  cpu_set_t mine;
  CPU_ZERO(&mine);
  if (::sched_getaffinity(0, sizeof mine, &mine) == 0) return std::max(1, CPU_COUNT(&mine));
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

std::string provider_of(const std::string& target) {
  if (target == "ort-cpu") return ort::kCpu;
  if (target == "ort-cuda") return ort::kCuda;
  if (target == "ort-tensorrt") return ort::kTensorrt;
  throw Error("target " + quoted(target) + " cannot be run by this library",
              "build the engine with --target ort-cpu");
}

}  // namespace

class Engine::Impl {
 public:
  Impl(const std::string& folder, const Options& options)
      : bundle_(Bundle::open(folder, options.signed_by)), program_(read_program(bundle_)),
        labels_(bundle_.labels()), defaults_(bundle_.defaults()),
        models_(std::make_shared<ort::Library>(options.ort_library, provider_of(bundle_.word("target")),
                                               options.kernels),
                bundle_.folder, options.threads > 0 ? options.threads : cores(), bundle_.light(),
                program_.loop()) {}

  Output generate(const Request& r) const {
    Ask q = make(facts(), r);
    fit(q);
    Loop loop(program_, models_, q, vocabulary());
    loop.run(true);
    Output out;
    out.tokens = loop.tokens()->array();
    out.timings = loop.timings();
    if (const Ref rounds = loop.rounds()) out.rounds = rounds->array();
    if (const Ref latents = loop.result("latents")) out.latents = latents->array();
    if (const Ref pixels = program_.finish.empty() ? nullptr : loop.result("pixels")) {
      out.pixels = pixels->array();
      out.images = to_uint8(*pixels)->array();
    }
    return out;
  }

  std::pair<Array, Array> logits(const Request& r, const View& tokens) const {
    if (!vocabulary()) no_logits("it draws continuous latents");
    Request plain;
    plain.condition = r.condition;
    plain.guidance = {2.0};
    plain.temperature = {0.0};
    Ask q = make(facts(), plain);
    q.forced = forced(tokens, q.images());
    Loop loop(program_, models_, q, vocabulary());
    loop.keep_logits = true;
    loop.run(false);
    if (loop.logits().empty()) no_logits("");
    return whole(loop, q.images());
  }

  Array encode(const View& pixels) const {
    const Json& m = *bundle_.manifest;
    const Json graphs = m.value("graphs", Json::array());
    if (std::find(graphs.begin(), graphs.end(), "encode") == graphs.end()) {
      throw Error("this engine has no image encoder",
                  "build it with a --decoder file that holds one");
    }
    const std::int64_t side = bundle_.number({"info", "pixels"}, 0);
    const Shape want{pixels.shape.empty() ? 0 : pixels.shape[0], 3, side, side};
    if (pixels.shape != want || pixels.dtype != DType::f32) {
      throw Error("pixels have shape " + shown(pixels.shape) + ", expected [B, 3, " +
                  std::to_string(side) + ", " + std::to_string(side) + "]");
    }
    if (!want[0]) return Tensor::zeros(DType::i64, {0, program_.positions})->array();
    Env env;
    env[models_.slots()["pixels"]] = Tensor::of(pixels);
    Bound(models_.session("encode")).run_each(env, want[0], nullptr);
    const Ref tokens = env[models_.slots()["tokens"]];
    if (!tokens) throw Error("graph encode makes no tokens");
    return tokens->array();
  }

  Plan plan(std::int64_t images, bool guided) const { return arc::plan(bundle_, images, guided); }

  const Bundle& bundle() const { return bundle_; }
  const std::vector<std::string>& labels() const { return labels_; }
  const std::map<std::string, double>& defaults() const { return defaults_; }
  const std::string& family() const { return bundle_.word("family"); }
  std::string runtime() const { return models_.library().about(); }

 private:
  static Program read_program(const Bundle& b) { return Program::parse(b.read("program.json", "program")); }
  std::int64_t vocabulary() const { return bundle_.number({"vocabulary"}, 0); }
  Facts facts() const { return {bundle_, program_, labels_, defaults_, vocabulary()}; }

  // Throws before anything is allocated that this machine has no memory for. What a small finish
  // works in is kept for the next: given back, the heap gets it in pieces and grows by some.
  void fit(Ask& q) const {
    if (!bundle_.has("plan")) return;
    const bool guided = std::any_of(q.guidance.begin(), q.guidance.end(),
                                    [](double g) { return g != 1; });
    const Plan need = arc::plan(bundle_, static_cast<std::int64_t>(q.images()), guided);
    refuse(need, models_.loaded());
    q.large = need.parts.at("decoder") > kSmall;
  }

  [[noreturn]] void no_logits(const std::string& why) const {
    throw Error("family " + family() + " has no logits to show", why);
  }

  Ref forced(const View& tokens, std::size_t images) const {
    const Shape want{static_cast<std::int64_t>(images), program_.positions};
    if (tokens.shape != want) {
      throw Error("tokens have shape " + shown(tokens.shape) + ", expected " + shown(want));
    }
    Ref out = Tensor::of(tokens);
    if (out->dtype != DType::i64) out = out->cast(DType::i64);
    const auto* at = out->as<std::int64_t>();
    const std::int64_t v = vocabulary();
    if (std::any_of(at, at + out->size(), [&](std::int64_t t) { return t < 0 || t >= v; })) {
      throw Error("tokens must be in 0.." + std::to_string(v - 1));
    }
    return out;
  }

  // The logits of the steps in the order of the positions.
  std::pair<Array, Array> whole(const Loop& loop, std::size_t images) const {
    const auto b = static_cast<std::int64_t>(images);
    const std::int64_t v = loop.logits().front().conditional->shape.back();
    const Ref out[2] = {Tensor::zeros(DType::f32, {b, program_.positions, v}),
                        Tensor::zeros(DType::f32, {b, program_.positions, v})};
    for (const auto& one : loop.logits()) {
      const Ref from[2] = {one.conditional, one.unconditional};
      const auto& where = one.step->commit;
      const auto c = static_cast<std::int64_t>(where.size());
      for (int half = 0; half < 2; ++half) {
        if (from[half]->shape != Shape{b, c, v} || from[half]->dtype != DType::f32) {
          throw Error("logits have shape " + shown(from[half]->shape));
        }
        for (std::int64_t i = 0; i < b * c; ++i) {
          const std::int64_t at = i / c * program_.positions + where[static_cast<std::size_t>(i % c)];
          std::memcpy(out[half]->as<float>() + at * v, from[half]->as<float>() + i * v,
                      static_cast<std::size_t>(v) * sizeof(float));
        }
      }
    }
    return {out[0]->array(), out[1]->array()};
  }

  Bundle bundle_;
  Program program_;
  std::vector<std::string> labels_;
  std::map<std::string, double> defaults_;
  Models models_;
};

Engine Engine::open(const std::string& folder, const Options& options) {
  return Engine(std::make_shared<const Impl>(folder, options));
}

Output Engine::generate(const Request& request) const { return impl_->generate(request); }

std::pair<Array, Array> Engine::logits(const Request& request, const View& tokens) const {
  return impl_->logits(request, tokens);
}

Array Engine::encode(const View& pixels) const { return impl_->encode(pixels); }

Plan Engine::plan(std::int64_t images, bool guided) const { return impl_->plan(images, guided); }

const std::string& Engine::family() const { return impl_->family(); }

std::string Engine::manifest() const {
  return impl_->bundle().manifest->dump(1, ' ', false, Json::error_handler_t::replace);
}

const std::vector<std::string>& Engine::labels() const { return impl_->labels(); }

std::map<std::string, double> Engine::defaults() const { return impl_->defaults(); }

std::string Engine::runtime() const { return impl_->runtime(); }

std::size_t Array::size() const { return memory_ ? count(shape_) : 0; }

std::size_t Array::bytes() const { return size() * size_of(dtype_); }

const char* version() noexcept { return ARC_VERSION; }

}  // namespace arc
