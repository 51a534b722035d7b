#include "ort_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <sstream>

#include "text.hpp"

namespace arc::ort {

namespace fs = std::filesystem;

namespace {

constexpr int kMajor = 1, kMinor = 28;  // 1.24 to 1.27 compute cached attention wrongly
#if defined(__APPLE__)
constexpr const char* kNames[] = {"libonnxruntime.dylib"};
#else
constexpr const char* kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif

std::string environment(const char* name) {
  const char* found = std::getenv(name);
  return found ? found : "";
}

// <prefix>/lib/python3*/{site,dist}-packages/onnxruntime/capi/libonnxruntime.*
void wheels(const fs::path& prefix, std::vector<std::string>& out) {
  std::error_code none;
  std::set<std::string> found;
  for (const auto& python : fs::directory_iterator(prefix / "lib", none)) {
    if (python.path().filename().string().rfind("python3", 0) != 0) continue;
    for (const char* packages : {"site-packages", "dist-packages"}) {
      const fs::path capi = python.path() / packages / "onnxruntime" / "capi";
      for (const auto& file : fs::directory_iterator(capi, none)) {
        const std::string name = file.path().filename().string();
        const bool providers = name.rfind("libonnxruntime_providers", 0) == 0;
        if (name.rfind("libonnxruntime", 0) == 0 && !providers) found.insert(file.path().string());
      }
    }
  }
  out.insert(out.end(), found.begin(), found.end());
}

std::string one_line(const char* text) {
  std::string line = text ? text : "";
  line = line.substr(line.find_first_not_of(" \n\r\t") == std::string::npos
                         ? line.size() : line.find_first_not_of(" \n\r\t"));
  return line.substr(0, line.find('\n')).substr(0, 300);
}

}  // namespace

std::vector<std::string> candidates(const std::string& given) {
  if (!given.empty()) return {given};
  if (const std::string said = environment("ARC_ORT_LIBRARY"); !said.empty()) return {said};
  std::vector<std::string> out;
  if (const std::string venv = environment("VIRTUAL_ENV"); !venv.empty()) wheels(venv, out);
  std::istringstream path(environment("PATH"));
  for (std::string bin; std::getline(path, bin, ':');) {
    std::error_code none;
    const fs::path python = fs::path(bin) / "python3";
    if (fs::exists(python, none)) wheels(fs::path(bin).parent_path(), out);
  }
  out.insert(out.end(), std::begin(kNames), std::end(kNames));
  return out;
}

Kernels kernels_of(const std::string& provider) {
  if (provider == kCpu) return {"ARC_KERNELS", "libarcompile_ops.so"};
  return {"ARC_CUDA_KERNELS", "libarcompile_cuda_ops.so"};
}

Library::Library(const std::string& given, const std::string& provider,
                 const std::string& kernels)
    : provider_(provider) {
  load(given);
  check_provider();
  find_kernels(kernels);
  OrtEnv* env = nullptr;
  must(api_->CreateEnv(kFatal, "arcompile", &env), "ONNX Runtime cannot start");
  env_ = {env, {api_->ReleaseEnv}};
  OrtMemoryInfo* cpu = nullptr;
  must(api_->CreateCpuMemoryInfo(kArena, kDefaultMemory, &cpu), "ONNX Runtime cannot start");
  cpu_ = {cpu, {api_->ReleaseMemoryInfo}};
  if (!on_device()) return;
  OrtMemoryInfo* device = nullptr;
  must(api_->CreateMemoryInfo("Cuda", kDevice, 0, kDefaultMemory, &device),
       "ONNX Runtime cannot start");
  device_ = {device, {api_->ReleaseMemoryInfo}};
}

// Never unloaded: threads and thread-local data of a runtime outlive its last session.
void Library::load(const std::string& given) {
  std::string why;
  void* library = nullptr;
  const std::vector<std::string> all = candidates(given);
  for (const std::string& file : all) {
    library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    path_ = file;
    if (library) break;
    why = one_line(::dlerror());
  }
  if (!library && all.size() == 1) {
    throw Error("cannot load ONNX Runtime: " + why,
                "set ARC_ORT_LIBRARY to a libonnxruntime.so, 1.28 or newer", Code::machine);
  }
  if (!library) {
    throw Error("onnxruntime is not installed",
                "pip install 'onnxruntime>=1.28', or set ARC_ORT_LIBRARY to a libonnxruntime.so",
                Code::machine);
  }
  using Entry = const ApiBase* (*)();
  const auto entry = reinterpret_cast<Entry>(::dlsym(library, "OrtGetApiBase"));
  if (!entry) {
    throw Error(path_ + " is not ONNX Runtime: it has no OrtGetApiBase",
                "set ARC_ORT_LIBRARY to a libonnxruntime.so, 1.28 or newer", Code::machine);
  }
  entry_ = reinterpret_cast<const void*>(entry);
  version_ = entry()->GetVersionString();
  check_version();
  const void* table = entry()->GetApi(kApiVersion);
  if (!table) throw Error("onnxruntime " + version_ + " has no API " + std::to_string(kApiVersion));
  api_ = std::make_unique<Api>(table);
}

void Library::check_version() {
  int major = 0, minor = 0;
  char dot = 0;
  std::istringstream(version_) >> major >> dot >> minor;
  if (major < kMajor || (major == kMajor && minor < kMinor)) {
    throw Error("onnxruntime " + version_ +
                    " is too old (cached attention is wrong): >= 1.28",
                "arcompile doctor tells what is missing", Code::machine);
  }
}

void Library::check_provider() const {
  char** names = nullptr;
  int n = 0;
  must(api_->GetAvailableProviders(&names, &n), "ONNX Runtime cannot start");
  const bool has = std::any_of(names, names + n, [&](const char* p) { return provider_ == p; });
  said(api_->ReleaseAvailableProviders(names, n));
  if (!has) {
    throw Error("this onnxruntime has no " + provider_, "arcompile doctor tells what is missing",
                Code::machine);
  }
}

// Models name these kernels' ops as functions, so they run without the library too.
void Library::find_kernels(const std::string& given) {
  const auto [variable, file] = kernels_of(provider_);
  const std::string wanted = given.empty() ? environment(variable.c_str()) : given;
  std::error_code none;
  if (wanted == "off") return;
  if (!wanted.empty()) {
    if (!fs::is_regular_file(wanted, none)) {
      throw Error(variable + " is " + quoted(wanted) + ", which is not a file",
                  variable + "=off uses none", Code::machine);
    }
    kernels_ = wanted;
    return;
  }
  Dl_info here = {};
  if (!::dladdr(reinterpret_cast<const void*>(&version), &here) || !here.dli_fname) return;
  const fs::path beside = fs::path(here.dli_fname).parent_path() / file;
  if (fs::is_regular_file(beside, none)) kernels_ = beside.string();
}

std::string Library::said(OrtStatus* status) const {
  if (!status) return "";
  const std::string text = one_line(api_->GetErrorMessage(status));
  api_->ReleaseStatus(status);
  return text.empty() ? "it does not say why" : text;
}

void Library::must(OrtStatus* status, const std::string& what) const {
  if (const std::string text = said(status); !text.empty()) {
    throw Error(what + ": " + text, "", Code::machine);
  }
}

Owned<OrtSession> Library::session(const std::string& path, Threads threads) const {
  const std::string what = "ONNX Runtime refuses " + fs::path(path).filename().string();
  OrtSessionOptions* raw = nullptr;
  must(api_->CreateSessionOptions(&raw), what);
  const Owned<OrtSessionOptions> options{raw, {api_->ReleaseSessionOptions}};
  must(api_->SetIntraOpNumThreads(raw, threads.count), what);
  if (!threads.spin) {
    must(api_->AddSessionConfigEntry(raw, "session.force_spinning_stop", "1"), what);
  }
  must(api_->SetSessionLogSeverityLevel(raw, kFatal), what);  // errors are ours to tell
  must(api_->DisableMemPattern(raw), what);  // it plans for the largest shapes seen and keeps them
  // activations beside 8-bit weights stay what they are, not rounded to 8 bits in passing
  must(api_->AddSessionConfigEntry(raw, "session.qdq_matmulnbits_accuracy_level", "1"), what);
  if (on_device()) use_device(raw, fs::path(path).parent_path().string());
  if (!kernels_.empty()) must(api_->RegisterCustomOpsLibrary_V2(raw, kernels_.c_str()), what);
  OrtSession* session = nullptr;
  if (const std::string why = said(api_->CreateSession(env_.get(), path.c_str(), raw, &session));
      !why.empty()) {
    if (on_device()) cannot_run(provider_, why);
    throw Error(what + ": " + why, "onnxruntime>=1.28 is needed; then rebuild the engine",
                Code::machine);
  }
  Owned<OrtSession> made{session, {api_->ReleaseSession}};
  if (on_device()) check_placed(session);
  return made;
}

Owned<OrtIoBinding> Library::binding(OrtSession* session) const {
  OrtIoBinding* made = nullptr;
  must(api_->CreateIoBinding(session, &made), "ONNX Runtime cannot bind");
  return {made, {api_->ReleaseIoBinding}};
}

Owned<OrtRunOptions> Library::run_options(bool shrink) const {
  OrtRunOptions* raw = nullptr;
  must(api_->CreateRunOptions(&raw), "ONNX Runtime cannot run");
  Owned<OrtRunOptions> made{raw, {api_->ReleaseRunOptions}};
  if (shrink) {
    must(api_->AddRunConfigEntry(raw, "memory.enable_memory_arena_shrinkage", "cpu:0"),
         "ONNX Runtime cannot run");
  }
  return made;
}

OrtValue* Library::value(Tensor& t) const {
  if (!t.value) {
    static constexpr int kTypes[] = {1, 10, 16, 11, 7, 6, 3, 2, 9};  // in the order of DType
    OrtValue* made = nullptr;
    static char none;  // an empty tensor still needs an address
    must(api_->CreateTensorWithDataAsOrtValue(
             t.device ? device_.get() : cpu_.get(), t.data ? t.data : &none, t.bytes(), t.shape.data(), t.shape.size(),
             kTypes[static_cast<int>(t.dtype)], &made),
         "ONNX Runtime takes no such tensor");
    t.value = {made, {api_->ReleaseValue}};
  }
  return t.value.get();
}

}  // namespace arc::ort
