#include "dims.hpp"

#include <algorithm>
#include <cctype>

#include "text.hpp"

namespace arc {

namespace {

constexpr std::pair<DType, const char*> kNames[] = {
    {DType::f32, "f32"}, {DType::f16, "f16"}, {DType::bf16, "bf16"},
    {DType::f64, "f64"}, {DType::i64, "i64"}, {DType::i32, "i32"},
    {DType::i8, "i8"},   {DType::u8, "u8"},   {DType::boolean, "bool"}};

std::int64_t times(std::int64_t a, std::int64_t b) {
  std::int64_t out;
  if (__builtin_mul_overflow(a, b, &out)) throw Error("a size is too large to compute with");
  return out;
}

std::int64_t plus(std::int64_t a, std::int64_t b) {
  std::int64_t out;
  if (__builtin_add_overflow(a, b, &out)) throw Error("a size is too large to compute with");
  return out;
}

bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool digit(char c) { return c >= '0' && c <= '9'; }

// One factor of a term: a number of at most 18 digits, or a name. Empty where there is none.
std::string factor(const std::string& text, std::size_t& at) {
  const std::size_t from = at;
  if (at < text.size() && letter(text[at])) {
    while (at < text.size() && (letter(text[at]) || digit(text[at]))) ++at;
  } else {
    while (at < text.size() && digit(text[at]) && at - from < 18) ++at;
  }
  return text.substr(from, at - from);
}

}  // namespace

Dim::Dim(std::int64_t constant) {
  if (constant) terms_[{}] = constant;
}

Dim Dim::parse(const std::string& text) {
  Dim out;
  std::size_t at = 0;
  const auto bad = [&] {
    return Error("not a size: " + quoted(text.substr(0, 80)), "write a size like 4, b or 2*b+1");
  };
  do {
    std::int64_t coefficient = 1;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) {
      coefficient = text[at++] == '-' ? -1 : 1;
    }
    std::vector<std::string> symbols;
    for (bool more = true; more;) {
      const std::string f = factor(text, at);
      if (f.empty()) throw bad();
      digit(f[0]) ? void(coefficient = times(coefficient, std::stoll(f)))
                  : symbols.push_back(f);
      more = at < text.size() && text[at] == '*' && ++at;
    }
    std::sort(symbols.begin(), symbols.end());
    auto& term = out.terms_[symbols];
    term = plus(term, coefficient);
    if (!term) out.terms_.erase(symbols);
    if (at < text.size() && text[at] != '+' && text[at] != '-') throw bad();
  } while (at < text.size());
  return out;
}

bool Dim::constant() const {
  return terms_.empty() || (terms_.size() == 1 && terms_.begin()->first.empty());
}

bool Dim::symbol() const {
  return terms_.size() == 1 && terms_.begin()->first.size() == 1 && terms_.begin()->second == 1;
}

std::vector<std::string> Dim::symbols() const {
  std::vector<std::string> out;
  for (const auto& [names, c] : terms_) out.insert(out.end(), names.begin(), names.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::int64_t Dim::value(const Sizes& sizes) const {
  std::int64_t total = 0;
  for (const auto& [names, c] : terms_) {
    std::int64_t term = c;
    for (const std::string& n : names) {
      const auto found = sizes.find(n);
      if (found == sizes.end()) throw Error("size " + quoted(n) + " is not bound");
      term = times(term, found->second);
    }
    total = plus(total, term);
  }
  return total;
}

std::string Dim::str() const {
  if (constant()) return std::to_string(terms_.empty() ? 0 : terms_.begin()->second);
  std::string text, last;
  for (const auto& [names, c] : terms_) {
    std::vector<std::string> body = names;
    const std::string size = std::to_string(c < 0 ? -c : c);
    if (names.empty() || size != "1") body.insert(body.begin(), size);
    const std::string one = joined(body, "*");
    if (names.empty()) {
      last = (c < 0 ? "-" : "+") + one;  // the constant comes last
    } else {
      text += (c < 0 ? "-" : text.empty() ? "" : "+") + one;
    }
  }
  return text + last;
}

Type Type::parse(const std::string& given) {
  const char* blank = " \t\n\r\f\v";
  const auto from = given.find_first_not_of(blank), to = given.find_last_not_of(blank);
  const std::string text = from == std::string::npos ? "" : given.substr(from, to - from + 1);
  const auto open = text.find('[');
  const auto bad = [&] {
    return Error("not a type: " + quoted(given), "write a type like f16[b,1,768]");
  };
  if (open == std::string::npos || text.back() != ']') throw bad();
  const std::string inside = text.substr(open + 1, text.size() - open - 2);
  if (inside.find_first_of("[]") != std::string::npos) throw bad();
  Type type;
  const std::string dtype = text.substr(0, open);
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames),
                                   [&](const auto& k) { return dtype == k.second; });
  if (found == std::end(kNames)) throw bad();
  type.dtype = found->first;
  if (inside.find_first_not_of(blank) == std::string::npos) return type;
  for (std::size_t at = 0; at <= inside.size();) {
    const std::size_t end = std::min(inside.find(',', at), inside.size());
    const std::string part = inside.substr(at, end - at);
    const auto a = part.find_first_not_of(blank), b = part.find_last_not_of(blank);
    type.shape.push_back(Dim::parse(a == std::string::npos ? "" : part.substr(a, b - a + 1)));
    at = end + 1;
  }
  return type;
}

Shape Type::shape_of(const Sizes& sizes) const {
  Shape out;
  for (const Dim& d : shape) out.push_back(d.value(sizes));
  return out;
}

bool Type::symbolic() const {
  return std::any_of(shape.begin(), shape.end(), [](const Dim& d) { return !d.constant(); });
}

std::string Type::str() const {
  std::vector<std::string> each;
  for (const Dim& d : shape) each.push_back(d.str());
  return std::string(name_of(dtype)) + "[" + joined(each, ",") + "]";
}

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64: case DType::i64: return 8;
    case DType::f32: case DType::i32: return 4;
    case DType::f16: case DType::bf16: return 2;
    default: return 1;
  }
}

const char* name_of(DType dtype) {
  return std::find_if(std::begin(kNames), std::end(kNames),
                      [&](const auto& k) { return dtype == k.first; })->second;
}

std::size_t count(const Shape& shape) {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) {
    if (d < 0 || __builtin_mul_overflow(n, d, &n) || n > std::int64_t{1} << 48) {
      throw Error("no tensor can have the shape " + shown(shape));
    }
  }
  return static_cast<std::size_t>(n);
}

void measure(const std::string& name, const Type& type, const Shape& got, Sizes& sizes) {
  const auto wrong = [&] {
    return Error(name + " has shape " + shown(got) + " but is declared " + type.str());
  };
  if (got.size() != type.shape.size()) throw wrong();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Dim& d = type.shape[i];
    if (d.symbol()) {
      const auto [at, fresh] = sizes.emplace(d.name(), got[i]);
      if (!fresh && at->second != got[i]) {
        throw Error(name + " is " + type.str() + " with " + d.name() + "=" +
                    std::to_string(got[i]) + ", but elsewhere " + d.name() + "=" +
                    std::to_string(at->second));
      }
    } else if (d.constant() && d.value({}) != got[i]) {
      throw wrong();
    }
  }
}

}  // namespace arc
