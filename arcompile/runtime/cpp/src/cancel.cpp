#include "cancel.hpp"

namespace arc {

Stop::Stop() : state_(std::make_shared<State>()) {}

void Stop::stop() noexcept {
  const std::lock_guard<std::mutex> held(state_->lock);
  state_->stopped = true;
  for (const auto& end : state_->running) end();
}

bool Stop::stopped() const noexcept { return state_->stopped; }

Cancel::Cancel(const std::optional<Stop>& stop, std::function<void()> end) {
  if (!stop) return;
  state_ = stop->state_;
  const std::lock_guard<std::mutex> held(state_->lock);
  at_ = state_->running.insert(state_->running.end(), std::move(end));
}

Cancel::~Cancel() {
  if (!state_) return;
  const std::lock_guard<std::mutex> held(state_->lock);
  state_->running.erase(at_);
}

void Cancel::check() const {
  if (asked()) throw Error("the run was cancelled", "", Code::cancelled);
}

}  // namespace arc
