#include "sha256.hpp"

#include <array>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace arc {

namespace {

constexpr std::size_t kBlock = 64;  // bytes
using State = std::array<std::uint32_t, 8>;
using Blocks = void (*)(State&, const unsigned char*, std::size_t);

constexpr State kStart = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
alignas(16) constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t turn(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

void portable(State& s, const unsigned char* data, std::size_t blocks) {
  std::uint32_t w[64];
  for (; blocks--; data += kBlock) {
    for (int i = 0; i < 16; ++i) {
      w[i] = std::uint32_t{data[4 * i]} << 24 | std::uint32_t{data[4 * i + 1]} << 16 |
             std::uint32_t{data[4 * i + 2]} << 8 | data[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      const std::uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ (a >> 3)) +
             (turn(b, 17) ^ turn(b, 19) ^ (b >> 10));
    }
    State v = s;
    for (int i = 0; i < 64; ++i) {
      auto& [a, b, c, d, e, f, g, h] = v;
      const std::uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
                                ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const std::uint32_t two =
          (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      v = {one + two, a, b, c, d + one, e, f, g};
    }
    for (int i = 0; i < 8; ++i) s[i] += v[i];
  }
}

#if defined(__x86_64__)

// Intel SHA extensions: four rounds at a time over the state as (a,b,e,f) and (c,d,g,h).
__attribute__((target("sha,sse4.1,ssse3"))) void native(State& s, const unsigned char* data,
                                                        std::size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  const auto load = [](const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); };
  const __m128i badc = _mm_shuffle_epi32(load(&s[0]), 0xB1);  // c d a b
  const __m128i hgfe = _mm_shuffle_epi32(load(&s[4]), 0x1B);  // e f g h
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xF0);
  for (; blocks--; data += kBlock) {
    const __m128i abef0 = abef, cdgh0 = cdgh;
    __m128i m[4];
    for (int i = 0; i < 4; ++i) m[i] = _mm_shuffle_epi8(load(data + 16 * i), swap);
    for (int i = 0; i < 16; ++i) {
      __m128i k = _mm_add_epi32(m[i & 3], load(&kRound[4 * i]));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
      k = _mm_shuffle_epi32(k, 0x0E);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, k);
      if (i < 12) {  // the words four rounds ahead take the place of these
        const __m128i last = m[(i + 3) & 3];
        const __m128i mid = _mm_alignr_epi8(last, m[(i + 2) & 3], 4);
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(m[i & 3], m[(i + 1) & 3]), mid);
        m[i & 3] = _mm_sha256msg2_epu32(sum, last);
      }
    }
    abef = _mm_add_epi32(abef, abef0), cdgh = _mm_add_epi32(cdgh, cdgh0);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&s[0]), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(&s[4]), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_native() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  return (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}

#endif

Blocks chosen() {
#if defined(__x86_64__)
  static const Blocks best = has_native() ? native : portable;
  return best;
#else
  return portable;
#endif
}

std::string digest(Blocks run, const unsigned char* data, std::size_t size) {
  State s = kStart;
  const std::size_t whole = size / kBlock;
  run(s, data, whole);
  unsigned char tail[2 * kBlock] = {};
  const std::size_t left = size % kBlock, blocks = left < 56 ? 1 : 2;
  if (left) std::memcpy(tail, data + whole * kBlock, left);
  tail[left] = 0x80;
  const std::uint64_t bits = std::uint64_t{size} * 8;
  for (std::size_t i = 0; i < 8; ++i) {
    tail[blocks * kBlock - 1 - i] = static_cast<unsigned char>(bits >> (8 * i));
  }
  run(s, tail, blocks);
  std::string hex;
  for (const std::uint32_t word : s) {
    for (int at = 28; at >= 0; at -= 4) hex += "0123456789abcdef"[word >> at & 15];
  }
  return hex;
}

}  // namespace

std::string sha256(const unsigned char* data, std::size_t size) {
  return digest(chosen(), data, size);
}

std::string detail::sha256_portable(const unsigned char* data, std::size_t size) {
  return digest(portable, data, size);
}

}  // namespace arc
