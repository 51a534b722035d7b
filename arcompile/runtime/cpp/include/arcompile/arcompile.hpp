// libarcompile: opens an engine folder and draws pictures. C++17, no Python, no ORT headers.
//
//   arc::Engine engine = arc::Engine::open("engine");
//   arc::Output out = engine.generate(arc::Request{arc::Classes{7}});
//
// Everything that goes wrong is an arc::Error with `what` and `hint`. Engines may be used from
// several threads; each call has buffers of its own.
#pragma once

#include <algorithm>
#include <arcompile/export.h>
#include <arcompile/version.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace arc {

// Who can put an error right: the caller, the machine's owner, nobody needs to, or we.
enum class Code { theirs = 1, machine = 2, cancelled = 3, internal = 4 };

// `what` is one lower-case line with the values in it; `hint` is the next step, or empty.
class ARC_API Error : public std::exception {
 public:
  explicit Error(std::string what, std::string hint = "", Code code = Code::theirs)
      : what_(std::move(what)), hint_(std::move(hint)), code_(code) {}
  const char* what() const noexcept override { return what_.c_str(); }
  const std::string& hint() const noexcept { return hint_; }
  Code code() const noexcept { return code_; }

 private:
  std::string what_, hint_;
  Code code_;
};

enum class DType { f32, f16, bf16, f64, i64, i32, i8, u8, boolean };

using Shape = std::vector<std::int64_t>;

// A tensor that the caller owns, dense and row-major; it must outlive the call it is given to.
struct View {
  DType dtype = DType::f32;
  Shape shape;
  const void* data = nullptr;
};

// A tensor that the library made: dense, row-major, in host memory. Copies share the memory.
class ARC_API Array {
 public:
  Array() = default;
  Array(DType dtype, Shape shape, std::shared_ptr<const void> memory)
      : dtype_(dtype), shape_(std::move(shape)), memory_(std::move(memory)) {}
  explicit operator bool() const { return memory_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::size_t size() const;   // elements; none of what is not there
  std::size_t bytes() const;
  const void* raw() const { return memory_.get(); }
  template <class T>
  const T* data() const { return static_cast<const T*>(memory_.get()); }

 private:
  DType dtype_ = DType::f32;
  Shape shape_;
  std::shared_ptr<const void> memory_;
};

// Ends a run from another thread, or from a callback: the run throws Code::cancelled.
class ARC_API Stop {
 public:
  Stop();
  void stop() noexcept;  // ends every run that was given a copy of this, now and later
  bool stopped() const noexcept;

 private:
  friend class Cancel;
  struct State;
  std::shared_ptr<State> state_;
};

// What on_step sees after each step; valid during the call.
struct Progress {
  std::size_t step, steps, images, positions;
  const std::int64_t* tokens;      // [images, positions], -1 where nothing is committed yet
  // The picture so far, f32 [images,3,H,W] or u8 [images,H,W,3]; each call costs a decoding, and
  // changes nothing that is drawn later.
  std::function<Array()> pixels, preview;
};

using Classes = std::vector<std::int64_t>;
using Names = std::vector<std::string>;                  // class names
using Prompts = std::vector<std::vector<std::int64_t>>;  // token ids, one prompt each
using Inputs = std::map<std::string, View>;              // by the program's input names

// What to draw: n pictures of each condition. Numbers hold one value for all pictures, one per
// condition, or one per picture.
struct Request {
  std::variant<Classes, Names, Prompts, Inputs> condition;
  std::int64_t n = 1;
  std::vector<std::uint64_t> seed{0};
  std::vector<double> guidance{};     // empty: the engine's default
  std::optional<std::int64_t> guidance_interval{};  // only until so many tokens follow the first
  std::vector<double> temperature{1.0};
  std::vector<double> top_k{0.0};
  std::vector<double> top_p{1.0};
  // Noise in place of draws, by name: f32 [B,N,width], i64 [B,N] of an order, or f32
  // [B,N,turns,width] of noise that a loop draws anew each turn.
  Inputs given{};
  // Where it returns false, the picture stays as it is; what it throws passes through.
  std::function<bool(const Progress&)> on_step{};
  std::optional<Stop> stop{};
};

// Seconds. `steps` has one entry each; `sessions` is the part of `loop` that ONNX Runtime took.
struct Timings {
  double prompt = 0, loop = 0, finish = 0, total = 0, sessions = 0;
  std::vector<double> steps;
};

// B pictures. tokens i64 [B,N]; pixels f32 [B,3,H,W], nominally in [-1,1], and images u8 [B,H,W,3]
// (both empty without a decoder); latents f32 [B,N,C] of families that draw no tokens, whose
// `tokens` are [B,0]; rounds i64 [rounds,B] of engines that draft: the positions each picture
// committed in each round.
struct Output {
  Array tokens, pixels, images, latents, rounds;
  Timings timings;
};

// Bytes that a run of `images` pictures needs, by name: the runtime itself, the weights of the
// graphs that run, state (caches), activations of the loop, decoder (its activations), pictures.
struct Plan {
  std::int64_t images;
  bool guided;
  std::map<std::string, std::int64_t> parts;
  std::int64_t total() const {  // caches are gone when pictures are made of what was drawn
    const std::int64_t drawn = parts.at("decoder") + parts.at("pictures");
    return parts.at("runtime") + parts.at("weights") + parts.at("activations") +
           std::max(parts.at("state"), drawn);
  }
};

struct Options {
  int threads = 0;           // of one session; 0: one per core this process may use
  std::string ort_library{};  // path; else ARC_ORT_LIBRARY, the wheel's own file, the system
  // Path of our kernels, libarcompile_ops.so (of the CPU) or libarcompile_cuda_ops.so (of ort-cuda
  // and ort-tensorrt engines); else ARC_KERNELS or ARC_CUDA_KERNELS, else the file next to this
  // library. "off" for none: engines run without, slower.
  std::string kernels{};
  // A public key (PEM, Ed25519) that must have signed the engine. Needs OpenSSL's libcrypto, which
  // is loaded then: ARC_CRYPTO_LIBRARY, else where the system looks.
  std::string signed_by{};
};

class ARC_API Engine {
 public:
  // Reads and checks every byte of the folder, and finds ONNX Runtime.
  static Engine open(const std::string& folder, const Options& options = {});

  Output generate(const Request& request) const;
  // (conditional, unconditional) logits f32 [B,N,V] with tokens i64 [B,N] forced, step by step.
  std::pair<Array, Array> logits(const Request& request, const View& tokens) const;
  // Tokens i64 [B,N] of pixels f32 [B,3,H,W] in [-1,1], where the engine has an encoder.
  Array encode(const View& pixels) const;
  Plan plan(std::int64_t images, bool guided = true) const;

  const std::string& family() const;
  std::string manifest() const;                  // manifest.json as it is
  const std::vector<std::string>& labels() const;
  std::map<std::string, double> defaults() const;  // guidance, temperature, top_k, top_p
  std::string runtime() const;                   // ONNX Runtime's version and file

 private:
  class Impl;
  explicit Engine(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

ARC_API const char* version() noexcept;  // of the library; ARC_VERSION is that of the headers

}  // namespace arc
