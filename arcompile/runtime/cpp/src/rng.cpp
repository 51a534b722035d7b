#include "rng.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace arc {

namespace {

constexpr std::int64_t kMaxTurns = std::int64_t{1} << 20;
constexpr double kPi = 3.14159265358979323846;

// The 64-bit words of one (seed, image, position, draw), two a block, low word first.
class Words {
 public:
  Words(std::uint64_t seed, std::int64_t image, std::int64_t position, std::uint64_t which)
      : seed_(seed), counter_{static_cast<std::uint64_t>(image),
                              static_cast<std::uint64_t>(position), which, 0} {}
  std::uint64_t next() {
    if (half_ == 0) philox(counter_, seed_, words_), ++counter_[3];
    const std::uint64_t low = words_[2 * half_], high = words_[2 * half_ + 1];
    half_ ^= 1;
    return low | high << 32;
  }
  // In the middle of one of 2^53 parts of (0, 1): never at an end.
  double unit() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53; }

 private:
  std::uint64_t seed_, counter_[4];
  std::uint32_t words_[4] = {};
  int half_ = 0;
};

void uniform(Words words, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(static_cast<double>(words.next() >> 41) * 0x1p-23);
  }
}

// Box and Muller in f64; a last odd number leaves its partner. Step by step over several pairs, which
// a processor computes side by side: one whole pair after the other waits for itself.
void normal(Words words, std::int64_t n, float* out) {
  constexpr std::int64_t kPairs = 16;
  double radius[kPairs], angle[kPairs];
  for (std::int64_t from = 0; from < n; from += 2 * kPairs) {
    const std::int64_t pairs = std::min(kPairs, (n - from + 1) / 2);
    for (std::int64_t i = 0; i < pairs; ++i) radius[i] = words.unit(), angle[i] = words.unit();
    for (std::int64_t i = 0; i < pairs; ++i) radius[i] = std::sqrt(-2.0 * std::log(radius[i]));
    for (std::int64_t i = 0; i < pairs; ++i) {
      const std::int64_t at = from + 2 * i;
      const double turn = 2.0 * kPi * angle[i];
      out[at] = static_cast<float>(radius[i] * std::cos(turn));
      if (at + 1 < n) out[at + 1] = static_cast<float>(radius[i] * std::sin(turn));
    }
  }
}

// Their tail reaches 36, which f32 uniforms could not give.
void gumbel(Words words, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(-std::log(-std::log(words.unit())));
  }
}

void order(std::uint64_t seed, std::int64_t image, const std::int64_t* at, std::size_t c,
           std::uint64_t which, std::int64_t* out) {
  std::vector<std::uint64_t> keys;
  for (std::size_t i = 0; i < c; ++i) keys.push_back(Words(seed, image, at[i], which).next());
  std::iota(out, out + c, 0);
  std::stable_sort(out, out + c, [&](std::int64_t a, std::int64_t b) {
    return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
  });
}

}  // namespace

void philox(const std::uint64_t counter[4], std::uint64_t seed, std::uint32_t out[4]) {
  std::uint64_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = c0 * 0xD2511F53u, p1 = c2 * 0xCD9E8D57u;
    c0 = (p1 >> 32) ^ c1 ^ k0, c1 = p1 & 0xFFFFFFFFu;
    c2 = (p0 >> 32) ^ c3 ^ k1, c3 = p0 & 0xFFFFFFFFu;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  out[0] = static_cast<std::uint32_t>(c0), out[1] = static_cast<std::uint32_t>(c1);
  out[2] = static_cast<std::uint32_t>(c2), out[3] = static_cast<std::uint32_t>(c3);
}

Ref room(const Draw& d, std::size_t images, std::size_t positions) {
  Shape shape{static_cast<std::int64_t>(images), static_cast<std::int64_t>(positions)};
  if (d.kind != Kind::order) shape.push_back(d.width);
  Ref out = Tensor::zeros(d.kind == Kind::order ? DType::i64 : DType::f32, std::move(shape));
  out->lent = true;
  return out;
}

void draw(const Draw& d, std::size_t index, const std::vector<std::uint64_t>& seeds,
          const std::vector<std::int64_t>& images, const Places& places, std::int64_t turn,
          Tensor& out) {
  if (turn < 0 || turn >= kMaxTurns) {
    throw Error("a loop of " + std::to_string(turn) + " rows is too long for its noise");
  }
  const std::uint64_t which = std::uint64_t{index} << 20 | static_cast<std::uint64_t>(turn);
  float* to = out.as<float>();
  for (std::size_t i = 0; i < seeds.size(); ++i) {
    if (d.kind == Kind::order) {
      order(seeds[i], images[i], places.of(i), places.c, which,
            out.as<std::int64_t>() + i * places.c);
      continue;
    }
    for (std::size_t j = 0; j < places.c; ++j, to += d.width) {
      const Words words(seeds[i], images[i], places.of(i)[j], which);
      switch (d.kind) {
        case Kind::uniform: uniform(words, d.width, to); break;
        case Kind::normal: normal(words, d.width, to); break;
        default: gumbel(words, d.width, to);
      }
    }
  }
}

}  // namespace arc
