// Reads mutated copies of an engine: each is read, or refused by an Error; nothing else happens.
// What Engine::open does beyond this is to look for ONNX Runtime.
//   test_fuzz_open <engine> <scratch folder> <seconds> [seed]
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "bundle.hpp"
#include "check.hpp"
#include "program.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

std::mt19937_64 dice;

std::size_t roll(std::size_t n) { return n ? dice() % n : 0; }

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

Json junk() {
  static const Json all = {nullptr, true, -1, 0, 1, 2, 1ULL << 63, 1e300, -0.5, "", "b", "all",
                           "prefix", "f32[b]", "x*y/each", "b*b*b*999999999", Json::array(),
                           Json::object(), Json::array({1, 2, 3}), Json::array({0, -1}),
                           Json::array({Json::array({1}), 2}), 1 << 20, 1 << 24, "\u0000"};
  return all[roll(all.size())];
}

// Replaces, drops, doubles or adds something somewhere in the tree.
void mutate(Json& at) {
  if (!at.is_structured() || at.empty() || roll(6) == 0) {
    at = junk();
    return;
  }
  auto it = at.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(roll(at.size())));
  switch (roll(5)) {
    case 0: at.erase(it); break;
    case 1: at.is_array() ? at.push_back(*it) : void(at["extra"] = *it); break;
    default: mutate(*it);
  }
}

void flip(std::string& text) {
  for (std::size_t n = 1 + roll(4); n-- && !text.empty();) {
    const std::size_t at = roll(text.size());
    switch (roll(3)) {
      case 0: text[at] = static_cast<char>(dice()); break;
      case 1: text.erase(at, 1 + roll(8)); break;
      default: text.insert(at, text.substr(roll(text.size()), 1 + roll(16)));
    }
  }
}

// A changed file under a manifest that vouches for it, so that what comes after hashing is reached.
void sign(const fs::path& folder, const char* file) {
  const std::string text = read(folder / file);
  Json m = Json::parse(read(folder / "manifest.json"));
  m["files"][file] = {{"bytes", text.size()},
                      {"sha256", arc::sha256(reinterpret_cast<const unsigned char*>(text.data()),
                                             text.size())}};
  write(folder / "manifest.json", m.dump());
}

void damage(const fs::path& folder, const std::string& manifest, const std::string& program) {
  write(folder / "manifest.json", manifest);
  write(folder / "program.json", program);
  const bool whole = roll(2);
  const char* file = roll(4) ? "program.json" : "manifest.json";
  std::string text = read(folder / file);
  if (whole) {
    Json tree = Json::parse(text);
    for (std::size_t n = 1 + roll(3); n--;) mutate(tree);
    text = tree.dump(-1, ' ', false, Json::error_handler_t::replace);
  } else {
    flip(text);
  }
  write(folder / file, text);
  if (file[0] == 'p') sign(folder, file);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc >= 4);
  const fs::path folder = fs::path(argv[2]) / "fuzzed";
  fs::remove_all(folder);
  fs::create_directories(folder.parent_path());
  fs::copy(argv[1], folder);
  dice.seed(argc > 4 ? std::stoull(argv[4]) : 1);
  const std::string manifest = read(folder / "manifest.json");
  const std::string program = read(folder / "program.json");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::stoi(argv[3]));
  std::size_t opened = 0, refused = 0;
  while (std::chrono::steady_clock::now() < end) {
    damage(folder, manifest, program);
    try {
      const auto bundle = arc::Bundle::open(folder.string());
      const auto program = arc::Program::parse(bundle.read("program.json", "program"));
      bundle.labels(), bundle.defaults();
      for (const auto& [name, type] : program.state) type.shape_of(program.sizes(2, 4));
      ++opened;
    } catch (const arc::Error& e) {
      const std::string what = e.what();
      CHECK(!what.empty() && what.find('\n') == std::string::npos);
      ++refused;
    }
  }
  std::cout << opened << " read, " << refused << " refused\n";
  CHECK(refused > 0 && opened > 0);
  fs::remove_all(folder);
}
