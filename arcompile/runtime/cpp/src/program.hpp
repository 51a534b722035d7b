// A whole generator as data: the prompt, the steps and the finish, each a list of calls.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dims.hpp"
#include "text.hpp"

namespace arc {

// A number or an array of a program: f32 where it is written with a point, else i64.
struct Constant {
  DType dtype = DType::i64;
  Shape shape;
  std::vector<double> reals;
  std::vector<std::int64_t> integers;
};

// Run a graph: once, once per row of a table, or image by image.
struct Call {
  std::string graph, loop;
  bool each = false;
  static Call parse(const std::string& text);
};

// What equal steps share.
struct Work {
  std::vector<Call> calls;
  double guide[2] = {0, 1};  // guidance is guide[0] + guide[1] * what the user asked for
  Dim append;                // cache slots that the step fills
  std::int64_t window = 0;   // positions of a round, where the step runs in rounds
  std::vector<std::pair<std::string, Constant>> set;
};

struct Step {
  std::vector<std::int64_t> query, commit;
  std::shared_ptr<const Work> work;
  // Steps that it counts as: a position of a window is one.
  std::size_t span() const { return work->window ? commit.size() : 1; }
};

enum class Kind { uniform, normal, gumbel, order };
enum class When { start, step, place, loop };

// Noise by name: `width` numbers a position.
struct Draw {
  std::string name;
  Kind kind = Kind::uniform;
  std::int64_t width = 1;
  When when = When::step;
};

struct Program {
  std::string name, accept;
  std::int64_t positions = 0;
  std::vector<std::pair<std::string, Type>> inputs, state;
  std::vector<Draw> draws;
  std::map<std::string, std::vector<std::pair<std::string, std::vector<Constant>>>> tables;
  std::vector<Call> prompt, finish, preview;
  std::vector<Step> steps;

  // Reads and checks program.json; throws where it is malformed, or beyond this library.
  static Program parse(const Json& data);
  // Sizes of a run: those that only a request tells are `told`, or 64.
  Sizes sizes(std::int64_t images, std::int64_t rows, const Sizes& told = {}) const;
  const Type* input(const std::string& wanted) const;
  std::set<std::string> loop() const;  // graphs of the steps
};

}  // namespace arc
