#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "text.hpp"

namespace arc {

namespace {

constexpr const char* kParts[] = {"runtime",     "weights", "state",
                                  "activations", "decoder", "pictures"};

// Three digits and a unit: `1.23 G`, `390 M`.
std::string figure(double n) {
  static constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P"};
  std::size_t unit = 0;
  for (; std::abs(n) >= 999.5 && unit < 5; ++unit) n /= 1000;
  char text[40];
  std::snprintf(text, sizeof text, "%.3g %sB", n, kUnits[unit]);
  return text;
}

[[noreturn]] void none() {
  throw Error("the engine holds no plan of its memory", "rebuild the engine");
}

std::int64_t part(const Json& said, const char* name) {
  if (!said.is_object() || !said.contains(name) || !said[name].is_number_integer()) none();
  return said[name].get<std::int64_t>();
}

}  // namespace

Plan plan(const Bundle& bundle, std::int64_t images, bool guided) {
  if (images < 1) throw Error("batch must be 1 or more, got " + std::to_string(images));
  const Json& m = *bundle.manifest;
  if (!m.contains("plan") || !m["plan"].is_object()) none();
  const Json pair = m["plan"].value(guided ? "guided" : "plain", Json());
  if (!pair.is_array() || pair.size() < 2) none();
  Plan out{images, guided, {}};
  for (const char* name : kParts) {  // what one image more takes is known from two
    const std::int64_t one = part(pair[0], name), two = part(pair[1], name);
    const double most = static_cast<double>(one) +
                        static_cast<double>(images - 1) *
                            (static_cast<double>(two) - static_cast<double>(one));
    if (!(std::abs(most) < 9e18)) none();
    out.parts[name] = one + (images - 1) * (two - one);
  }
  return out;
}

std::optional<std::int64_t> available_memory() {
  std::optional<std::int64_t> found;
  const auto least = [&](std::int64_t n) { found = found ? std::min(*found, n) : n; };
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    std::istringstream words(line);
    std::string name;
    std::int64_t kib = 0;
    if (words >> name >> kib && name == "MemAvailable:") least(kib * 1024);
  }
  std::int64_t limit = 0, now = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> now) {
    least(limit - now);
  }
  return found;
}

void refuse(const Plan& need, bool loaded) {
  const auto free = available_memory();
  const std::int64_t held = need.parts.at("runtime") + (loaded ? need.parts.at("weights") : 0);
  const std::int64_t more = need.total() - held;
  if (!free || more <= *free) return;
  const std::string who =
      need.images > 1 ? std::to_string(need.images) + " images" : std::string("an image");
  throw Error(who + " would need " + figure(static_cast<double>(more)) + " more memory, and " +
                  figure(static_cast<double>(*free)) + " are free",
              "draw fewer at a time, or build with --memory", Code::machine);
}

}  // namespace arc
