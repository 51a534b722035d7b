// The decode loop: interprets a program over an engine's models. It knows no family by name.
#pragma once

#include <map>
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
  std::int64_t interval = -1;  // guidance only up to this many steps after the first; -1: always
  std::map<std::string, Ref> given;  // noise that replaces draws
  Ref forced;                        // tokens to commit instead of the sampled ones, i64 [b,N]
  std::function<void(const Progress&)> on_step;
  std::optional<Stop> stop;

  std::size_t images() const { return seeds.size(); }
};

class Loop {
 public:
  Loop(const Program& program, const Models& models, const Ask& ask, std::int64_t vocabulary);
  void run(bool finish);

  Ref tokens() const;  // i64 [b,N], or [b,0] where the program draws continuous latents
  Ref result(const std::string& name);  // null where nothing made it
  Timings timings() const { return timings_; }
  bool keep_logits = false;
  // Of each step: what it committed, and its logits [b,c,V] with and without the condition.
  struct Logits {
    const Step* step;
    Ref conditional, unconditional;
  };
  std::vector<Logits> logits;

 private:
  using Where = std::vector<std::int64_t>;

  // The slots of what the runtime itself provides.
  struct Named {
    explicit Named(Slots& slots);
    std::size_t image, row, null_row, is_null, past, scale, temperature, top_k, top_p, most, tokens,
        token, logits, pixels;
  };

  void set_scales();
  void set_rows();
  void count_turns();
  void prepare();
  void step(std::size_t i);
  void set_constants(const Work& work);
  void draw_noise(When when, const Where& where, std::int64_t turn);
  void call(const Call& c, const Where* where);
  void run_graph(const std::string& graph, const Where* where);
  void keep();
  void commit(const Where& where, const Ref& token);
  void report(std::size_t i);
  Array preview();
  Bound& bound(const std::string& graph);
  double in_sessions() const;

  const Program& p_;
  const Models& models_;
  const Ask& q_;
  std::int64_t vocabulary_;
  Named slot_;
  Env env_;
  std::unordered_map<std::string, Bound> bounds_;
  ort::Owned<OrtRunOptions> options_;
  Cancel cancel_;
  std::vector<float> scales_;       // [steps, b]
  std::vector<std::int64_t> turns_;  // how often each step's positions were committed before
  std::vector<std::size_t> draw_slots_;
  std::vector<Ref> noise_;           // of each draw, as drawn last
  std::unordered_map<const Work*, std::vector<std::pair<std::size_t, Ref>>> constants_;
  std::map<std::string, std::vector<std::pair<std::size_t, std::vector<Ref>>>> tables_;
  Sizes sizes_;
  std::int64_t rows_ = 0;
  Ref tokens_, past_, scale_;
  Where all_;
  const Step* now_ = nullptr;
  bool drew_ = false;
  Timings timings_;
};

// Pixels f32 [B,3,H,W] in [-1,1] -> u8 [B,H,W,3].
Ref to_uint8(const Tensor& pixels);

}  // namespace arc
