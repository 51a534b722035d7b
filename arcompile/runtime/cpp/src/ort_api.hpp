// The part of ONNX Runtime's C API that is used, by slot number: its function table is append-only
// and versioned, so no header of theirs is needed. ort_check.cpp proves slots and signatures
// against the official header where one is given (-DONNXRUNTIME_ROOT).
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtAllocator;
struct OrtCUDAProviderOptionsV2;
struct OrtEnv;
struct OrtEpAssignedNode;
struct OrtEpAssignedSubgraph;
struct OrtIoBinding;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorRTProviderOptionsV2;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace arc::ort {

constexpr std::uint32_t kApiVersion = 24;  // the first that has every slot below

// X(slot, name, result, arguments); enums are int, as in C.
#define ARC_ORT_SLOTS(X)                                                                          \
  X(2, GetErrorMessage, const char*, (const OrtStatus*))                                          \
  X(3, CreateEnv, OrtStatus*, (int, const char*, OrtEnv**))                                       \
  X(7, CreateSession, OrtStatus*,                                                                 \
    (const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**))                         \
  X(10, CreateSessionOptions, OrtStatus*, (OrtSessionOptions**))                                  \
  X(17, DisableMemPattern, OrtStatus*, (OrtSessionOptions*))                                      \
  X(22, SetSessionLogSeverityLevel, OrtStatus*, (OrtSessionOptions*, int))                        \
  X(24, SetIntraOpNumThreads, OrtStatus*, (OrtSessionOptions*, int))                              \
  X(30, SessionGetInputCount, OrtStatus*, (const OrtSession*, size_t*))                           \
  X(31, SessionGetOutputCount, OrtStatus*, (const OrtSession*, size_t*))                          \
  X(33, SessionGetInputTypeInfo, OrtStatus*, (const OrtSession*, size_t, OrtTypeInfo**))          \
  X(34, SessionGetOutputTypeInfo, OrtStatus*, (const OrtSession*, size_t, OrtTypeInfo**))         \
  X(36, SessionGetInputName, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))      \
  X(37, SessionGetOutputName, OrtStatus*, (const OrtSession*, size_t, OrtAllocator*, char**))     \
  X(39, CreateRunOptions, OrtStatus*, (OrtRunOptions**))                                          \
  X(46, RunOptionsSetTerminate, OrtStatus*, (OrtRunOptions*))                                     \
  X(49, CreateTensorWithDataAsOrtValue, OrtStatus*,                                               \
    (const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**))               \
  X(55, CastTypeInfoToTensorInfo, OrtStatus*,                                                     \
    (const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**))                                      \
  X(60, GetTensorElementType, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int*))               \
  X(61, GetDimensionsCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, size_t*))              \
  X(62, GetDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, int64_t*, size_t))          \
  X(63, GetSymbolicDimensions, OrtStatus*,                                                        \
    (const OrtTensorTypeAndShapeInfo*, const char**, size_t))                                     \
  X(68, CreateMemoryInfo, OrtStatus*, (const char*, int, int, int, OrtMemoryInfo**))              \
  X(69, CreateCpuMemoryInfo, OrtStatus*, (int, int, OrtMemoryInfo**))                             \
  X(75, AllocatorAlloc, OrtStatus*, (OrtAllocator*, size_t, void**))                              \
  X(76, AllocatorFree, OrtStatus*, (OrtAllocator*, void*))                                        \
  X(78, GetAllocatorWithDefaultOptions, OrtStatus*, (OrtAllocator**))                             \
  X(92, ReleaseEnv, void, (OrtEnv*))                                                              \
  X(93, ReleaseStatus, void, (OrtStatus*))                                                        \
  X(94, ReleaseMemoryInfo, void, (OrtMemoryInfo*))                                                \
  X(95, ReleaseSession, void, (OrtSession*))                                                      \
  X(96, ReleaseValue, void, (OrtValue*))                                                          \
  X(97, ReleaseRunOptions, void, (OrtRunOptions*))                                                \
  X(98, ReleaseTypeInfo, void, (OrtTypeInfo*))                                                    \
  X(100, ReleaseSessionOptions, void, (OrtSessionOptions*))                                       \
  X(125, GetAvailableProviders, OrtStatus*, (char***, int*))                                      \
  X(126, ReleaseAvailableProviders, OrtStatus*, (char**, int))                                    \
  X(130, AddSessionConfigEntry, OrtStatus*, (OrtSessionOptions*, const char*, const char*))       \
  X(165, AddRunConfigEntry, OrtStatus*, (OrtRunOptions*, const char*, const char*))               \
  X(131, CreateAllocator, OrtStatus*,                                                             \
    (const OrtSession*, const OrtMemoryInfo*, OrtAllocator**))                                    \
  X(132, ReleaseAllocator, void, (OrtAllocator*))                                                 \
  X(133, RunWithBinding, OrtStatus*, (OrtSession*, const OrtRunOptions*, const OrtIoBinding*))    \
  X(134, CreateIoBinding, OrtStatus*, (OrtSession*, OrtIoBinding**))                              \
  X(135, ReleaseIoBinding, void, (OrtIoBinding*))                                                 \
  X(136, BindInput, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                    \
  X(137, BindOutput, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                   \
  X(170, SessionOptionsAppendExecutionProvider_TensorRT_V2, OrtStatus*,                           \
    (OrtSessionOptions*, const OrtTensorRTProviderOptionsV2*))                                    \
  X(171, CreateTensorRTProviderOptions, OrtStatus*, (OrtTensorRTProviderOptionsV2**))             \
  X(172, UpdateTensorRTProviderOptions, OrtStatus*,                                               \
    (OrtTensorRTProviderOptionsV2*, const char* const*, const char* const*, size_t))              \
  X(174, ReleaseTensorRTProviderOptions, void, (OrtTensorRTProviderOptionsV2*))                   \
  X(204, SessionOptionsAppendExecutionProvider_CUDA_V2, OrtStatus*,                               \
    (OrtSessionOptions*, const OrtCUDAProviderOptionsV2*))                                        \
  X(205, CreateCUDAProviderOptions, OrtStatus*, (OrtCUDAProviderOptionsV2**))                     \
  X(206, UpdateCUDAProviderOptions, OrtStatus*,                                                   \
    (OrtCUDAProviderOptionsV2*, const char* const*, const char* const*, size_t))                  \
  X(208, ReleaseCUDAProviderOptions, void, (OrtCUDAProviderOptionsV2*))                           \
  X(228, RegisterCustomOpsLibrary_V2, OrtStatus*, (OrtSessionOptions*, const char*))              \
  X(407, Session_GetEpGraphAssignmentInfo, OrtStatus*,                                            \
    (const OrtSession*, const OrtEpAssignedSubgraph* const**, size_t*))                           \
  X(408, EpAssignedSubgraph_GetEpName, OrtStatus*, (const OrtEpAssignedSubgraph*, const char**))  \
  X(409, EpAssignedSubgraph_GetNodes, OrtStatus*,                                                 \
    (const OrtEpAssignedSubgraph*, const OrtEpAssignedNode* const**, size_t*))                    \
  X(412, EpAssignedNode_GetOperatorType, OrtStatus*, (const OrtEpAssignedNode*, const char**))

struct Api {
#define X(slot, name, result, arguments) result (*name) arguments;
  ARC_ORT_SLOTS(X)
#undef X

  explicit Api(const void* table) {
    void (*const* at)() = static_cast<void (*const*)()>(table);
#define X(slot, name, result, arguments) name = reinterpret_cast<result(*) arguments>(at[slot]);
    ARC_ORT_SLOTS(X)
#undef X
  }
};

// What the library's only exported function returns.
struct ApiBase {
  const void* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

// Values of ONNX Runtime's enums.
constexpr int kFatal = 4, kDevice = 0, kArena = 1, kDefaultMemory = 0;

}  // namespace arc::ort
