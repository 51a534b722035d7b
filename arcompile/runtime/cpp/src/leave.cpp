// What a run needs no more, and lets go of while it goes on.
#include <algorithm>

#include "loop.hpp"

namespace arc {

// Caches that these graphs, all that are still to run, do not read: others need the memory.
void Loop::forget(const Graphs& later) {
  std::set<std::size_t> read;
  for (const std::string& graph : later) {
    for (const Port& input : models_.session(graph).inputs()) read.insert(input.slot);
  }
  for (const auto& [name, type] : p_.state) {
    const std::size_t slot = models_.slots()[name];
    if (!read.count(slot)) env_[slot] = nullptr;
  }
  for (auto it = bounds_.begin(); it != bounds_.end();) {
    if (later.count(it->first)) {
      ++it;
    } else {
      let_go_ += it->second.seconds();
      it = bounds_.erase(it);
    }
  }
}

// Unconditional twins that no later step guides by leave: fewer rows, the same images.
void Loop::dismiss(std::size_t done) {
  const auto b = static_cast<std::int64_t>(q_.images());
  const auto rest = scales_.begin() + static_cast<std::ptrdiff_t>(done * q_.images());
  if (rows_ == b || keep_logits || rest == scales_.end()) return;
  if (std::any_of(rest, scales_.end(), [](float s) { return s != 1; })) return;
  for (const auto& [name, type] : p_.state) {
    if (!type.shape.empty() && type.shape[0] == Dim::parse("r")) {
      of_rows_.insert(models_.slots()[name]);
    }
  }
  for (const std::size_t slot : of_rows_) {
    if (env_[slot]) env_[slot] = env_[slot]->rows(0, b);
  }
  past_ = past_->rows(0, b);
  env_[slot_.past] = past_;
  env_[slot_.image] = env_[slot_.null_row] = env_[slot_.row];
  env_[slot_.is_null] = env_[slot_.is_null]->rows(0, b);
  rows_ = sizes_["r"] = b;
}

}  // namespace arc
