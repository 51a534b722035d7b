#include "bundle.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <arcompile/arcompile.hpp>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "sha256.hpp"
#include "signature.hpp"

namespace arc {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kFormat = 1;
constexpr std::size_t kPiece = std::size_t{32} << 20;  // bytes
constexpr std::uintmax_t kMaxManifest = std::uintmax_t{16} << 20;
constexpr int kMaxDepth = 900;  // Python's is 1000; what walks a tree needs stack for it
constexpr const char* kManifest = "manifest.json";
constexpr const char* kWhat = "engine manifest";
constexpr const char* kRun[] = {".arc", ".onnx"};  // files that a target may take for a graph
constexpr const char* kRebuild = "rebuild the engine";

// A path as Python's pathlib writes it: no double slashes, no lone dots, no slash at the end.
std::string tidy(const std::string& path) {
  std::string out(path.rfind('/', 0) == 0 ? 1 : 0, '/');
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string part = path.substr(at, end - at);
    if (!part.empty() && part != ".") {
      out += (out.empty() || out.back() == '/' ? "" : "/") + part;
    }
    at = end + 1;
  }
  return out.empty() ? "." : out;
}

std::string read_text(const fs::path& path, const std::string& what) {
  const auto cannot = [&](int error) {
    if (error == ENOENT) {
      return Error("no " + what + " at " + path.string(),
                   "give an engine folder, as written by arcompile build");
    }
    return Error("cannot read " + what + " " + path.string() + ": " + std::strerror(error));
  };
  struct stat s = {};
  if (::stat(path.c_str(), &s) != 0) throw cannot(errno);
  if (static_cast<std::uintmax_t>(s.st_size) > kMaxManifest) {
    throw Error(what + " " + path.string() + " is larger than " + std::to_string(kMaxManifest) +
                " bytes");
  }
  if (S_ISDIR(s.st_mode)) throw cannot(EISDIR);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw cannot(errno);
  return {std::istreambuf_iterator<char>(in), {}};
}

Json as_json(const std::string& text, const fs::path& path, const std::string& what) {
  Json found = parse(text);
  if (found.is_discarded()) throw Error(what + " " + path.string() + " is not JSON", kRebuild);
  return found;
}

Json read_json(const fs::path& path, const std::string& what) {
  return as_json(read_text(path, what), path, what);
}

// A file mapped read-only for as long as this lives.
class Mapped {
 public:
  explicit Mapped(const fs::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat s = {};
    if (file < 0 || ::fstat(file, &s) != 0) fail(path, file);
    size_ = static_cast<std::size_t>(s.st_size);
    if (size_) data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    if (data_ == MAP_FAILED) fail(path, file);
    ::close(file);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  ~Mapped() {
    if (size_) ::munmap(data_, size_);
  }
  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }
  std::size_t size() const { return size_; }

 private:
  [[noreturn]] static void fail(const fs::path& path, int file) {
    const int error = errno;
    if (file >= 0) ::close(file);
    throw Error("cannot read " + path.string() + ": " + std::strerror(error));
  }
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Is every piece what the manifest says? By all cores at once, since one digest takes one core.
bool pieces_match(const Mapped& file, const Json& said) {
  const std::size_t n = (file.size() + kPiece - 1) / kPiece;
  if (said.size() != n) return false;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> right{true};
  const auto work = [&] {
    for (std::size_t i; right && (i = next++) < n;) {
      const std::size_t at = i * kPiece;
      const std::string got = sha256(file.data() + at, std::min(kPiece, file.size() - at));
      if (!said[i].is_string() || said[i].get_ref<const std::string&>() != got) right = false;
    }
  };
  std::vector<std::thread> crew(std::min<std::size_t>(n, std::max(1U, std::thread::hardware_concurrency())) - 1);
  for (std::thread& t : crew) t = std::thread(work);
  work();
  for (std::thread& t : crew) t.join();
  return right;
}

bool intact(const fs::path& path, const Json& said) {
  const Mapped file(path);
  if (file.size() > kPiece && said.contains("pieces") && said["pieces"].is_array()) {
    return pieces_match(file, said["pieces"]);
  }
  return said.contains("sha256") && said["sha256"] == sha256(file.data(), file.size());
}

bool plain(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

void check_fields(const std::string& folder, const Json& m) {
  using Kind = bool (Json::*)() const noexcept;
  const std::pair<const char*, Kind> fields[] = {
      {"format", &Json::is_number_integer}, {"family", &Json::is_string},
      {"target", &Json::is_string},         {"dtype", &Json::is_string},
      {"passes", &Json::is_array},          {"key", &Json::is_string},
      {"files", &Json::is_object},          {"info", &Json::is_object},
      {"defaults", &Json::is_object},       {"tools", &Json::is_object},
      {"vocabulary", &Json::is_number_integer}};
  for (const auto& [name, kind] : fields) {
    if (!m.contains(name) || !(m[name].*kind)()) {
      throw Error("the manifest of " + folder + " has no valid " + quoted(name), kRebuild);
    }
  }
}

Json read_manifest(const std::string& folder, const std::string& text) {
  Json m = as_json(text, fs::path(folder) / kManifest, kWhat);
  if (!m.is_object()) throw Error("the manifest of " + folder + " is not an object", kRebuild);
  if (m.contains("format") && m["format"].is_number_integer() && m["format"] > kFormat) {
    throw Error("engine format " + m["format"].dump() + " is newer than this arcompile (" +
                    std::to_string(kFormat) + ")",
                "upgrade arcompile, or rebuild the engine");
  }
  check_fields(folder, m);
  return m;
}

void verify(const Bundle& b, const std::string& name, const Json& said) {
  if (!said.is_object() || !plain(name)) {
    throw Error("the manifest of " + b.folder + " lists an impossible file " + quoted(name));
  }
  const fs::path path = b.path(name);
  std::error_code none;
  if (fs::is_symlink(path, none) || !fs::is_regular_file(path, none)) {
    throw Error("engine file " + name + " is missing from " + b.folder, kRebuild);
  }
  const std::uintmax_t size = fs::file_size(path, none);
  if (!said.contains("bytes") || said["bytes"] != size) {
    throw Error("engine file " + name + " has " + std::to_string(size) + " bytes, expected " +
                    (said.contains("bytes") ? shown(said["bytes"]) : "None"),
                kRebuild);
  }
  if (!intact(path, said)) {
    throw Error("engine file " + name + " is not what was built: its sha256 differs",
                "rebuild the engine, or copy it again");
  }
}

// A graph that nobody hashed would be run in place of one that is.
void refuse_strangers(const Bundle& b) {
  std::vector<std::string> strange;
  std::error_code none;
  for (const auto& file : fs::directory_iterator(b.folder, none)) {
    const std::string name = file.path().filename().string();
    const std::string kind = file.path().extension().string();
    const bool runs = std::any_of(std::begin(kRun), std::end(kRun),
                                  [&](const char* k) { return kind == k; });
    if (runs && !b.holds(name)) strange.push_back(name);
  }
  if (strange.empty()) return;
  throw Error(*std::min_element(strange.begin(), strange.end()) + " is in " + b.folder +
                  ", but its manifest does not list it",
              "somebody put it there: take it out, or build the engine again");
}

}  // namespace

Json parse(const std::string& text) {
  struct TooDeep {};
  const auto bounded = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) throw TooDeep{};
    return true;
  };
  try {
    return Json::parse(text, bounded, false);
  } catch (const TooDeep&) {
    return Json(Json::value_t::discarded);
  }
}

Bundle Bundle::open(const std::string& given, const std::string& signed_by) {
  Bundle b{tidy(given), {}};
  const std::string text = read_text(b.path(kManifest), kWhat);
  b.manifest = std::make_shared<const Json>(read_manifest(b.folder, text));
  if (!signed_by.empty()) check_signature(b.folder, tidy(signed_by), text);
  for (const auto& [name, said] : (*b.manifest)["files"].items()) verify(b, name, said);
  if (!b.holds("program.json")) {
    throw Error("the manifest of " + b.folder + " does not list program.json");
  }
  refuse_strangers(b);
  return b;
}

Json Bundle::read(const std::string& file, const char* what) const {
  return read_json(path(file), what);
}

bool Bundle::holds(const std::string& file) const { return (*manifest)["files"].contains(file); }

bool Bundle::has(const char* key) const { return manifest->contains(key); }

const std::string& Bundle::word(const char* key) const {
  return (*manifest)[key].get_ref<const std::string&>();
}

std::vector<std::string> Bundle::words(const std::string& file, const char* what) const {
  std::vector<std::string> out;
  if (!holds(file)) return out;
  const Json found = read(file, what);
  for (const Json& word : found) {
    if (!word.is_string()) throw Error(std::string("the ") + what + " of " + folder + " are not all words");
    out.push_back(word.get<std::string>());
  }
  return out;
}

std::vector<std::string> Bundle::labels() const { return words("labels.json", "labels"); }

std::vector<std::string> Bundle::light() const { return words("light.json", "light graphs"); }

std::map<std::string, double> Bundle::defaults() const {
  std::map<std::string, double> out{
      {"guidance", 1.0}, {"temperature", 1.0}, {"top_k", 0.0}, {"top_p", 1.0}};
  for (const auto& [name, value] : (*manifest)["defaults"].items()) {
    if (value.is_number()) out[name] = value.get<double>();
  }
  return out;
}

fs::path Bundle::path(const std::string& file) const { return fs::path(folder) / file; }

std::int64_t Bundle::number(std::initializer_list<const char*> keys,
                            std::int64_t otherwise) const {
  const Json* at = manifest.get();
  for (const char* key : keys) {
    if (at->is_array() && !at->empty()) {
      at = &(*at)[0];
    } else if (at->is_object() && at->contains(key)) {
      at = &(*at)[key];
    } else {
      return otherwise;
    }
  }
  return at->is_number_integer() ? at->get<std::int64_t>() : otherwise;
}

}  // namespace arc
