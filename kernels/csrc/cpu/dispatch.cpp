// Which copy of the inner loops this processor runs.
#include <cstring>
#include <initializer_list>

#include "lanes.h"
#include "rows.h"

namespace arc {

#if defined(__x86_64__)
namespace vnni { extern const RowLoops row_table; }
namespace avx512 {
extern const Lanes table;
extern const RowLoops row_table;
}
namespace avx2 {
extern const Lanes table;
extern const RowLoops row_table;
}
#endif
namespace plain {
extern const Lanes table;
extern const RowLoops row_table;
}

static bool runs(const char* isa) {
#if defined(__x86_64__)
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!std::strcmp(isa, "vnni")) return has512 && __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(isa, "avx512")) return has512;
  if (!std::strcmp(isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(isa, "plain");
}

// The table of an instruction set, or null where this processor lacks it.
const Lanes* lanes_for(const char* isa) {
#if defined(__x86_64__)
  if (!std::strcmp(isa, "avx512")) return runs(isa) ? &avx512::table : nullptr;
  if (!std::strcmp(isa, "avx2")) return runs(isa) ? &avx2::table : nullptr;
#endif
  return std::strcmp(isa, "plain") ? nullptr : &plain::table;
}

const RowLoops* row_loops_for(const char* isa) {
#if defined(__x86_64__)
  if (!std::strcmp(isa, "vnni")) return runs(isa) ? &vnni::row_table : nullptr;
  if (!std::strcmp(isa, "avx512")) return runs(isa) ? &avx512::row_table : nullptr;
  if (!std::strcmp(isa, "avx2")) return runs(isa) ? &avx2::row_table : nullptr;
#endif
  return std::strcmp(isa, "plain") ? nullptr : &plain::row_table;
}

const RowLoops& row_loops() {
  static const RowLoops* const best = [] {
    for (const char* isa : {"vnni", "avx512", "avx2"})
      if (const RowLoops* found = row_loops_for(isa)) return found;
    return &plain::row_table;
  }();
  return *best;
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
ARC_EXPORT const arc::RowLoops* arcompile_ops_rows(const char* isa) {
  return arc::row_loops_for(isa);
}
ARC_EXPORT const char* arcompile_ops_isa() { return arc::lanes().name; }
