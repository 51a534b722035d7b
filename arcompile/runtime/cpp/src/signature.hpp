// Signed engines: an Ed25519 signature of the manifest, which holds the hash of every file.
#pragma once

#include <string>

namespace arc {

// Throws unless the owner of the public key (a PEM file) signed this very text of the manifest.
// What the signature file says of keys is for people; only `key` is believed.
void check_signature(const std::string& folder, const std::string& key, const std::string& manifest);

}  // namespace arc
