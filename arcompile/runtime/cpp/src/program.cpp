#include "program.hpp"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "program_check.hpp"

namespace arc {

namespace {

constexpr std::int64_t kFormat = 1;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 20;
constexpr std::int64_t kMaxQueries = std::int64_t{1} << 24;  // over all steps
constexpr int kMaxDepth = 16;                                // of an array that a step sets
constexpr std::int64_t kPrompt = 64;  // what a size that only a request tells counts as

Error malformed(const std::string& why) {
  return Error("not a program: " + why, "rebuild the engine");
}

const Json& at(const Json& object, const char* key) {
  if (!object.is_object()) throw malformed("TypeError: no object where " + quoted(key) + " should be");
  if (!object.contains(key)) throw malformed("KeyError: " + quoted(key));
  return object[key];
}

const std::string& text(const Json& value, const char* what) {
  if (!value.is_string()) throw malformed("TypeError: " + shown(value) + " is no " + what);
  return value.get_ref<const std::string&>();
}

std::int64_t whole(const Json& value, const char* what) {
  const bool huge = value.is_number_unsigned() &&
                    value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max();
  if (!value.is_number_integer() || huge) {
    throw malformed("TypeError: " + shown(value) + " is no " + what);
  }
  return value.get<std::int64_t>();
}

double real(const Json& value, const char* what) {
  if (!value.is_number()) throw malformed("TypeError: " + shown(value) + " is no " + what);
  return value.get<double>();
}

const Json& list(const Json& value, const char* what) {
  if (!value.is_array()) throw malformed("TypeError: " + shown(value) + " is no list of " + what);
  return value;
}

const Json& object(const Json& value, const char* what) {
  if (!value.is_object()) throw malformed("TypeError: " + shown(value) + " is no object of " + what);
  return value;
}

// Nothing that a newer compiler may have added is passed over in silence.
void only(const Json& value, const char* what, const std::vector<std::string>& known) {
  for (const auto& [key, x] : value.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Error(std::string(what) + " says " + quoted(key) + ", which this library does not know",
                  "upgrade libarcompile, or rebuild the engine without the pass that needs it");
    }
  }
}

void fill(const Json& value, std::size_t depth, Constant& out) {
  if (value.is_array()) {
    if (depth >= kMaxDepth) throw malformed("ValueError: an array is nested too deeply");
    if (depth == out.shape.size()) out.shape.push_back(static_cast<std::int64_t>(value.size()));
    if (out.shape[depth] != static_cast<std::int64_t>(value.size())) {
      throw malformed("ValueError: an array has rows of different length");
    }
    for (const Json& v : value) fill(v, depth + 1, out);
    return;
  }
  if (depth != out.shape.size()) throw malformed("ValueError: an array has rows of different length");
  if (out.reals.empty() && value.is_number_float()) out.dtype = DType::f32;  // the first one tells
  out.reals.push_back(real(value, "number"));
  out.integers.push_back(value.is_number_integer() ? whole(value, "number") : 0);
}

Constant constant(const Json& value) {
  Constant out;
  fill(value, 0, out);
  if (out.reals.empty()) out.dtype = DType::f32;
  if (out.dtype == DType::i64) {
    for (std::size_t i = 0; i < out.reals.size(); ++i) {
      if (static_cast<double>(out.integers[i]) != out.reals[i]) {
        throw malformed("ValueError: whole numbers and others in one array");
      }
    }
  }
  return out;
}

std::vector<Call> calls(const Json& value) {
  std::vector<Call> out;
  for (const Json& c : list(value, "calls")) out.push_back(Call::parse(text(c, "call")));
  return out;
}

std::int64_t how_many(const Json& span) {
  return span.is_array() ? static_cast<std::int64_t>(span.size()) : whole(span, "count of positions");
}

std::vector<std::int64_t> positions(const Json& span, std::int64_t from) {
  std::vector<std::int64_t> out;
  if (span.is_array()) {
    for (const Json& p : span) out.push_back(whole(p, "position"));
    return out;
  }
  const std::int64_t n = whole(span, "count of positions");
  if (n < 0 || n > kMaxPositions) throw Error("a step of " + std::to_string(n) + " positions");
  for (std::int64_t i = 0; i < n; ++i) out.push_back(from + i);
  return out;
}

Dim append(const Json& value) {
  if (value.is_string()) return Dim::parse(text(value, "size"));
  const std::int64_t n = whole(value, "size");
  if (n < 0 || n > kMaxPositions) {
    throw Error("a step that appends " + std::to_string(n) + " slots");
  }
  return n;
}

std::shared_ptr<const Work> work(const Json& run) {
  only(run, "a step", {"times", "query", "commit", "calls", "guide", "append", "set", "window"});
  auto out = std::make_shared<Work>();
  out->calls = calls(at(run, "calls"));
  const Json& guide = list(at(run, "guide"), "two numbers");
  if (guide.size() < 2) throw malformed("IndexError: list index out of range");
  out->guide[0] = real(guide[0], "number");
  out->guide[1] = real(guide[1], "number");
  out->append = append(at(run, "append"));
  for (const auto& [name, value] : object(at(run, "set"), "constants").items()) {
    out->set.emplace_back(name, constant(value));
  }
  out->window = run.contains("window") ? whole(run["window"], "window") : 0;
  return out;
}

std::string whole_number(double x) {
  char text[400];
  std::snprintf(text, sizeof text, "%.0f", x);
  return text;
}

std::vector<Step> steps(const Json& runs) {
  std::vector<Step> out;
  std::int64_t next = 0;
  double total = 0;  // exact as far as the limit, and beyond it without overflow
  for (const Json& run : list(runs, "steps")) {
    const std::int64_t times = whole(at(run, "times"), "number of steps");
    if (static_cast<std::int64_t>(out.size()) > kMaxPositions - times) {
      throw Error("more than " + std::to_string(kMaxPositions) + " steps");
    }
    const Json &query = at(run, "query"), &commit = at(run, "commit");
    total += static_cast<double>(times) *
             static_cast<double>(std::max(how_many(query), how_many(commit)));
    if (total > static_cast<double>(kMaxQueries)) {
      throw Error("steps query " + whole_number(total) +
                  " positions in all, over " + std::to_string(kMaxQueries));
    }
    const auto shared = times > 0 ? work(run) : nullptr;
    for (std::int64_t i = 0; i < times; ++i) {
      Step s{positions(query, next), positions(commit, next), shared};
      if (!s.commit.empty()) next = *std::max_element(s.commit.begin(), s.commit.end()) + 1;
      out.push_back(std::move(s));
    }
  }
  return out;
}

template <class Word>
Word word(const std::string& what, const std::string& given,
          const std::vector<std::pair<std::string, Word>>& known) {
  std::vector<std::string> names;
  for (const auto& [name, meaning] : known) {
    if (name == given) return meaning;
    names.push_back(name);
  }
  throw Error(what + " is " + quoted(given), did_you_mean(given, names));
}

Draw draw(const Json& d) {
  only(object(d, "a draw"), "a draw", {"name", "kind", "width", "when"});
  const std::string name = text(at(d, "name"), "name");
  Draw out;
  out.name = name;
  out.kind = word<Kind>("kind of draw " + name, text(at(d, "kind"), "word"),
                        {{"uniform", Kind::uniform}, {"normal", Kind::normal},
                         {"gumbel", Kind::gumbel}, {"order", Kind::order}});
  out.when = word<When>("time of draw " + name, text(at(d, "when"), "word"),
                        {{"start", When::start}, {"step", When::step}, {"place", When::place},
                         {"loop", When::loop}});
  out.width = whole(at(d, "width"), "width");
  if (out.width < 0 || out.width > kMaxPositions) {
    throw malformed("ValueError: a draw of width " + std::to_string(out.width));
  }
  return out;
}

std::vector<std::pair<std::string, Type>> types(const Json& data) {
  std::vector<std::pair<std::string, Type>> out;
  for (const auto& [name, type] : object(data, "types").items()) {
    out.emplace_back(name, Type::parse(text(type, "type")));
  }
  return out;
}

void read_tables(const Json& data, Program& p) {
  for (const auto& [table, columns] : object(data, "tables").items()) {
    auto& made = p.tables[table];
    for (const auto& [name, values] : object(columns, "columns").items()) {
      std::vector<Constant> column;
      for (const Json& v : list(values, "numbers")) column.push_back(constant(v));
      made.emplace_back(name, std::move(column));
      if (made.back().second.size() != made.front().second.size()) {
        throw Error("the columns of table " + table + " differ in length, or there are none");
      }
    }
    if (made.empty()) {
      throw Error("the columns of table " + table + " differ in length, or there are none");
    }
  }
}

void check_head(const Json& data) {
  const std::int64_t format = whole(at(data, "format"), "number");
  if (format > kFormat) {
    throw Error("program format " + std::to_string(format) + " is newer than " +
                    std::to_string(kFormat),
                "upgrade arcompile");
  }
  const std::int64_t n = whole(at(data, "positions"), "number");
  if (n < 0 || n > kMaxPositions) throw Error("a program of " + std::to_string(n) + " positions");
}

}  // namespace

Call Call::parse(const std::string& text) {
  const std::size_t slash = text.find('/');
  const std::string name = text.substr(0, slash);
  const std::size_t star = name.find('*');
  Call out;
  out.graph = name.substr(0, star);
  out.loop = star == std::string::npos ? "" : name.substr(star + 1);
  if (slash != std::string::npos) {
    const std::string how = text.substr(slash + 1);
    if (how != "each") {
      throw Error("call " + text + " says " + quoted(how) + ", which this library does not know",
                  "upgrade libarcompile, or rebuild the engine without the pass that needs it");
    }
    out.each = true;
  }
  return out;
}

Program Program::parse(const Json& data) {
  check_head(data);
  only(data, "the program",
       {"format", "name", "positions", "mask", "accept", "cache", "inputs", "state", "draws",
        "tables", "prompt", "steps", "finish", "preview"});
  Program p;
  p.name = text(at(data, "name"), "name");
  p.positions = data["positions"].get<std::int64_t>();
  p.steps = arc::steps(at(data, "steps"));
  p.prompt = calls(at(data, "prompt"));
  p.finish = calls(at(data, "finish"));
  if (data.contains("preview")) p.preview = calls(data["preview"]);
  p.inputs = types(at(data, "inputs"));
  p.state = types(at(data, "state"));
  for (const Json& d : list(at(data, "draws"), "draws")) p.draws.push_back(draw(d));
  read_tables(at(data, "tables"), p);
  word<int>("mask", text(at(data, "mask"), "word"), {{"causal", 0}, {"full", 0}, {"none", 0}});
  p.accept = text(at(data, "accept"), "word");
  word<int>("accept", p.accept, {{"all", 0}, {"prefix", 0}, {"confident", 0}});
  text(at(data, "cache"), "word");  // which policy sized the caches: its constants say all
  check(p);
  return p;
}

Sizes Program::sizes(std::int64_t images, std::int64_t rows, const Sizes& told) const {
  Sizes out = told;
  for (const auto& [input, type] : inputs) {
    for (const Dim& d : type.shape) {
      for (const std::string& s : d.symbols()) out.emplace(s, kPrompt);
    }
  }
  out["b"] = images, out["r"] = rows, out["N"] = positions;
  return out;
}

std::set<std::string> Program::loop() const {
  std::set<std::string> found;
  for (const Step& s : steps) {
    for (const Call& c : s.work->calls) found.insert(c.graph);
  }
  return found;
}

const Type* Program::input(const std::string& wanted) const {
  for (const auto& [key, type] : inputs) {
    if (key == wanted) return &type;
  }
  return nullptr;
}

}  // namespace arc
