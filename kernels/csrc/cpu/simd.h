// Sixteen floats at a time, in the vector extension that GCC and Clang share: one source for
// AVX-512, AVX2, NEON and plain SSE2. Everything here is local to the file that includes it: copies
// of one function for different instruction sets must never be merged by the linker.
#pragma once
#include <cstdint>
#include <cstring>

namespace arc {
namespace {

typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
constexpr int64_t LANES = 16;

inline F32 load(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, F32 v) { std::memcpy(p, &v, sizeof v); }

inline F32 all(float x) { return x - F32{}; }

inline F32 pick(I32 mask, F32 yes, F32 no) {
  return reinterpret_cast<F32>((reinterpret_cast<I32>(yes) & mask) |
                               (reinterpret_cast<I32>(no) & ~mask));
}

// e^x within 2 ulp for x <= 0 and moderate x > 0; exactly 0 below -87.3 (where float has no
// normal numbers left), so also for -inf. Cody-Waite reduction and a degree-6 polynomial.
inline F32 exp(F32 x) {
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32 clamped = pick(x > all(88.0f), all(88.0f), pick(x < all(-87.3f), all(-87.3f), x));
  const F32 n = (clamped * 1.44269504088896341f + magic) - magic;
  const F32 r = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  F32 p = all(1.0f / 720) * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I32 scale = (__builtin_convertvector(n, I32) + 127) << 23;
  return pick(x < all(-87.3f), F32{}, p * reinterpret_cast<F32>(scale));
}

// Of the lanes, by halves: a chain of fifteen sums would take longer than what it adds up.
inline float sum(F32 v) {
  typedef float F8 __attribute__((vector_size(32)));
  typedef float F4 __attribute__((vector_size(16)));
  const F8 a = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const F4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

inline float max(F32 v) {
  float best = v[0];
  for (int i = 1; i < LANES; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace
}  // namespace arc
