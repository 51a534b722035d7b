// Checks what a user asks an engine for, and spreads it over the images.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "loop.hpp"

namespace arc {

struct Facts {  // of an engine
  const Bundle& bundle;
  const Program& program;
  const std::vector<std::string>& labels;
  const std::map<std::string, double>& defaults;
  std::int64_t vocabulary;
};

// The checked request for conditions * n images.
Ask make(const Facts& e, const Request& r);

// Throws where an f32 tensor holds NaN or infinity.
void check_finite(const std::string& what, const Tensor& x, const std::string& hint);

// The program's inputs, by name, for as many images as there are conditions.
std::vector<std::pair<std::string, Ref>> conditions(const Facts& e, const Request& r);

}  // namespace arc
