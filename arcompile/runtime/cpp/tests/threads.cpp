// One engine in several threads, two engines in one process, and runs that are stopped from outside.
//   test_threads <engine>
#include <arcompile/arcompile.hpp>
#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"

namespace {

constexpr int kCrew = 4;

arc::Output draw(const arc::Engine& e, int i) {
  arc::Request r{arc::Classes{i % 2}};
  r.seed = {static_cast<std::uint64_t>(i)};
  return e.generate(r);
}

bool same(const arc::Array& a, const arc::Array& b) {
  return a.shape() == b.shape() && !std::memcmp(a.raw(), b.raw(), a.bytes());
}

void shared(const arc::Engine& one, const arc::Engine& two) {
  arc::Output want[kCrew], got[kCrew];
  for (int i = 0; i < kCrew; ++i) want[i] = draw(one, i);
  std::thread crew[kCrew];
  for (int i = 0; i < kCrew; ++i) {
    crew[i] = std::thread([&, i] { got[i] = draw(i % 2 ? one : two, i); });
  }
  for (std::thread& t : crew) t.join();
  for (int i = 0; i < kCrew; ++i) CHECK(same(want[i].tokens, got[i].tokens));
}

void stopped(const arc::Engine& e) {
  arc::Request r{arc::Classes{0}};
  r.stop.emplace();
  std::atomic<bool> started{false};
  r.on_step = [&](const arc::Progress&) { return started = true; };
  std::thread other([&, stop = *r.stop]() mutable {
    while (!started) std::this_thread::yield();
    stop.stop();
  });
  bool ended = false;
  try {
    for (;;) e.generate(r);  // the first may be over before it is stopped
  } catch (const arc::Error& error) {
    ended = error.code() == arc::Code::cancelled;
  }
  other.join();
  CHECK(ended);
}

void thrown(const arc::Engine& e) {
  arc::Request r{arc::Classes{0}};
  r.on_step = [](const arc::Progress&) -> bool { throw 42; };
  int caught = 0;
  try {
    e.generate(r);
  } catch (int what) {
    caught = what;
  }
  CHECK(caught == 42);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  const arc::Options options{1, "", ""};
  const arc::Engine one = arc::Engine::open(argv[1], options);
  const arc::Engine two = arc::Engine::open(argv[1], options);
  shared(one, two);
  stopped(one);
  thrown(two);
}
