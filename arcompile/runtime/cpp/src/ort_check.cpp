// Compiled only with the official header: every slot is where, and what, ort_api.hpp says.
#include <onnxruntime_c_api.h>

#include <type_traits>

#include "ort_api.hpp"

#pragma GCC diagnostic ignored "-Wignored-attributes"  // of arguments; they are not compared

namespace {

// The same type, but for enums, which C passes as int.
template <class Official, class Ours>
constexpr bool same = std::is_same_v<Official, Ours> ||
                      (std::is_enum_v<Official> && std::is_same_v<Ours, int>);
template <class Official, class Ours>
constexpr bool same<Official*, Ours*> =
    std::is_same_v<Official, Ours> || (std::is_enum_v<Official> && std::is_same_v<Ours, int>);

template <class Official, class Ours>
struct Alike : std::false_type {};
template <class R, class... A, class Q, class... B>
struct Alike<R (*)(A...) noexcept, Q (*)(B...)> : Alike<R (*)(A...), Q (*)(B...)> {};
template <class R, class... A, class Q, class... B>
struct Alike<R (*)(A...), Q (*)(B...)> {
  static constexpr bool check() {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return same<R, Q> && (same<A, B> && ...);
    } else {
      return false;
    }
  }
  static constexpr bool value = check();
};

using Theirs = OrtApi;
using Ours = arc::ort::Api;

#define X(slot, name, result, arguments)                                                     \
  static_assert(offsetof(Theirs, name) == (slot) * sizeof(void*), "slot of " #name);          \
  static_assert(Alike<decltype(Theirs::name), decltype(Ours::name)>::value, "type of " #name);
ARC_ORT_SLOTS(X)
#undef X

static_assert(offsetof(OrtApiBase, GetApi) == 0);
static_assert(offsetof(OrtApiBase, GetVersionString) == sizeof(void*));
static_assert(ORT_LOGGING_LEVEL_FATAL == arc::ort::kFatal);
static_assert(OrtDeviceAllocator == arc::ort::kDevice);
static_assert(OrtArenaAllocator == arc::ort::kArena && OrtMemTypeDefault == arc::ort::kDefaultMemory);
static_assert(ORT_API_VERSION >= arc::ort::kApiVersion);

}  // namespace
