// ONNX Runtime's objects, released when they go out of scope.
#pragma once

#include <memory>

#include "ort_api.hpp"

namespace arc::ort {

// An object of ONNX Runtime, with the function that releases it.
template <class T>
struct Release {
  void (*release)(T*) = nullptr;
  void operator()(T* object) const {
    if (release) release(object);
  }
};
template <class T>
using Owned = std::unique_ptr<T, Release<T>>;

using Value = Owned<OrtValue>;

}  // namespace arc::ort
