#include <algorithm>
#include <cmath>
#include <cstring>

#include "request.hpp"
#include "text.hpp"

namespace arc {

void check_finite(const std::string& what, const Tensor& x, const std::string& hint) {
  std::size_t bad = 0;
  for (std::size_t i = 0; x.dtype == DType::f32 && i < x.size(); ++i) {
    bad += !std::isfinite(x.as<float>()[i]);
  }
  if (bad) {
    throw Error(what + " has " + std::to_string(bad) + " values that are not finite", hint);
  }
}

namespace {

using Fed = std::vector<std::pair<std::string, Ref>>;

Ref class_ids(const Facts& e, const Classes& ids) {
  const std::int64_t count = e.bundle.number({"info", "classes"}, 0);
  if (ids.empty()) throw Error("no condition given", "give at least one class");
  for (const std::int64_t c : ids) {
    if (c >= 0 && c < count) continue;
    throw Error("class " + std::to_string(c) + " is out of range",
                "classes are 0 to " + std::to_string(count - 1));
  }
  return integers(ids);
}

bool is_number(const std::string& text) {
  const std::size_t from = text.find_first_not_of('-');
  return from != std::string::npos && text.find_first_not_of("0123456789", from) == std::string::npos;
}

std::int64_t class_of(const Facts& e, const std::string& name) {
  if (!is_number(name)) {
    const auto at = std::find(e.labels.begin(), e.labels.end(), name);
    if (at != e.labels.end()) return at - e.labels.begin();
    throw Error("no class named " + quoted(name),
                e.labels.empty() ? "this engine has no class names; give a number"
                                 : did_you_mean(name, e.labels));
  }
  std::int64_t number = -1;
  try {
    number = std::stoll(name);
  } catch (const std::exception&) {
    number = -1;  // more digits than there are classes
  }
  const std::int64_t count = e.bundle.number({"info", "classes"}, 0);
  if (number < 0 || number >= count) {
    throw Error("class " + name + " is out of range",
                "classes are 0 to " + std::to_string(count - 1));
  }
  return number;
}

// input_ids i64[b,p] and mask bool[b,p] of prompts of token ids, padded on the left.
Fed padded(const Facts& e, const Prompts& prompts) {
  const std::int64_t known = e.bundle.number({"prompt", "vocabulary"}, 0);
  std::size_t longest = 0;
  for (const auto& row : prompts) {
    for (const std::int64_t id : row) {
      if (id >= 0 && id < known) continue;
      throw Error("token id " + std::to_string(id) + " is out of range",
                  "ids are 0 to " + std::to_string(known - 1));
    }
    if (row.empty()) throw Error("a prompt is empty", "give words, or token ids");
    longest = std::max(longest, row.size());
  }
  if (prompts.empty()) throw Error("a prompt is empty", "give words, or token ids");
  const Shape shape{static_cast<std::int64_t>(prompts.size()), static_cast<std::int64_t>(longest)};
  Ref ids = Tensor::zeros(DType::i64, shape), mask = Tensor::zeros(DType::boolean, shape);
  std::fill_n(ids->as<std::int64_t>(), ids->size(), e.bundle.number({"prompt", "pad"}, 0));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::size_t end = (i + 1) * longest, from = end - prompts[i].size();
    std::copy(prompts[i].begin(), prompts[i].end(), ids->as<std::int64_t>() + from);
    std::fill(mask->as<bool>() + from, mask->as<bool>() + end, true);
  }
  ids->lent = mask->lent = true;
  return {{"input_ids", ids}, {"mask", mask}};
}

void check_prompt(const Facts& e, const Tensor& ids, const Tensor& mask) {
  const std::int64_t most = e.bundle.number({"prompt", "max"}, 0), n = ids.shape[1];
  const std::int64_t known = e.bundle.number({"prompt", "vocabulary"}, 0);
  if (ids.shape != mask.shape) {
    throw Error("mask has shape " + shown(mask.shape) + " but input_ids " + shown(ids.shape),
                "give both one row for each image");
  }
  if (n < 2 || n > most) {
    throw Error("a prompt of " + std::to_string(n) + " ids; this engine takes 2 to " +
                    std::to_string(most),
                "shorten it, or build with --option max_prompt=N");
  }
  const auto* at = ids.as<std::int64_t>();
  if (std::any_of(at, at + ids.size(), [&](std::int64_t i) { return i < 0 || i >= known; })) {
    throw Error("token ids are out of range", "ids are 0 to " + std::to_string(known - 1));
  }
  for (std::int64_t i = 0; i < ids.shape[0]; ++i) {
    const bool* row = mask.as<bool>() + i * n;
    if (!row[n - 1] || !std::is_sorted(row, row + n)) {
      throw Error("the mask of a prompt must be zeros, then ones",
                  "pad shorter prompts on the left");
    }
  }
}

Ref fitted(const std::string& name, const View& view, const Type& type) {
  bool fits = view.shape.size() == type.shape.size() && !view.shape.empty() && view.shape[0] > 0;
  for (std::size_t i = 0; fits && i < view.shape.size(); ++i) {
    const Dim& d = type.shape[i];
    fits = view.shape[i] >= 0 && (!d.constant() || d.value({}) == view.shape[i]);
  }
  if (!fits) {
    throw Error("input " + name + " has shape " + shown(view.shape) + ", expected " + type.str(),
                "named sizes may be any; b is the number of images, at least 1");
  }
  Ref value = Tensor::of(view);
  if (!view.data && value->size()) throw Error("input " + name + " has no data");
  if (view.dtype != type.dtype) value = value->cast(type.dtype);
  value->lent = true;
  check_finite("input " + name, *value, "NaN or infinity; check what made them");
  return value;
}

// Arrays by the program's input names, all for as many images.
Fed arrays(const Facts& e, const Inputs& given) {
  std::vector<std::string> known, missing;
  for (const auto& [name, type] : e.program.inputs) known.push_back(name);
  for (const auto& [name, view] : given) {
    if (!e.program.input(name)) {
      throw Error("no input named " + quoted(name), did_you_mean(name, known));
    }
  }
  Fed out;
  for (const auto& [name, type] : e.program.inputs) {
    const auto found = given.find(name);
    if (found != given.end()) {
      out.emplace_back(name, fitted(name, found->second, type));
    } else if (name == "mask" && !given.empty() && given.begin()->second.shape.size() >= 2) {
      const Shape& like = given.begin()->second.shape;
      Ref mask = Tensor::zeros(DType::boolean, {like[0], like[1]});
      std::fill_n(mask->as<bool>(), mask->size(), true);
      mask->lent = true;
      out.emplace_back(name, mask);
    } else {
      missing.push_back(name);
    }
  }
  if (!missing.empty()) {
    std::vector<std::string> takes;
    for (const auto& [name, type] : e.program.inputs) takes.push_back(name + ": " + type.str());
    throw Error("inputs are missing: " + joined(missing), "it takes " + joined(takes));
  }
  std::vector<std::string> said;
  bool alike = true;
  for (const auto& [name, value] : out) {
    said.push_back(name + " has " + std::to_string(value->shape[0]));
    alike = alike && value->shape[0] == out.front().second->shape[0];
  }
  if (!alike) {
    throw Error("inputs disagree on the number of images: " + joined(said),
                "give each as many rows as there are images");
  }
  return out;
}

void check_arrays(const Facts& e, Fed& found) {
  const auto get = [&](const char* name) -> Ref* {
    for (auto& [key, value] : found) {
      if (key == name) return &value;
    }
    return nullptr;
  };
  const std::int64_t most = e.bundle.number({"info", "caption", "0"}, 0);
  if (const Ref* f = get("features"); f && most > 0 && (*f)->shape[1] > most) {
    throw Error("features of " + std::to_string((*f)->shape[1]) + " tokens; this engine takes " +
                std::to_string(most),
                "shorten the text");
  }
  if (Ref* cond = get("cond")) {
    const auto* at = (*cond)->as<std::int64_t>();
    *cond = class_ids(e, Classes(at, at + (*cond)->size()));
  }
  if (e.bundle.has("prompt") && get("input_ids") && get("mask")) {
    check_prompt(e, **get("input_ids"), **get("mask"));
  }
}

[[noreturn]] void wrong_kind(const Facts& e, const char* got) {
  std::vector<std::string> each;
  for (const auto& [name, type] : e.program.inputs) each.push_back(name + ": " + type.str());
  throw Error("family " + e.bundle.word("family") +
                  " takes arrays by name, got " + got,
              "give {" + joined(each) + "}");
}

bool takes_classes(const Program& p) { return p.inputs.size() == 1 && p.inputs[0].first == "cond"; }

}  // namespace

Fed conditions(const Facts& e, const Request& r) {
  const bool prompts = e.bundle.has("prompt");
  Fed found;
  if (const auto* ids = std::get_if<Classes>(&r.condition)) {
    if (takes_classes(e.program)) return {{"cond", class_ids(e, *ids)}};
    if (!prompts) wrong_kind(e, "class ids");
    found = padded(e, {*ids});  // a list of ids is one prompt
  } else if (const auto* names = std::get_if<Names>(&r.condition)) {
    if (!takes_classes(e.program)) {
      throw Error("this library has no tokenizer for words",
                  prompts ? "give token ids" : "give arrays by input name");
    }
    Classes found_ids;
    for (const std::string& name : *names) found_ids.push_back(class_of(e, name));
    return {{"cond", class_ids(e, found_ids)}};
  } else if (const auto* given = std::get_if<Prompts>(&r.condition)) {
    if (!prompts) wrong_kind(e, "prompts");
    found = padded(e, *given);
  } else {
    found = arrays(e, std::get<Inputs>(r.condition));
  }
  check_arrays(e, found);
  return found;
}

}  // namespace arc
