// ONNX Runtime, found and loaded at run time; nothing of it is linked.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ort_value.hpp"
#include "tensor.hpp"

namespace arc::ort {

constexpr const char* kCpu = "CPUExecutionProvider";
constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kTensorrt = "TensorrtExecutionProvider";

// Where our kernels for a provider are looked for.
struct Kernels {
  std::string variable, file;
};
Kernels kernels_of(const std::string& provider);

// Of a session. spin: they wait for the next run awake.
struct Threads {
  int count = 1;
  bool spin = true;
};

class Library {
 public:
  // `given` is a file, else ARC_ORT_LIBRARY, the wheel's own file, the system. Throws where there
  // is none, where it is older than 1.28, or where it lacks the provider.
  // `kernels`: the file of our kernels for the provider, else what kernels_of says: a variable, or
  // a file next to this library.
  Library(const std::string& given, const std::string& provider, const std::string& kernels);
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const Api& api() const { return *api_; }
  bool on_device() const { return provider_ != kCpu; }
  std::string about() const { return "onnxruntime " + version_ + " at " + path_; }

  // Throws what ONNX Runtime says, after `what`; returns when there is nothing to say.
  void must(OrtStatus* status, const std::string& what) const;
  // The first line of what it says, and releases it; empty when there is nothing.
  std::string said(OrtStatus* status) const;

  // The one place where a model becomes a session.
  Owned<OrtSession> session(const std::string& path, Threads threads) const;
  // Gives the system what the heap holds and nothing uses.
  void trim() const;
  // Gives back what making sessions took, once: heap, and pages of ONNX Runtime's code.
  void settle() const;
  Owned<OrtIoBinding> binding(OrtSession* session) const;
  // shrink: such a run gives its working memory back.
  Owned<OrtRunOptions> run_options(bool shrink = false) const;
  // Memory of the accelerator that the session runs on, with anything in it.
  Ref room(const OrtSession* session, DType dtype, Shape shape) const;
  // The handle on a tensor, made once.
  OrtValue* value(Tensor& t) const;

 private:
  void load(const std::string& given);
  void check_version();
  void check_provider() const;
  void find_kernels(const std::string& given);
  void use_device(OrtSessionOptions* options, const std::string& folder) const;
  void check_placed(const OrtSession* session) const;

  std::string provider_, path_, version_, kernels_;
  const void* entry_ = nullptr;  // a function of it
  std::unique_ptr<Api> api_;
  Owned<OrtEnv> env_;
  Owned<OrtMemoryInfo> cpu_, device_;
};

// Kinds of the session's nodes that run on the CPU, of those that count no shapes, in order. The
// session must have been told to note where they run.
std::vector<std::string> misplaced(const Library& library, const OrtSession* session);

[[noreturn]] void cannot_run(const std::string& provider, const std::string& why);

// The files that are tried, in order.
std::vector<std::string> candidates(const std::string& given);

}  // namespace arc::ort
