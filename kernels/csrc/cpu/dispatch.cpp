// Which copy of the inner loops this processor runs.
#include <cstring>

#include "lanes.h"

namespace arc {

#if defined(__x86_64__)
namespace avx512 { extern const Lanes table; }
namespace avx2 { extern const Lanes table; }
#endif
namespace plain { extern const Lanes table; }

// The table of an instruction set, or null where this processor lacks it.
const Lanes* lanes_for(const char* isa) {
#if defined(__x86_64__)
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has512 && !std::strcmp(isa, "avx512")) return &avx512::table;
  if (has2 && !std::strcmp(isa, "avx2")) return &avx2::table;
#endif
  return std::strcmp(isa, "plain") ? nullptr : &plain::table;
}

const Lanes& lanes() {
  static const Lanes* const best = [] {
    if (const Lanes* found = lanes_for("avx512")) return found;
    if (const Lanes* found = lanes_for("avx2")) return found;
    return &plain::table;
  }();
  return *best;
}

}  // namespace arc

#define ARC_EXPORT extern "C" __attribute__((visibility("default")))

// For tests and reports: every copy can be called by itself.
ARC_EXPORT const arc::Lanes* arcompile_ops_lanes(const char* isa) { return arc::lanes_for(isa); }
ARC_EXPORT const char* arcompile_ops_isa() { return arc::lanes().name; }
