// Loaded models, shared by runs and never written to; and one run's buffers over them.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "ort_library.hpp"

namespace arc {

// Tensors by name, which a run looks up by number. Names are the engine's, numbers never change.
class Slots {
 public:
  std::size_t operator[](const std::string& name);

 private:
  std::mutex lock_;
  std::unordered_map<std::string, std::size_t> known_;
};

class Env {
 public:
  Ref& operator[](std::size_t slot) {
    if (slot >= values_.size()) values_.resize(slot + 1);
    return values_[slot];
  }

 private:
  std::vector<Ref> values_;
};

// A size of a result: a number, or the size of an input's axis; else what `Type` says.
struct Extent {
  std::int64_t size = -1;
  int input = -1;
  std::size_t axis = 0;
};

struct Port {
  std::string wire, name;  // as the model, and as the program calls it
  Type type;
  std::vector<Extent> extents;  // of a result
  std::size_t slot = 0;
  int carried = -1;     // of a result: the input that it is the next value of
  bool renews = false;  // of a result: it has an input's name, but not its type
  bool by_row = false;  // of a result: it has a row of its own for each row
  bool stays = false;   // of a result: it is carried in the accelerator's memory
};

class Session {
 public:
  Session(std::shared_ptr<const ort::Library> library, const std::string& graph,
          const std::string& path, ort::Threads threads, Slots& slots);
  const ort::Library& library() const { return *library_; }
  OrtSession* raw() const { return session_.get(); }
  const std::string& graph() const { return graph_; }
  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& results() const { return results_; }
  // Inputs whose shapes together tell every size: a few of many.
  const std::vector<std::size_t>& tellers() const { return tellers_; }

 private:
  Port port(std::size_t i, bool input, Slots& slots) const;
  Extent extent(const Dim& d) const;
  std::shared_ptr<const ort::Library> library_;
  std::string graph_;
  ort::Owned<OrtSession> session_;
  std::vector<Port> inputs_, results_;
  std::vector<std::size_t> tellers_;
};

// A session bound to one run's buffers. Nothing is bound twice that did not change.
class Bound {
 public:
  explicit Bound(const Session& session);
  // Reads the inputs off `env` and writes the results to it. A result that carries an input is
  // written where the input lies, unless `in_place` is false.
  void run(Env& env, const OrtRunOptions* options, bool in_place = true);
  // Image by image: inputs with a row for each of the n images are read row by row, and the
  // results are those of all images.
  void run_each(Env& env, std::int64_t n, const OrtRunOptions* options);
  bool makes(std::size_t slot) const;    // does it have such a result?
  const Session& session() const { return s_; }
  double seconds() const { return seconds_; }  // within ONNX Runtime so far

 private:
  bool bind_inputs(Env& env, bool in_place);
  Ref fitting(std::size_t i, const Ref& given);
  void bind_input(std::size_t i, const Ref& value);
  void bind_output(std::size_t i, const Ref& value);
  void bind_carried(bool in_place);
  Ref room(std::size_t i, const Shape& shape);
  void make_outputs();
  Sizes sizes() const;
  Shape shape_of(const Port& result) const;
  void execute(const OrtRunOptions* options);

  const Session& s_;
  ort::Owned<OrtIoBinding> io_;
  std::vector<Ref> given_;  // what the environment held for each input
  std::vector<Ref> last_;   // what each input is bound to: that, or a copy of it
  std::vector<Ref> out_;
  std::vector<Ref> rooms_;  // memory that results lie in; of the shapes that needed most so far
  std::vector<bool> copies_;  // inputs that a result carries
  double seconds_ = 0;
};

// The engine's sessions, each loaded when first needed.
class Models {
 public:
  // light: graphs that get one thread, lest theirs spin while a heavy one runs
  // loop: graphs of the steps; threads of one may wait awake for its next run where it is the only
  // one that is not light
  Models(std::shared_ptr<const ort::Library> library, std::string folder, int threads,
         const std::vector<std::string>& light, const std::set<std::string>& loop);
  const Session& session(const std::string& graph) const;
  bool loaded() const;  // is any?
  Slots& slots() const { return slots_; }
  const ort::Library& library() const { return *library_; }

 private:
  std::shared_ptr<const ort::Library> library_;
  std::string folder_;
  int threads_;
  std::set<std::string> light_;
  std::string spins_;
  mutable Slots slots_;
  mutable std::mutex lock_;
  mutable std::map<std::string, std::unique_ptr<Session>> sessions_;
};

}  // namespace arc
