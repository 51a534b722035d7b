// A whole life of an engine: opened, drawn with, asked for what cannot be, stopped, closed.
//   test_whole <engine>
#include <arcompile/arcompile.hpp>
#include <cstring>
#include <string>

#include "check.hpp"

namespace {

bool same(const arc::Array& a, const arc::Array& b) {
  return a.shape() == b.shape() && (!a.bytes() || !std::memcmp(a.raw(), b.raw(), a.bytes()));
}

arc::Request request(arc::Classes classes) {
  arc::Request r{std::move(classes)};
  r.seed = {7};
  return r;
}

// Twice the same picture, the second time with previews, and in a batch.
void drawn(const arc::Engine& e) {
  const arc::Output one = e.generate(request({1}));
  arc::Request watched = request({1});
  std::size_t steps = 0, previews = 0;
  watched.on_step = [&](const arc::Progress& p) {
    const bool looks = p.step == p.steps / 2 || p.step == p.steps;
    previews += looks && p.preview().bytes() > 0;
    return ++steps > 0;
  };
  const arc::Output two = e.generate(watched);
  CHECK(same(one.tokens, two.tokens) && same(one.latents, two.latents));
  CHECK(one.images && same(one.images, two.images));
  CHECK(steps > 0 && previews > 0);
  arc::Request batch = request({1, 0});
  batch.guidance = {1.0, 3.0};
  CHECK(e.generate(batch).images.shape()[0] == 2);
}

template <class F>
std::string refused(F run, arc::Code code) {
  try {
    run();
  } catch (const arc::Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  CHECK(!"refused");
  return "";
}

void refusals(const arc::Engine& e, const std::string& folder) {
  const auto ask = [&](const arc::Request& r) {
    return refused([&] { e.generate(r); }, arc::Code::theirs);
  };
  CHECK(ask(request({1 << 20})).find("out of range") != std::string::npos);
  arc::Request nothing = request({1});
  nothing.n = 0;
  CHECK(!ask(nothing).empty());
  refused([&] { arc::Engine::open(folder + "/none"); }, arc::Code::theirs);
  refused([&] { arc::Engine::open(folder, {1, "/none.so", ""}); }, arc::Code::machine);
}

void ended(const arc::Engine& e) {
  arc::Request stopped = request({0});
  stopped.stop.emplace();
  stopped.on_step = [&](const arc::Progress&) { return stopped.stop->stop(), true; };
  refused([&] { e.generate(stopped); }, arc::Code::cancelled);

  arc::Request thrown = request({0});
  thrown.on_step = [](const arc::Progress&) -> bool { throw std::string("enough"); };
  std::string caught;
  try {
    e.generate(thrown);
  } catch (const std::string& what) {
    caught = what;
  }
  CHECK(caught == "enough");

  arc::Request early = request({0});
  early.on_step = [](const arc::Progress&) { return false; };
  CHECK(e.generate(early).images);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  for (int life = 0; life < 2; ++life) {
    const arc::Engine e = arc::Engine::open(argv[1]);
    CHECK(e.plan(2).total() > 0);
    drawn(e);
    refusals(e, argv[1]);
    ended(e);
  }
}
