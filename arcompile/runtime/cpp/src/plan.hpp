// What a run needs in memory, before anything is allocated; the engine's manifest tells.
#pragma once

#include <arcompile/arcompile.hpp>
#include <optional>

#include "bundle.hpp"

namespace arc {

Plan plan(const Bundle& bundle, std::int64_t images, bool guided);

// Bytes that this process may still take, where the system tells.
std::optional<std::int64_t> available_memory();

// Throws where what a run needs beyond what is held does not fit.
void refuse(const Plan& need, bool loaded);

}  // namespace arc
