#include "program_check.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "program.hpp"

namespace arc {

namespace {

std::vector<std::int64_t> distinct(std::vector<std::int64_t> xs) {
  std::sort(xs.begin(), xs.end());
  xs.erase(std::unique(xs.begin(), xs.end()), xs.end());
  return xs;
}

void check_step(const Program& p, std::size_t i, std::vector<bool>& done, bool& outside) {
  const Step& s = p.steps[i];
  const auto query = distinct(s.query), commit = distinct(s.commit);
  if (!std::includes(query.begin(), query.end(), commit.begin(), commit.end())) {
    throw Error("step " + std::to_string(i) + " commits positions it does not query");
  }
  bool twice = query.size() < s.query.size() || commit.size() < s.commit.size();
  for (const std::int64_t at : commit) {
    if (at < 0 || at >= p.positions) {
      outside = true;
      continue;
    }
    twice = twice || (p.accept == "all" && done[static_cast<std::size_t>(at)]);
    done[static_cast<std::size_t>(at)] = true;
  }
  if (twice) throw Error("step " + std::to_string(i) + " commits a position twice");
}

void check_window(const Program& p, std::size_t i) {
  const Step& s = p.steps[i];
  const std::int64_t window = s.work->window;
  const std::string who = "step " + std::to_string(i);
  if (window > 0 && p.accept != "prefix") {
    throw Error(who + " has a window, but the program does not accept prefixes");
  }
  if (window < 0 || window > static_cast<std::int64_t>(s.commit.size())) {
    throw Error(who + " has a window of " + std::to_string(window) + " on " +
                std::to_string(s.commit.size()) + " positions");
  }
  bool neighbours = !window || s.commit.size() == s.query.size();
  for (std::size_t j = 0; window && neighbours && j < s.commit.size(); ++j) {
    neighbours = s.commit[j] == s.query[0] + static_cast<std::int64_t>(j);
  }
  if (!neighbours) {
    throw Error("the window of " + who + " moves over positions that are not neighbours");
  }
}

void check_cover(const Program& p) {
  std::vector<bool> done(static_cast<std::size_t>(p.positions), false);
  bool outside = false;
  for (std::size_t i = 0; i < p.steps.size(); ++i) {
    check_step(p, i, done, outside);
    check_window(p, i);
  }
  const auto missing = std::count(done.begin(), done.end(), false);
  if (missing) {
    const auto first = std::find(done.begin(), done.end(), false) - done.begin();
    throw Error(std::to_string(missing) + " of " + std::to_string(p.positions) +
                    " positions are never committed",
                "the first is " + std::to_string(first));
  }
  if (outside) {
    throw Error("steps commit positions outside the " + std::to_string(p.positions) +
                " there are");
  }
}

void check_size(const std::string& who, const Dim& d, const Sizes& known) {
  for (const std::string& lost : d.symbols()) {
    if (known.count(lost)) continue;
    std::vector<std::string> names;
    for (const auto& [name, size] : known) names.push_back(name);
    throw Error(who + " has the size " + d.str() + ", but no input tells " + lost,
                did_you_mean(lost, names));
  }
}

void check_sizes(const Program& p) {
  const Sizes known = p.sizes(1, 1);
  for (const auto& [name, type] : p.state) {
    for (const Dim& d : type.shape) check_size("state " + name, d, known);
  }
  const Work* last = nullptr;
  for (std::size_t i = 0; i < p.steps.size(); ++i) {
    if (p.steps[i].work.get() == last) continue;
    last = p.steps[i].work.get();
    check_size("step " + std::to_string(i), last->append, known);
  }
}

void check_loops(const Program& p) {
  std::vector<std::string> names;
  for (const auto& [name, columns] : p.tables) names.push_back(name);
  const auto one = [&](const Call& c) {
    if (c.loop.empty() || p.tables.count(c.loop)) return;
    throw Error("call " + c.graph + "*" + c.loop + (c.each ? "/each" : "") + " loops over " +
                    quoted(c.loop) + ", which is not a table",
                did_you_mean(c.loop, names));
  };
  std::for_each(p.prompt.begin(), p.prompt.end(), one);
  const Work* last = nullptr;
  for (const Step& s : p.steps) {
    if (s.work.get() == last) continue;
    last = s.work.get();
    std::for_each(last->calls.begin(), last->calls.end(), one);
  }
  std::for_each(p.finish.begin(), p.finish.end(), one);
  std::for_each(p.preview.begin(), p.preview.end(), one);
}

}  // namespace

void check(const Program& p) {
  check_cover(p);
  check_sizes(p);
  check_loops(p);
}

}  // namespace arc
