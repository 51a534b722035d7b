#include "text.hpp"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace arc {

std::string quoted(const std::string& text) {
  const bool twice = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char mark = twice ? '"' : '\'';
  std::string out(1, mark);
  for (const char c : text) {
    char code[8];
    switch (c) {
      case '\n': out += "\\n"; continue;
      case '\r': out += "\\r"; continue;
      case '\t': out += "\\t"; continue;
      case '\\': out += "\\\\"; continue;
      default: break;
    }
    if (static_cast<unsigned char>(c) < 32 || c == 127) {
      std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned char>(c));
      out += code;
    } else {
      out += c == mark ? std::string("\\") + c : std::string(1, c);
    }
  }
  return out + mark;
}

std::string shown(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return quoted(value.get<std::string>());
  if (!value.is_array()) return value.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::vector<std::string> each;
  for (const Json& v : value) each.push_back(shown(v));
  return "[" + joined(each) + "]";
}

std::string shown(const std::vector<std::int64_t>& sizes) {
  std::vector<std::string> each;
  for (const auto n : sizes) each.push_back(std::to_string(n));
  return "[" + joined(each) + "]";
}

std::string general(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string joined(const std::vector<std::string>& names, const char* between) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) out += (i ? between : "") + names[i];
  return out;
}

namespace {

// Characters in the longest common blocks, found greedily (Ratcliff and Obershelp).
std::size_t matches(const std::string& a, const std::string& b) {
  std::size_t best = 0, at = 0, to = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) {
      std::size_t n = 0;
      while (i + n < a.size() && j + n < b.size() && a[i + n] == b[j + n]) ++n;
      if (n > best) best = n, at = i, to = j;
    }
  }
  if (!best) return 0;
  return best + matches(a.substr(0, at), b.substr(0, to)) +
         matches(a.substr(at + best), b.substr(to + best));
}

}  // namespace

std::string did_you_mean(const std::string& name, std::vector<std::string> known) {
  std::sort(known.begin(), known.end());
  const std::string* near = nullptr;
  double most = 0.6;
  for (const std::string& k : known) {
    const std::size_t total = name.size() + k.size();
    if (total > 400) continue;  // no word of ours; and the search is quadratic
    const double ratio = total ? 2.0 * static_cast<double>(matches(k, name)) / static_cast<double>(total) : 1;
    if (ratio >= most) near = &k, most = ratio;
  }
  if (near) return "did you mean " + quoted(*near) + "?";
  return "known: " + (known.empty() ? "none" : joined(known));
}

}  // namespace arc
