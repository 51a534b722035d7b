// An image's tokens depend on no other image: each has its own first slot, and noise is drawn by
// the position and the number of the round. A cache is rolled back by writing over what was not
// committed.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "loop.hpp"
#include "rng.hpp"

namespace arc {

namespace {

using Clock = std::chrono::steady_clock;

// [b, c] with `value(i, j)` in each cell.
template <class T, class Value>
Ref grid(DType dtype, std::size_t b, std::size_t c, Value value) {
  Ref out = Tensor::zeros(dtype, {static_cast<std::int64_t>(b), static_cast<std::int64_t>(c)});
  for (std::size_t i = 0; i < b; ++i) {
    for (std::size_t j = 0; j < c; ++j) out->as<T>()[i * c + j] = value(i, j);
  }
  out->lent = true;
  return out;
}

}  // namespace

bool Window::run(const Step& s, std::size_t before) {
  if (l_.q_.forced) {
    throw Error("an engine that drafts has no logits step by step",
                "build it without the passes that speculate");
  }
  const std::size_t b = l_.q_.images();
  const auto n = static_cast<std::int64_t>(s.commit.size());
  const std::int64_t begin = s.commit[0], window = s.work->window;
  const Ref base = l_.past_->copy();
  Where at(b, 0), start(b), now(b);  // of this step: committed, the window's first slot, and then
  for (std::int64_t turn = 0; *std::min_element(at.begin(), at.end()) < n; ++turn) {
    const auto clock = Clock::now();
    for (std::size_t i = 0; i < b; ++i) start[i] = std::min(at[i], n - window);
    for (std::int64_t r = 0; r < l_.rows_; ++r) {
      const auto i = static_cast<std::size_t>(l_.env_[l_.slot_.image]->as<std::int64_t>()[r]);
      l_.past_->as<std::int32_t>()[r] =
          base->as<std::int32_t>()[r] + static_cast<std::int32_t>(start[i]);
    }
    l_.env_[l_.slot_.past] = l_.past_;
    Where done(b);
    for (std::size_t i = 0; i < b; ++i) done[i] = at[i] - start[i];
    l_.env_[l_.slot_.done] = integers(done);
    place(s, start, before);
    Where where;
    for (const std::int64_t from : start) {
      for (std::int64_t j = 0; j < window; ++j) where.push_back(begin + from + j);
    }
    draw_noise(where, turn);
    for (const Call& c : s.work->calls) l_.call(c, nullptr);
    const Ref accepted = l_.env_[l_.slot_.accepted];
    if (!accepted || accepted->size() != b) throw Error("a round says nothing of what is right");
    for (std::size_t i = 0; i < b; ++i) {
      now[i] = start[i] + std::min(accepted->as<std::int64_t>()[i], window);
    }
    commit(at, now, start, begin, window);
    for (std::size_t i = 0; i < b; ++i) l_.rounds_.push_back(now[i] - at[i]);
    at = now;
    l_.timings_.steps.push_back(std::chrono::duration<double>(Clock::now() - clock).count());
    if (!l_.report(before + static_cast<std::size_t>(*std::min_element(at.begin(), at.end())))) {
      return false;
    }
  }
  std::memcpy(l_.past_->data, base->data, base->bytes());
  l_.env_[l_.slot_.past] = l_.past_;
  return true;
}

// first, shift and scales of a round.
void Window::place(const Step& s, const Where& start, std::size_t before) {
  const std::size_t b = start.size(), window = static_cast<std::size_t>(s.work->window);
  Where first(b), shift(b);
  for (std::size_t i = 0; i < b; ++i) {
    first[i] = s.commit[0] + start[i];
    shift[i] = first[i] - first_[i];
  }
  first_ = first;
  l_.env_[l_.slot_.first] = integers(first);
  l_.env_[l_.slot_.shift] = integers(shift);
  l_.env_[l_.slot_.scales] = grid<float>(DType::f32, b, window, [&](std::size_t i, std::size_t j) {
    return l_.scales_[(before + static_cast<std::size_t>(start[i]) + j) * b + i];
  });
}

void Window::draw_noise(const Where& where, std::int64_t turn) {
  places_.resize(l_.p_.draws.size());
  for (std::size_t i = 0; i < l_.p_.draws.size(); ++i) {
    const Draw& d = l_.p_.draws[i];
    if (d.when == When::place) draw_place(i, where);
    if (d.when != When::step) continue;
    const std::size_t b = l_.q_.images();
    Ref& own = l_.noise_[i];
    if (!own || own->size() != room(d, b, where.size() / b)->size()) {
      own = room(d, b, where.size() / b);
    }
    draw(d, i, l_.q_.seeds, l_.q_.copies, Places(where, b), turn, *own);
    l_.env_[l_.draw_slots_[i]] = own;
  }
}

// What belongs to these positions; each is drawn once, as windows reach it.
void Window::draw_place(std::size_t draw_index, const Where& where) {
  const Draw& d = l_.p_.draws[draw_index];
  const std::size_t b = l_.q_.images(), c = where.size() / b;
  auto& [whole, drawn] = places_[draw_index];
  const auto given = l_.q_.given.find(d.name);
  if (given != l_.q_.given.end()) {
    whole = given->second;
  } else {
    const std::int64_t to = *std::max_element(where.begin(), where.end()) + 1;
    if (!whole) whole = room(d, b, static_cast<std::size_t>(l_.p_.positions));
    if (to > drawn) {
      Where lack;
      for (std::int64_t at = drawn; at < to; ++at) lack.push_back(at);
      const Ref more = room(d, b, lack.size());
      draw(d, draw_index, l_.q_.seeds, l_.q_.copies, lack, 0, *more);
      const std::size_t row = more->bytes() / b, all = whole->bytes() / b;
      const std::size_t cell = row / lack.size();
      for (std::size_t i = 0; i < b; ++i) {
        std::memcpy(whole->as<char>() + i * all + static_cast<std::size_t>(drawn) * cell,
                    more->as<char>() + i * row, row);
      }
      drawn = to;
    }
  }
  const Ref out = room(d, b, c);
  const std::size_t all = whole->bytes() / b;
  const std::size_t cell = all / static_cast<std::size_t>(l_.p_.positions);
  for (std::size_t i = 0; i < where.size(); ++i) {
    std::memcpy(out->as<char>() + i * cell,
                whole->as<char>() + i / c * all + static_cast<std::size_t>(where[i]) * cell, cell);
  }
  l_.env_[l_.draw_slots_[draw_index]] = out;
}

void Window::commit(const Where& at, const Where& now, const Where& start, std::int64_t begin,
                    std::int64_t window) {
  const std::int64_t end = *std::max_element(start.begin(), start.end()) + window;
  for (std::size_t i = 0; i < at.size(); ++i) {
    if (now[i] <= at[i] && at[i] < end) {
      throw Error("a round committed nothing", "rebuild the engine");
    }
  }
  const Ref token = l_.env_[l_.slot_.token];
  if (!token || token->size() != at.size() * static_cast<std::size_t>(window)) {
    throw Error("a round does not make " + std::to_string(window) + " tokens an image");
  }
  for (std::size_t i = 0; i < at.size(); ++i) {
    for (std::int64_t j = at[i]; j < now[i]; ++j) {
      const auto slot = static_cast<std::int64_t>(i) * window + j - start[i];
      l_.tokens_->as<std::int64_t>()[static_cast<std::int64_t>(i) * l_.p_.positions + begin + j] =
          token->as<std::int64_t>()[slot];
    }
  }
  l_.drew_ = true;
  l_.env_[l_.slot_.tokens] = l_.tokens_;
}

}  // namespace arc
