// The engine folder: manifest.json, program.json, graphs, weights. Checked before it is used.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "text.hpp"

namespace arc {

// What was written; discarded where it is no JSON, or nests too deep for us.
Json parse(const std::string& text);

struct Bundle {
  std::string folder;  // as messages write it
  std::shared_ptr<const Json> manifest;

  // The manifest, and every file it lists byte for byte what was written, and nothing beside them
  // is what a target would run. signed_by: a public key that must have signed it, or empty.
  static Bundle open(const std::string& folder, const std::string& signed_by = "");
  Json read(const std::string& file, const char* what) const;
  bool holds(const std::string& file) const;
  bool has(const char* key) const;  // does the manifest say so?
  const std::string& word(const char* key) const;
  std::vector<std::string> labels() const;  // names of the classes
  std::vector<std::string> light() const;   // graphs that get one thread
  // Of a file that is a list of words; none where the engine has no such file.
  std::vector<std::string> words(const std::string& file, const char* what) const;
  std::map<std::string, double> defaults() const;  // guidance, temperature, top_k, top_p
  std::filesystem::path path(const std::string& file) const;
  // A whole number of the manifest at `keys`; `otherwise` where there is none.
  std::int64_t number(std::initializer_list<const char*> keys, std::int64_t otherwise) const;
};

}  // namespace arc
