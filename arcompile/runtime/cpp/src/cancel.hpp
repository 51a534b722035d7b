// The inside of a Stop: the runs that it ends.
#pragma once

#include <arcompile/arcompile.hpp>
#include <atomic>
#include <list>
#include <mutex>
#include <optional>

namespace arc {

struct Stop::State {
  std::atomic<bool> stopped{false};
  std::mutex lock;
  std::list<std::function<void()>> running;  // how to end what ONNX Runtime is computing
};

// One run's registration with a Stop, for as long as the run lasts.
class Cancel {
 public:
  Cancel(const std::optional<Stop>& stop, std::function<void()> end);
  Cancel(const Cancel&) = delete;
  Cancel& operator=(const Cancel&) = delete;
  ~Cancel();
  void check() const;  // throws Code::cancelled when it was asked for
  bool asked() const { return state_ && state_->stopped; }

 private:
  std::shared_ptr<Stop::State> state_;
  std::list<std::function<void()>>::iterator at_;
};

}  // namespace arc
