// What ONNX Runtime needs to be told to run on an NVIDIA GPU, and what it did with it.
#include <algorithm>
#include <iterator>
#include <set>

#include "ort_library.hpp"
#include "text.hpp"

namespace arc::ort {

namespace {

// The reasons for these are in arcompile/targets/ort_cuda.py, whose they are.
constexpr const char* kCudaOptions[][2] = {{"arena_extend_strategy", "kSameAsRequested"},
                                           {"cudnn_conv_algo_search", "HEURISTIC"},
                                           {"use_tf32", "0"},
                                           {"do_copy_in_default_stream", "1"}};

// Kinds of nodes that count no shapes: as in arcompile/targets/ort.py.
constexpr const char* kHeavy[] = {
    "Attention", "Conv", "CumSum", "Erf", "Exp", "GatherND", "Gelu", "Gemm",
    "GroupQueryAttention", "InstanceNormalization", "LayerNormalization", "MatMul",
    "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QLinearConv", "QuickGelu",
    "Resize", "RotaryEmbedding", "Sigmoid", "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization", "Softmax", "Tanh", "TensorScatter", "TopK"};

}  // namespace

void cannot_run(const std::string& provider, const std::string& why) {
  throw Error("ONNX Runtime cannot run on " + provider + ": " + why,
              "pip install 'onnxruntime-gpu[cuda,cudnn]>=1.28' (in place of onnxruntime), or use "
              "--target ort-cpu",
              Code::machine);
}

// Appending fails where the provider cannot run. ONNX Runtime counts shapes on the CPU, so that
// session.disable_cpu_ep_fallback would refuse every graph that has any. TensorRT takes what it
// can, and keeps its plans in a folder of the engine; CUDA takes the rest.
void Library::use_device(OrtSessionOptions* options, const std::string& folder) const {
  const auto sure = [&](OrtStatus* status) {
    if (const std::string why = said(status); !why.empty()) cannot_run(provider_, why);
  };
  sure(api_->AddSessionConfigEntry(options, "session.record_ep_graph_assignment_info", "1"));
  if (provider_ == kTensorrt) {
    const std::string kept = folder + "/tensorrt";
    const char* const keys[] = {"trt_engine_cache_enable", "trt_engine_cache_path",
                                "trt_timing_cache_enable", "trt_timing_cache_path"};
    const char* const values[] = {"1", kept.c_str(), "1", kept.c_str()};
    OrtTensorRTProviderOptionsV2* raw = nullptr;
    sure(api_->CreateTensorRTProviderOptions(&raw));
    const Owned<OrtTensorRTProviderOptionsV2> held{raw, {api_->ReleaseTensorRTProviderOptions}};
    sure(api_->UpdateTensorRTProviderOptions(raw, keys, values, std::size(keys)));
    sure(api_->SessionOptionsAppendExecutionProvider_TensorRT_V2(options, raw));
  }
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : kCudaOptions) keys.push_back(key), values.push_back(value);
  OrtCUDAProviderOptionsV2* raw = nullptr;
  sure(api_->CreateCUDAProviderOptions(&raw));
  const Owned<OrtCUDAProviderOptionsV2> held{raw, {api_->ReleaseCUDAProviderOptions}};
  sure(api_->UpdateCUDAProviderOptions(raw, keys.data(), values.data(), keys.size()));
  sure(api_->SessionOptionsAppendExecutionProvider_CUDA_V2(options, raw));
}

std::vector<std::string> misplaced(const Library& library, const OrtSession* session) {
  const Api& api = library.api();
  const std::string what = "ONNX Runtime does not tell where its nodes run";
  const OrtEpAssignedSubgraph* const* parts = nullptr;
  std::size_t n = 0, m = 0;
  library.must(api.Session_GetEpGraphAssignmentInfo(session, &parts, &n), what);
  std::set<std::string> found;
  for (std::size_t i = 0; i < n; ++i) {
    const char* provider = nullptr;
    library.must(api.EpAssignedSubgraph_GetEpName(parts[i], &provider), what);
    if (std::string(kCpu) != provider) continue;
    const OrtEpAssignedNode* const* nodes = nullptr;
    library.must(api.EpAssignedSubgraph_GetNodes(parts[i], &nodes, &m), what);
    for (std::size_t j = 0; j < m; ++j) {
      const char* kind = nullptr;
      library.must(api.EpAssignedNode_GetOperatorType(nodes[j], &kind), what);
      const bool heavy = std::any_of(std::begin(kHeavy), std::end(kHeavy),
                                     [&](const char* k) { return std::string(k) == kind; });
      if (heavy) found.insert(kind);
    }
  }
  return {found.begin(), found.end()};
}

void Library::check_placed(const OrtSession* session) const {
  const std::vector<std::string> lost = misplaced(*this, session);
  if (!lost.empty()) cannot_run(provider_, joined(lost) + " would run on the CPU");
}

Ref Library::room(const OrtSession* session, DType dtype, Shape shape) const {
  const std::string what = "no memory on the accelerator";
  OrtAllocator* raw = nullptr;
  must(api_->CreateAllocator(session, device_.get(), &raw), what);
  const std::shared_ptr<OrtAllocator> allocator(raw, api_->ReleaseAllocator);
  auto out = std::make_shared<Tensor>();
  out->dtype = dtype;
  out->shape = std::move(shape);
  out->device = true;
  must(api_->AllocatorAlloc(raw, std::max<std::size_t>(out->bytes(), 1), &out->data), what);
  const auto release = api_->AllocatorFree;
  out->memory = {out->data, [allocator, release](void* p) { release(allocator.get(), p); }};
  return out;
}

}  // namespace arc::ort
