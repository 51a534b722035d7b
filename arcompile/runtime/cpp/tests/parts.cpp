// The parts that can be checked against published answers, or against themselves.
#include <string>
#include <vector>

#include "check.hpp"
#include "dims.hpp"
#include "ort_library.hpp"
#include "rng.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace {

std::string digest(const std::string& text) {
  return arc::sha256(reinterpret_cast<const unsigned char*>(text.data()), text.size());
}

void sha256_of_fips_180_4() {
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest(std::string(1000000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  std::vector<unsigned char> bytes;
  for (int i = 0; i < 300; ++i) {  // every length about a block's end, on both ways
    CHECK(arc::sha256(bytes.data(), bytes.size()) ==
          arc::detail::sha256_portable(bytes.data(), bytes.size()));
    bytes.push_back(static_cast<unsigned char>(i * 7));
  }
}

void philox_of_random123() {
  std::uint32_t out[4];
  const std::uint64_t zeros[4] = {}, ones[4] = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
  arc::philox(zeros, 0, out);
  CHECK(out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c &&
        out[3] == 0x9b00dbd8);
  arc::philox(ones, ~std::uint64_t{0}, out);
  CHECK(out[0] == 0x408f276d && out[1] == 0x41c83b0e && out[2] == 0xa20bc7c6 &&
        out[3] == 0x6d5451fd);
}

bool refused(const std::string& text) {
  try {
    arc::Dim::parse(text);
  } catch (const arc::Error&) {
    return true;
  }
  return false;
}

void sizes_are_polynomials() {
  CHECK(arc::Dim::parse("1+b*2+b").str() == "3*b+1");
  CHECK(arc::Dim::parse("s+past-s") == arc::Dim::parse("past"));
  CHECK(arc::Dim::parse("b-b") == arc::Dim(0));
  CHECK(arc::Dim::parse("2*b*p-1").value({{"b", 3}, {"p", 5}}) == 29);
  for (const char* text : {"", "+", "b+", "2b", "b**2", "b b", "1234567890123456789", "b/2"}) {
    CHECK(refused(text));
  }
  CHECK(refused("999999999*999999999*999999999"));
  CHECK(arc::Type::parse(" f32[r, 12,2*b+1] ").str() == "f32[r,12,2*b+1]");
}

void words_are_pythons() {
  CHECK(arc::quoted("it") == "'it'" && arc::quoted("it's") == "\"it's\"");
  CHECK(arc::quoted("a\n\x01") == "'a\\n\\x01'");
  CHECK(arc::did_you_mean("stp", {"step", "feed"}) == "did you mean 'step'?");
  CHECK(arc::did_you_mean("x", {"step", "feed"}) == "known: feed, step");
  CHECK(arc::general(1e6) == "1e+06" && arc::general(0.5) == "0.5");
}

void kernels_are_those_of_the_provider() {
  CHECK(arc::ort::kernels_of(arc::ort::kCpu).file == "libarcompile_ops.so");
  for (const char* provider : {arc::ort::kCuda, arc::ort::kTensorrt}) {
    CHECK(arc::ort::kernels_of(provider).file == "libarcompile_cuda_ops.so");
    CHECK(arc::ort::kernels_of(provider).variable == "ARC_CUDA_KERNELS");
  }
}

}  // namespace

int main() {
  sha256_of_fips_180_4();
  philox_of_random123();
  sizes_are_polynomials();
  words_are_pythons();
  kernels_are_those_of_the_provider();
}
