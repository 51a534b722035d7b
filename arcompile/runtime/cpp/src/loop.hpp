// The decode loop: interprets a program over an engine's models. It knows no family by name.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "cancel.hpp"
#include "program.hpp"
#include "session.hpp"

namespace arc {

// What to draw, checked, one entry per image (b of them).
struct Ask {
  std::vector<std::pair<std::string, Ref>> inputs;
  std::vector<std::uint64_t> seeds;
  std::vector<std::int64_t> copies;  // which copy of its condition each image is
  std::vector<double> guidance;
  std::vector<float> temperature;
  std::vector<std::int64_t> top_k;
  std::vector<float> top_p;
  std::int64_t interval = -1;  // guidance only until so many tokens follow the first; -1: always
  std::map<std::string, Ref> given;  // noise that replaces draws
  Ref forced;                        // tokens to commit instead of the sampled ones, i64 [b,N]
  std::function<bool(const Progress&)> on_step;
  std::optional<Stop> stop;
  bool large = true;                 // the finish gives its working memory back

  std::size_t images() const { return seeds.size(); }
};

using Where = std::vector<std::int64_t>;
using Graphs = std::set<std::string>;

// The slots of what the runtime itself provides, or looks for.
struct Named {
  explicit Named(Slots& slots);
  std::size_t image, row, null_row, is_null, past, scale, scales, temperature, top_k, top_p, most,
      tokens, token, logits, pixels, first, shift, done, accepted;
};

// What a step committed, and its logits [b,c,V] with and without the condition.
struct Logits {
  const Step* step;
  Ref conditional, unconditional;
};

// A column of a table over which a call loops.
struct Column {
  std::size_t slot;
  std::vector<Ref> rows;
  Ref now;  // what the graph reads

  const Ref& at(std::size_t turn);
};

class Loop {
 public:
  Loop(const Program& program, const Models& models, const Ask& ask, std::int64_t vocabulary);
  void run(bool finish);

  Ref tokens() const;  // i64 [b,N], or [b,0] where the program draws continuous latents
  Ref result(const std::string& name) { return env_[models_.slots()[name]]; }
  Ref rounds() const;  // i64 [rounds,b], or null
  const Timings& timings() const { return timings_; }
  const std::vector<Logits>& logits() const { return logits_; }
  bool keep_logits = false;

 private:
  friend class Window;

  void set_scales();
  void set_rows();
  void count_turns();
  void prepare();
  void set_tables();
  bool run_steps();
  bool step(std::size_t i, std::size_t& done);
  void make_constants();
  void set_constants(const Work& work);
  void draw_noise(When when, const Where& where, std::int64_t turn);
  void draw_ahead(const Where& where, std::size_t turns);
  void call(const Call& c, const Where* where);
  void run_graph(const std::string& graph, const Where* where);
  // What fails because the caller ended it is a cancelled run, whatever ONNX Runtime calls it.
  template <class F>
  void or_cancelled(F run) {
    try {
      run();
    } catch (const Error&) {
      cancel_.check();
      throw;
    }
  }
  void commit(const Where& where, const Ref& token);
  bool report(std::size_t done);
  std::vector<bool> last_readers() const;
  Graphs graphs_from(std::size_t step) const;
  void forget(const Graphs& later);
  void dismiss(std::size_t done);
  Ref partial();
  void end();
  Bound& bound(const std::string& graph);
  double in_sessions() const;
  std::size_t count_steps() const { return scales_.size() / q_.images(); }

  const Program& p_;
  const Models& models_;
  const Ask& q_;
  std::int64_t vocabulary_;
  Named slot_;
  Env env_;
  std::unordered_map<std::string, Bound> bounds_;
  ort::Owned<OrtRunOptions> options_;
  ort::Owned<OrtRunOptions> last_;   // of the finish, which gives its working memory back if large
  const OrtRunOptions* how_;         // of these, the one that holds now
  Cancel cancel_;
  std::vector<float> scales_;        // guidance by step and image [steps,b]
  std::vector<std::int64_t> turns_;  // how often each step's positions were committed before
  std::vector<std::size_t> draw_slots_;
  std::vector<Ref> noise_;           // of each draw, as drawn last
  std::vector<Ref> ahead_;           // of each draw of a loop, that of all turns
  std::unordered_map<const Work*, std::vector<std::pair<std::size_t, Ref>>> constants_;
  std::map<std::string, std::vector<Column>> tables_;
  Sizes sizes_;
  std::int64_t rows_ = 0;
  std::set<std::size_t> of_rows_;    // slots of what has a row for each row
  Ref tokens_, past_, scale_;
  Where all_;
  const Step* now_ = nullptr;
  std::vector<std::int64_t> rounds_;
  std::vector<Logits> logits_;
  bool drew_ = false, whole_ = false, ended_ = false;
  Timings timings_;
  double ending_ = 0;  // seconds in sessions of the finish
  double let_go_ = 0;  // seconds in sessions that are bound no more
};

// Steps with a window: rounds of drafts and their verification, each image at its own place.
class Window {
 public:
  explicit Window(Loop& loop) : l_(loop), first_(loop.q_.images(), 0) {}
  // One step, after `before` others; false where on_step had enough.
  bool run(const Step& s, std::size_t before);

 private:
  void place(const Step& s, const Where& start, std::size_t before);
  void draw_noise(const Where& where, std::int64_t turn);
  void draw_place(std::size_t draw, const Where& where);
  void commit(const Where& at, const Where& now, const Where& start, std::int64_t begin,
              std::int64_t window);

  Loop& l_;
  Where first_;  // where the last round's windows began
  std::vector<std::pair<Ref, std::int64_t>> places_;  // noise [b,N,width], and how many are drawn
};

// Pixels f32 [B,3,H,W] in [-1,1] -> u8 [B,H,W,3].
Ref to_uint8(const Tensor& pixels);
// Tokens [b,N], where those that are missing (-1) are the last one before, or 0.
Ref filled(const Tensor& tokens);
// Pixels with the cells of a square grid of tokens painted over where those are missing.
Ref greyed(const Ref& pixels, const Tensor& tokens);
// The columns `where` of a tensor [b,N,...].
Ref columns(const Tensor& whole, const Where& where);
// The same of one turn of a tensor [b,N,turns,width] -> [b,c,width].
Ref turned(const Tensor& whole, const Where& where, std::int64_t turn);

}  // namespace arc
