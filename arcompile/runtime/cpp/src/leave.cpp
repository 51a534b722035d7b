// What a run needs no more, and lets go of while it goes on.
#include <algorithm>

#include "loop.hpp"

namespace arc {

// Of each step: does it read a state that neither later steps nor the finish do? Only then is there
// something to let go of; steps of few microseconds notice.
std::vector<bool> Loop::last_readers() const {
  std::map<std::size_t, bool> later;  // of each state: is it read later?
  for (const auto& [name, type] : p_.state) later[models_.slots()[name]] = false;
  const auto read = [&](const std::vector<Call>& calls) {
    bool first = false;
    for (const Call& c : calls) {
      for (const Port& input : models_.session(c.graph).inputs()) {
        const auto state = later.find(input.slot);
        if (state == later.end() || state->second) continue;
        first = state->second = true;
      }
    }
    return first;
  };
  read(p_.finish);
  read(p_.preview);
  std::vector<bool> out(p_.steps.size(), false);
  const Work* seen = nullptr;
  for (std::size_t i = p_.steps.size(); i-- > 0;) {
    const Work* work = p_.steps[i].work.get();
    if (work != seen) out[i] = read(work->calls);
    seen = work;
  }
  // what is left then is what the run makes, or is let go of by what follows
  if (!out.empty()) out.back() = false;
  return out;
}

// The graphs that still run from this step on.
Graphs Loop::graphs_from(std::size_t step) const {
  Graphs out;
  const Work* seen = nullptr;
  for (std::size_t i = step; i < p_.steps.size(); ++i) {
    const Work* work = p_.steps[i].work.get();
    if (work == seen) continue;
    for (const Call& c : work->calls) out.insert(c.graph);
    seen = work;
  }
  for (const Call& c : p_.finish) out.insert(c.graph);
  if (step < p_.steps.size()) {
    for (const Call& c : p_.preview) out.insert(c.graph);
  }
  return out;
}

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
