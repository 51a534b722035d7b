// Counter-based noise, bit for bit that of every other arcompile runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "program.hpp"
#include "tensor.hpp"

namespace arc {

// Four 32-bit words of Philox 4x32-10 (Salmon et al., SC 2011).
void philox(const std::uint64_t counter[4], std::uint64_t seed, std::uint32_t out[4]);

// The positions of a draw: the same c for all images, or c for each.
struct Places {
  Places(const std::vector<std::int64_t>& all) : at(all.data()), c(all.size()) {}
  Places(const std::vector<std::int64_t>& each, std::size_t images)
      : at(each.data()), c(each.size() / images), stride(c) {}
  const std::int64_t* of(std::size_t image) const { return at + image * stride; }
  const std::int64_t* at;
  std::size_t c, stride = 0;
};

// Fills `out` with the noise that draw number `index` asks for: f32 [b,c,width], or for an order
// i64 [b,c], a permutation of the c positions. `turn` is the row of a loop's table, or the round.
void draw(const Draw& d, std::size_t index, const std::vector<std::uint64_t>& seeds,
          const std::vector<std::int64_t>& images, const Places& places, std::int64_t turn,
          Tensor& out);

// The noise of that draw, not filled yet.
Ref room(const Draw& d, std::size_t images, std::size_t positions);

}  // namespace arc
