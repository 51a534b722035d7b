// What a picture looks like: so far, and in bytes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "loop.hpp"
#include "text.hpp"

namespace arc {

namespace {

constexpr float kGrey = 0.6F;  // of pixels that no token stands for yet; white is 1

}  // namespace

// The preview, or the finish run early, over buffers of its own: nothing that is drawn later changes.
// When all is drawn, the picture itself.
Ref Loop::partial() {
  const Error none("this engine draws tokens only", "build it with --decoder");
  if (p_.finish.empty()) throw none;
  if (whole_) {
    end();
    if (!env_[slot_.pixels]) throw none;
    return env_[slot_.pixels];
  }
  const std::vector<Call>& calls = p_.preview.empty() ? p_.finish : p_.preview;
  Env seen = env_;
  seen[slot_.tokens] = filled(*tokens_);
  bool reads = false;
  for (const Call& c : calls) {
    const Session& session = models_.session(c.graph);
    for (const Port& input : session.inputs()) reads = reads || input.slot == slot_.tokens;
    Bound own(session);
    if (!c.loop.empty()) throw Error("a finish that loops has no preview");
    if (c.each) {
      or_cancelled([&] {
        own.run_each(seen, static_cast<std::int64_t>(q_.images()), last_.get());
      });
    } else {
      own.run(seen, last_.get(), false);
    }
  }
  const Ref pixels = seen[slot_.pixels];
  if (!pixels) throw none;
  return reads ? greyed(pixels, *tokens_) : pixels;
}

Ref filled(const Tensor& tokens) {
  Ref out = tokens.copy();
  auto* at = out->as<std::int64_t>();
  for (std::int64_t b = 0; b < tokens.shape[0]; ++b) {
    std::int64_t last = 0;
    for (std::int64_t i = 0; i < tokens.shape[1]; ++i, ++at) {
      if (*at < 0) *at = last;
      last = *at;
    }
  }
  out->lent = true;
  return out;
}

Ref greyed(const Ref& pixels, const Tensor& tokens) {
  const auto side = static_cast<std::int64_t>(std::lround(std::sqrt(tokens.shape[1])));
  if (pixels->shape.size() != 4 || pixels->dtype != DType::f32 || !side) return pixels;
  const std::int64_t planes = pixels->shape[1], h = pixels->shape[2], w = pixels->shape[3];
  if (side * side != tokens.shape[1] || h % side || w % side) return pixels;
  Ref out = pixels->copy();
  float* at = out->as<float>();
  for (std::int64_t b = 0; b < pixels->shape[0]; ++b) {
    const std::int64_t* row = tokens.as<std::int64_t>() + b * tokens.shape[1];
    for (std::int64_t i = 0; i < planes * h * w; ++i, ++at) {
      const std::int64_t y = i / w % h, x = i % w;
      if (row[y / (h / side) * side + x / (w / side)] < 0) *at = kGrey;
    }
  }
  return out;
}

Ref columns(const Tensor& whole, const Where& where) {
  Shape shape = whole.shape;
  const auto rows = static_cast<std::size_t>(shape[0]), n = static_cast<std::size_t>(shape[1]);
  shape[1] = static_cast<std::int64_t>(where.size());
  Ref out = Tensor::zeros(whole.dtype, shape);
  const std::size_t cell = whole.bytes() / std::max<std::size_t>(1, rows * n);
  char* to = out->as<char>();
  for (std::size_t b = 0; b < rows; ++b) {
    for (const std::int64_t at : where) {
      std::memcpy(to, whole.as<char>() + (b * n + static_cast<std::size_t>(at)) * cell, cell);
      to += cell;
    }
  }
  out->lent = true;
  return out;
}

Ref turned(const Tensor& whole, const Where& where, std::int64_t turn) {
  const Shape& s = whole.shape;
  Tensor flat;  // [b,N*turns,width], in the same memory
  flat.dtype = whole.dtype;
  flat.shape = {s[0], s[1] * s[2], s[3]};
  flat.memory = whole.memory;
  flat.data = whole.data;
  Where at;
  for (const std::int64_t i : where) at.push_back(i * s[2] + turn);
  return columns(flat, at);
}

Ref to_uint8(const Tensor& pixels) {
  if (pixels.dtype != DType::f32 || pixels.shape.size() != 4) {
    throw Error("pixels have shape " + shown(pixels.shape) + ", expected [B, 3, H, W]");
  }
  const std::int64_t b = pixels.shape[0], c = pixels.shape[1], h = pixels.shape[2];
  const std::int64_t w = pixels.shape[3], plane = h * w;
  Ref out = Tensor::zeros(DType::u8, {b, h, w, c});
  const float* from = pixels.as<float>();
  for (std::int64_t i = 0; i < b * c; ++i) {
    std::uint8_t* to = out->as<std::uint8_t>() + i / c * plane * c + i % c;
    for (std::int64_t at = 0; at < plane; ++at, to += c) {
      const float x = (*from++ + 1.0F) * 127.5F;
      const float inside = x > 0 ? std::min(x, 255.0F) : 0.0F;  // what is no number is black
      *to = static_cast<std::uint8_t>(std::nearbyint(inside));
    }
  }
  return out;
}

}  // namespace arc
