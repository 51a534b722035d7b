// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <cstddef>
#include <string>

namespace arc {

// The digest of `size` bytes, in hexadecimal.
std::string sha256(const unsigned char* data, std::size_t size);

namespace detail {
std::string sha256_portable(const unsigned char* data, std::size_t size);
}

}  // namespace arc
