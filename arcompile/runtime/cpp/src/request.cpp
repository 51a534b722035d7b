#include "request.hpp"

#include <algorithm>
#include <cstring>

#include "text.hpp"

namespace arc {

namespace {

constexpr std::int64_t kMaxImages = 4096;

// A number for all images, one per condition, or one per image.
template <class T>
std::vector<T> spread(const char* name, const std::vector<T>& given, std::size_t b,
                      std::size_t rows) {
  if (given.size() == 1) return std::vector<T>(rows, given[0]);
  if (given.size() == rows && given.size() != b) return given;
  if (given.size() != b) {
    throw Error(std::string(name) + " has " + std::to_string(given.size()) + " values for " +
                std::to_string(rows) + " images",
                "give one for all, one per condition, or one per image");
  }
  std::vector<T> out;
  for (const T& x : given) out.insert(out.end(), rows / b, x);
  return out;
}

template <class To>
std::vector<To> numbers(const char* name, const std::vector<double>& given, std::size_t b,
                        std::size_t rows, double lo, double hi) {
  std::vector<To> out;
  for (const double x : spread(name, given, b, rows)) {
    if (!(x >= lo && x <= hi)) {  // also catches NaN
      throw Error(std::string(name) + " must be between " + general(lo) + " and " + general(hi) +
                  ", got " + general(x),
                  "the engine's own settings are in Engine.defaults");
    }
    out.push_back(static_cast<To>(x));
  }
  return out;
}

std::size_t images_of(const std::vector<std::pair<std::string, Ref>>& inputs) {
  return static_cast<std::size_t>(inputs.front().second->shape[0]);
}

// Each row n times.
Ref repeat(const Ref& value, std::int64_t n) {
  if (n == 1) return value;
  Shape shape = value->shape;
  const std::size_t row = value->bytes() / static_cast<std::size_t>(shape[0]);
  shape[0] *= n;
  Ref out = Tensor::zeros(value->dtype, shape);
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    std::memcpy(out->as<char>() + static_cast<std::size_t>(i) * row,
                value->as<char>() + static_cast<std::size_t>(i / n) * row, row);
  }
  out->lent = true;
  return out;
}

bool is_permutation(const std::int64_t* row, std::int64_t n) {
  std::vector<bool> seen(static_cast<std::size_t>(n), false);
  for (std::int64_t i = 0; i < n; ++i) {
    if (row[i] < 0 || row[i] >= n || seen[static_cast<std::size_t>(row[i])]) return false;
    seen[static_cast<std::size_t>(row[i])] = true;
  }
  return true;
}

const Draw& draw_named(const Program& p, const std::string& name) {
  std::vector<std::string> known;
  for (const Draw& d : p.draws) {
    if (d.name == name) return d;
    known.push_back(d.name);
  }
  throw Error("generate has no argument " + quoted(name), did_you_mean(name, known));
}

// Turns of the longest loop of the steps.
std::int64_t turns_of(const Program& p) {
  std::size_t most = 0;
  for (const Step& s : p.steps) {
    for (const Call& c : s.work->calls) {
      if (c.loop.empty()) continue;
      const auto& columns = p.tables.at(c.loop);
      if (!columns.empty()) most = std::max(most, columns.front().second.size());
    }
  }
  return static_cast<std::int64_t>(most);
}

// Arrays that replace random draws: i64 [B,N] of an order, f32 [B,N,width] of noise, or
// [B,N,turns,width] of noise that a loop draws anew each turn.
std::map<std::string, Ref> replacements(const Program& p, const Inputs& given, std::size_t rows) {
  std::map<std::string, Ref> out;
  for (const auto& [name, view] : given) {
    const Draw& d = draw_named(p, name);
    Shape want{static_cast<std::int64_t>(rows), p.positions};
    if (d.when == When::loop) want.push_back(turns_of(p));
    if (d.kind != Kind::order) want.push_back(d.width);
    if (view.shape != want) {
      throw Error(name + " has shape " + shown(view.shape) + ", expected " + shown(want),
                  "it replaces a random draw for every image and position");
    }
    const DType dtype = d.kind == Kind::order ? DType::i64 : DType::f32;
    Ref value = Tensor::of(view);
    if (value->dtype != dtype) value = value->cast(dtype);
    for (std::size_t i = 0; d.kind == Kind::order && i < rows; ++i) {
      if (is_permutation(value->as<std::int64_t>() + i * static_cast<std::size_t>(p.positions), p.positions)) continue;
      throw Error(name + " must hold a permutation of 0.." + std::to_string(p.positions - 1) +
                      " in each row",
                  "numpy.random.default_rng().permutation makes one");
    }
    check_finite(name, *value, "give f32 " + shown(want) + " of finite numbers");
    value->lent = true;
    out[name] = value;
  }
  return out;
}

}  // namespace

Ask make(const Facts& e, const Request& r) {
  Ask q;
  q.inputs = conditions(e, r);
  const std::size_t b = images_of(q.inputs);
  if (r.n < 1) {
    throw Error("n must be a positive integer, got " + std::to_string(r.n),
                "n is how many images each condition gets");
  }
  if (static_cast<double>(b) * static_cast<double>(r.n) > kMaxImages) {
    throw Error(std::to_string(b * static_cast<std::size_t>(r.n)) +
                    " images in one call; at most " + std::to_string(kMaxImages),
                "call it again");
  }
  const std::size_t rows = b * static_cast<std::size_t>(r.n);
  const std::vector<double> guidance =
      r.guidance.empty() ? std::vector<double>{e.defaults.at("guidance")} : r.guidance;
  q.guidance = numbers<double>("guidance", guidance, b, rows, 0.0, 1e6);
  if (r.guidance_interval && *r.guidance_interval < -1) {
    throw Error("guidance_interval must be at least -1, got " +
                std::to_string(*r.guidance_interval),
                "guidance ends after so many tokens; -1 never ends it");
  }
  q.interval = r.guidance_interval.value_or(-1);
  q.top_k = numbers<std::int64_t>("top_k", r.top_k, b, rows, 0, 2147483648.0);
  for (std::int64_t& k : q.top_k) k = std::min(k, std::max<std::int64_t>(e.vocabulary, 1));
  q.seeds = spread("seed", r.seed, b, rows);
  for (std::size_t i = 0; i < rows; ++i) {
    q.copies.push_back(static_cast<std::int64_t>(i) % r.n);
  }
  q.temperature = numbers<float>("temperature", r.temperature, b, rows, 0.0, 1e6);
  q.top_p = numbers<float>("top_p", r.top_p, b, rows, 1e-9, 1.0);
  q.given = replacements(e.program, r.given, rows);
  for (auto& [name, value] : q.inputs) value = repeat(value, r.n);
  q.on_step = r.on_step;
  q.stop = r.stop;
  return q;
}

}  // namespace arc
