// OpenSSL's libcrypto verifies, found and loaded when a signature is asked for: nothing of it is
// linked, and no header of it is needed to build. Its functions are those of 1.1.1 and all later.
#include "signature.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <arcompile/arcompile.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "bundle.hpp"

namespace arc {

namespace {

constexpr std::size_t kMaxKey = 1 << 14;  // bytes of a file that may be a key
constexpr int kEd25519 = 1087;            // NID_ED25519
constexpr const char* kMake =
    "openssl genpkey -algorithm ed25519 -out my.key; openssl pkey -in my.key -pubout -out my.pub";
#if defined(__APPLE__)
constexpr const char* kNames[] = {"libcrypto.3.dylib", "libcrypto.1.1.dylib"};
#else
constexpr const char* kNames[] = {"libcrypto.so.3", "libcrypto.so.1.1"};
#endif

std::string read(const std::string& path, const std::string& what) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string found(kMaxKey + 1, '\0');
  std::size_t held = 0;
  ssize_t more = file < 0 ? -1 : 1;
  while (more > 0 && held < found.size()) {
    more = ::read(file, &found[held], found.size() - held);
    if (more > 0) held += static_cast<std::size_t>(more);
  }
  const int error = errno;
  if (file >= 0) ::close(file);
  if (more < 0) throw Error("cannot read " + what + " " + path + ": " + std::strerror(error));
  if (held > kMaxKey) {
    throw Error(what + " " + path + " is larger than " + std::to_string(kMaxKey) + " bytes");
  }
  return found.substr(0, held);
}

struct Bio;
struct Key;
struct Context;

// The functions used, each void where it returns what is not looked at.
class Crypto {
 public:
  Crypto() {
    const char* given = std::getenv("ARC_CRYPTO_LIBRARY");
    if (given && *given) {
      open(given);
    } else {
      for (const char* name : kNames) open(name);
    }
    const bool whole = get(bio_of, "BIO_new_mem_buf") && get(free_bio, "BIO_free") &&
                       get(read_key, "PEM_read_bio_PUBKEY") && get(free_key, "EVP_PKEY_free") &&
                       (get(kind_of, "EVP_PKEY_get_id") || get(kind_of, "EVP_PKEY_id")) &&
                       get(context, "EVP_MD_CTX_new") && get(free_context, "EVP_MD_CTX_free") &&
                       get(begin, "EVP_DigestVerifyInit") && get(verify, "EVP_DigestVerify") &&
                       get(forget_errors, "ERR_clear_error");
    if (!whole) {
      throw Error("signatures need libcrypto, which is not found",
                  "install OpenSSL 1.1.1 or newer, or set ARC_CRYPTO_LIBRARY to its libcrypto",
                  Code::machine);
    }
  }

  Bio* (*bio_of)(const void*, int) = nullptr;
  int (*free_bio)(Bio*) = nullptr;
  Key* (*read_key)(Bio*, Key**, void*, void*) = nullptr;
  void (*free_key)(Key*) = nullptr;
  int (*kind_of)(const Key*) = nullptr;
  Context* (*context)() = nullptr;
  void (*free_context)(Context*) = nullptr;
  int (*begin)(Context*, void*, const void*, void*, Key*) = nullptr;
  int (*verify)(Context*, const unsigned char*, std::size_t, const unsigned char*, std::size_t) =
      nullptr;
  void (*forget_errors)() = nullptr;

 private:
  void open(const char* name) {  // never unloaded: it cleans up when the process ends
    if (!library_) library_ = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  template <class F>
  bool get(F& function, const char* name) {
    function = library_ ? reinterpret_cast<F>(::dlsym(library_, name)) : nullptr;
    return function;
  }
  void* library_ = nullptr;
};

using Pinned = std::unique_ptr<Key, void (*)(Key*)>;

Pinned public_key(const Crypto& crypto, const std::string& path) {
  const std::string raw = read(path, "key");
  const std::unique_ptr<Bio, int (*)(Bio*)> bio(
      crypto.bio_of(raw.data(), static_cast<int>(raw.size())), crypto.free_bio);
  Pinned key(bio ? crypto.read_key(bio.get(), nullptr, nullptr, nullptr) : nullptr,
             crypto.free_key);
  crypto.forget_errors();
  if (!key) throw Error(path + " is not a public key", kMake);
  if (crypto.kind_of(key.get()) != kEd25519) throw Error(path + " is not an Ed25519 key", kMake);
  return key;
}

// RFC 4648, without line breaks; nothing where it is not that.
std::optional<std::string> unbase64(const std::string& text) {
  static const std::string digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.size() % 4) return std::nullopt;
  std::size_t pads = 0;
  while (pads < 2 && pads < text.size() && text[text.size() - 1 - pads] == '=') ++pads;
  std::string out;
  std::uint32_t held = 0;
  int bits = 0;
  for (std::size_t i = 0; i + pads < text.size(); ++i) {
    const std::size_t digit = digits.find(text[i]);
    if (digit == std::string::npos) return std::nullopt;
    held = (held << 6 | static_cast<std::uint32_t>(digit)) & 0xffffff;
    if ((bits += 6) < 8) continue;
    bits -= 8;
    out += static_cast<char>(held >> bits & 0xff);
  }
  return out;
}

std::string signature_of(const std::string& folder) {
  std::string raw;
  try {
    raw = read(folder + "/manifest.sig", "signature");
  } catch (const Error&) {
    throw Error(folder + " is not signed", "arcompile sign ENGINE --key my.key");
  }
  const Json said = parse(raw);
  std::optional<std::string> found;
  if (said.is_object() && said.contains("signature") && said["signature"].is_string()) {
    found = unbase64(said["signature"].get_ref<const std::string&>());
  }
  if (!found) throw Error("the signature of " + folder + " cannot be read");
  return *found;
}

const unsigned char* bytes(const std::string& text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

void check_signature(const std::string& folder, const std::string& key,
                     const std::string& manifest) {
  const Crypto crypto;
  const Pinned pinned = public_key(crypto, key);
  const std::string signature = signature_of(folder);
  const std::unique_ptr<Context, void (*)(Context*)> context(crypto.context(),
                                                             crypto.free_context);
  const bool right =
      context && crypto.begin(context.get(), nullptr, nullptr, nullptr, pinned.get()) == 1 &&
      crypto.verify(context.get(), bytes(signature), signature.size(), bytes(manifest),
                    manifest.size()) == 1;
  crypto.forget_errors();
  if (!right) {
    throw Error(folder + " is not signed by the key " + key,
                "it was changed, or somebody else built it");
  }
}

}  // namespace arc
