// Which copy of the tiles this processor runs.
#include <cstring>
#include <initializer_list>

#include "tiles.h"

namespace arc {

#if defined(__x86_64__)
namespace bf16 { extern const Tiles tile_table; }
namespace vnni { extern const Tiles tile_table; }
namespace avx512 { extern const Tiles tile_table; }
namespace avx2 { extern const Tiles tile_table; }
#endif
namespace plain { extern const Tiles tile_table; }

// The table of an instruction set, or null where this processor lacks it.
const Tiles* tiles_for(const char* isa) {
#if defined(__x86_64__)
  const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has8 = has512 && __builtin_cpu_supports("avx512vnni");
  const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has8 && __builtin_cpu_supports("avx512bf16") && !std::strcmp(isa, "bf16"))
    return &bf16::tile_table;
  if (has8 && !std::strcmp(isa, "vnni")) return &vnni::tile_table;
  if (has512 && !std::strcmp(isa, "avx512")) return &avx512::tile_table;
  if (has2 && !std::strcmp(isa, "avx2")) return &avx2::tile_table;
#endif
  return std::strcmp(isa, "plain") ? nullptr : &plain::tile_table;
}

const Tiles& tiles() {
  static const Tiles* const best = [] {
    for (const char* isa : {"bf16", "vnni", "avx512", "avx2"})
      if (const Tiles* found = tiles_for(isa)) return found;
    return &plain::tile_table;
  }();
  return *best;
}

}  // namespace arc

// For tests: every copy can be called by itself.
extern "C" __attribute__((visibility("default"))) const arc::Tiles* arcompile_ops_tiles(
    const char* isa) {
  return arc::tiles_for(isa);
}
