// Messages as the Python runtime words them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace arc {

using Json = nlohmann::ordered_json;  // in the order of the file: so are messages about it

// How Python's repr writes a string: 'it', or "it's".
std::string quoted(const std::string& text);

// How Python's str writes a JSON value: None, True, 1.5, 'x', [1, 2].
std::string shown(const Json& value);

// Python's str of a list of sizes: [2, 3].
std::string shown(const std::vector<std::int64_t>& sizes);

// Python's :g.
std::string general(double value);

// "a, b, c"
std::string joined(const std::vector<std::string>& names, const char* between = ", ");

// A hint that names the nearest known word, else lists the known ones.
std::string did_you_mean(const std::string& name, std::vector<std::string> known);

}  // namespace arc
