#include "loop.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "pages.hpp"
#include "rng.hpp"

namespace arc {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// How many sorted logits the filters need, over all images.
std::int64_t most_sorted(const Ask& q, std::int64_t vocabulary) {
  std::int64_t most = 1;
  for (std::size_t i = 0; i < q.images(); ++i) {
    const std::int64_t need = q.top_k[i] > 0 ? q.top_k[i] : q.top_p[i] < 1 ? vocabulary : 1;
    most = std::max(most, std::min(need, std::max<std::int64_t>(vocabulary, 1)));
  }
  return most;
}

// Rows of a tensor [r,...] in the order of `index`.
Ref gather(const Tensor& whole, const Tensor& index) {
  Shape shape = whole.shape;
  const std::size_t row = whole.bytes() / static_cast<std::size_t>(shape[0]);
  shape[0] = index.shape[0];
  Ref out = Tensor::blank(whole.dtype, shape);
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    const auto from = static_cast<std::size_t>(index.as<std::int64_t>()[i]);
    std::memcpy(out->as<char>() + static_cast<std::size_t>(i) * row, whole.as<char>() + from * row, row);
  }
  return out;
}

}  // namespace

Named::Named(Slots& s)
    : image(s["image"]), row(s["row"]), null_row(s["null_row"]), is_null(s["is_null"]),
      past(s["past"]), scale(s["scale"]), scales(s["scales"]), temperature(s["temperature"]),
      top_k(s["top_k"]), top_p(s["top_p"]), most(s["most"]), tokens(s["tokens"]),
      token(s["token"]), logits(s["logits"]), pixels(s["pixels"]), first(s["first"]),
      shift(s["shift"]), done(s["done"]), accepted(s["accepted"]) {}

Loop::Loop(const Program& program, const Models& models, const Ask& ask, std::int64_t vocabulary)
    : p_(program), models_(models), q_(ask), vocabulary_(vocabulary), slot_(models.slots()),
      options_(models.library().run_options()), last_(models.library().run_options(ask.large)),
      how_(options_.get()),
      cancel_(ask.stop, [this] {
        const ort::Library& lib = models_.library();
        lib.said(lib.api().RunOptionsSetTerminate(options_.get()));
        lib.said(lib.api().RunOptionsSetTerminate(last_.get()));
      }) {
  set_scales();
  count_turns();
  set_rows();
  prepare();
}

// Guidance by step and image; a position of a window counts as a step. Below 1 there is none, as
// in the families' own code.
void Loop::set_scales() {
  std::int64_t drawn = 0;  // tokens before the step
  for (const Step& s : p_.steps) {
    const double* guide = s.work->guide;
    for (std::size_t k = 0; k < s.span(); ++k) {
      const bool ended = q_.interval >= 0 && drawn > q_.interval + 1;
      drawn += static_cast<std::int64_t>(s.commit.size() / s.span());
      for (const double asked : q_.guidance) {
        const double scale = std::max(guide[0] + guide[1] * asked, 1.0);
        scales_.push_back(ended ? 1.0F : static_cast<float>(scale));
      }
    }
  }
}

// Rows 0..b-1 are the images, then the unconditional twins of those that are guided.
void Loop::set_rows() {
  const std::size_t b = q_.images();
  std::vector<std::int64_t> image(b), null(b);
  std::iota(image.begin(), image.end(), 0);
  std::iota(null.begin(), null.end(), 0);
  const std::vector<std::int64_t> row = image;
  for (std::size_t j = 0; j < b; ++j) {
    bool guided = false;
    for (std::size_t i = j; i < scales_.size(); i += b) guided = guided || scales_[i] != 1;
    if (!guided) continue;
    null[j] = static_cast<std::int64_t>(image.size());
    image.push_back(static_cast<std::int64_t>(j));
  }
  rows_ = static_cast<std::int64_t>(image.size());
  Ref is_null = Tensor::zeros(DType::boolean, {rows_});
  for (std::size_t i = b; i < image.size(); ++i) is_null->as<bool>()[i] = true;
  is_null->lent = true;
  env_[slot_.image] = integers(image);
  env_[slot_.row] = integers(row);
  env_[slot_.null_row] = integers(null);
  env_[slot_.is_null] = is_null;
}

// Positions that are committed again get fresh noise every time.
void Loop::count_turns() {
  turns_.assign(p_.steps.size(), 0);
  if (p_.accept == "all") return;
  std::vector<std::int64_t> seen(static_cast<std::size_t>(p_.positions), 0);
  for (std::size_t i = 0; i < p_.steps.size(); ++i) {
    for (const std::int64_t at : p_.steps[i].commit) {
      turns_[i] = std::max(turns_[i], seen[static_cast<std::size_t>(at)]);
    }
    for (const std::int64_t at : p_.steps[i].commit) ++seen[static_cast<std::size_t>(at)];
  }
}

void Loop::prepare() {
  Slots& slots = models_.slots();
  const auto b = static_cast<std::int64_t>(q_.images());
  Sizes told;
  for (const auto& [name, value] : q_.inputs) {
    env_[slots[name]] = value;
    measure(name, *p_.input(name), value->shape, told);
  }
  sizes_ = p_.sizes(b, rows_, told);
  tokens_ = Tensor::zeros(DType::i64, {b, p_.positions});
  std::fill_n(tokens_->as<std::int64_t>(), tokens_->size(), -1);
  past_ = Tensor::zeros(DType::i32, {rows_});
  scale_ = Tensor::zeros(DType::f32, {b});
  std::fill_n(scale_->as<float>(), b, 1.0F);
  tokens_->lent = past_->lent = scale_->lent = true;
  env_[slot_.tokens] = tokens_, env_[slot_.past] = past_, env_[slot_.scale] = scale_;
  env_[slot_.temperature] = reals(q_.temperature);
  env_[slot_.top_k] = integers(q_.top_k);
  env_[slot_.top_p] = reals(q_.top_p);
  env_[slot_.most] = integers({most_sorted(q_, vocabulary_)});
  for (const Draw& d : p_.draws) draw_slots_.push_back(slots[d.name]);
  noise_.resize(p_.draws.size());
  set_tables();
  make_constants();
  all_.resize(static_cast<std::size_t>(p_.positions));
  std::iota(all_.begin(), all_.end(), 0);
}

void Loop::set_tables() {
  for (const auto& [table, held] : p_.tables) {
    for (const auto& [name, values] : held) {
      Column made{models_.slots()[name], {}, nullptr};
      for (const Constant& c : values) made.rows.push_back(Tensor::of(c));
      tables_[table].push_back(std::move(made));
    }
  }
}

void Loop::run(bool finish) {
  const auto start = Clock::now();
  Pages pages;
  for (const auto& [name, type] : p_.state) {
    env_[models_.slots()[name]] = pages.zeros(type.dtype, type.shape_of(sizes_));
  }
  draw_noise(When::start, all_, 0);
  for (const Call& c : p_.prompt) call(c, nullptr);
  timings_.prompt = since(start);
  const auto ready = Clock::now();
  const double before = in_sessions();
  run_steps();
  timings_.loop = since(ready) - timings_.finish;
  timings_.sessions = in_sessions() - before - ending_;
  if (finish && !p_.finish.empty()) end();
  timings_.total = since(start);
}

// The finish, once: a preview of what is whole already needs what it makes.
void Loop::end() {
  if (ended_) return;
  const auto begun = Clock::now();
  forget(graphs_from(p_.steps.size()));
  for (const auto& [name, b] : bounds_) let_go_ += b.seconds();
  bounds_.clear();
  how_ = last_.get();
  const double before = in_sessions();
  const auto* t = tokens_->as<std::int64_t>();
  if (drew_ && std::find(t, t + tokens_->size(), -1) != t + tokens_->size()) {
    env_[slot_.tokens] = filled(*tokens_);  // of a run that ended early
  }
  for (const Call& c : p_.finish) call(c, nullptr);
  if (q_.large) models_.library().trim();
  ending_ = in_sessions() - before;
  timings_.finish = since(begun);
  ended_ = true;
}

// False where on_step had enough.
bool Loop::run_steps() {
  Window window(*this);
  const std::vector<bool> last = last_readers();
  std::size_t done = 0;
  for (std::size_t i = 0; i < p_.steps.size(); ++i) {
    const Step& s = p_.steps[i];
    now_ = &s;
    set_constants(*s.work);
    if (s.work->window) {
      if (!window.run(s, done)) return false;
    } else {
      const auto begin = Clock::now();
      std::memcpy(scale_->data, &scales_[done * q_.images()], scale_->bytes());
      env_[slot_.scale] = scale_;
      draw_noise(When::step, s.commit, turns_[i]);
      draw_noise(When::place, s.commit, 0);
      for (const Call& c : s.work->calls) call(c, &s.commit);
      timings_.steps.push_back(since(begin));
    }
    const auto more = static_cast<std::int32_t>(s.work->append.value(sizes_));
    for (std::int64_t r = 0; r < rows_; ++r) past_->as<std::int32_t>()[r] += more;
    env_[slot_.past] = past_;
    done += s.span();
    if (last[i]) forget(graphs_from(i + 1));
    dismiss(done);
    if (!s.work->window && !report(done)) return false;
  }
  return true;
}

// In the memory of the turn before where it fits: what is bound already is not bound again.
const Ref& Column::at(std::size_t turn) {
  const Ref& row = rows[turn];
  if (!now || now->shape != row->shape) {
    now = row->copy();
    now->lent = true;
  } else if (row->bytes()) {
    std::memcpy(now->data, row->data, row->bytes());
  }
  return now;
}

// What steps set, made before the first of them.
void Loop::make_constants() {
  for (const Step& s : p_.steps) {
    auto& made = constants_[s.work.get()];
    if (!made.empty()) continue;
    for (const auto& [name, value] : s.work->set) {
      made.emplace_back(models_.slots()[name], Tensor::of(value));
    }
  }
}

void Loop::set_constants(const Work& work) {
  if (work.set.empty()) return;
  for (const auto& [slot, value] : constants_.at(&work)) env_[slot] = value;
}

void Loop::draw_noise(When when, const Where& where, std::int64_t turn) {
  for (std::size_t i = 0; i < p_.draws.size(); ++i) {
    const Draw& d = p_.draws[i];
    if (d.when != when) continue;
    Ref& seen = env_[draw_slots_[i]];
    const auto given = q_.given.find(d.name);
    if (given != q_.given.end()) {
      seen = when == When::start  ? given->second
             : when == When::loop ? turned(*given->second, where, turn)
                                  : columns(*given->second, where);
      continue;
    }
    Ref& own = noise_[i];
    if (!own || own->shape[1] != static_cast<std::int64_t>(where.size())) {
      own = room(d, q_.images(), where.size());
    }
    if (when == When::loop) {
      std::memcpy(own->data, ahead_[i]->as<char>() + static_cast<std::size_t>(turn) * own->bytes(), own->bytes());
    } else {
      draw(d, i, q_.seeds, q_.copies, where, turn, *own);
    }
    seen = own;
  }
}

// The noise of all turns of a loop: drawn one by one between graphs, each would find the caches cold.
void Loop::draw_ahead(const Where& where, std::size_t turns) {
  const auto b = static_cast<std::int64_t>(q_.images());
  ahead_.resize(p_.draws.size());
  for (std::size_t i = 0; i < p_.draws.size(); ++i) {
    const Draw& d = p_.draws[i];
    if (d.when != When::loop || q_.given.count(d.name)) continue;
    Ref& all = ahead_[i];
    const auto c = static_cast<std::int64_t>(where.size());
    if (!all || all->shape[0] != static_cast<std::int64_t>(turns) * b || all->shape[1] != c) {
      all = room(d, turns * q_.images(), where.size());
    }
    for (std::size_t t = 0; t < turns; ++t) {
      const auto turn = static_cast<std::int64_t>(t);
      draw(d, i, q_.seeds, q_.copies, where, turn, *all->rows(turn * b, b));
    }
  }
}

void Loop::call(const Call& c, const Where* where) {
  cancel_.check();
  if (!c.loop.empty()) {
    auto& columns = tables_.at(c.loop);
    const std::size_t turns = columns.front().rows.size();
    const Where& drawn = where ? *where : Where{};
    draw_ahead(drawn, turns);
    for (std::size_t t = 0; t < turns; ++t) {
      for (Column& column : columns) env_[column.slot] = column.at(t);
      draw_noise(When::loop, drawn, static_cast<std::int64_t>(t));
      run_graph(c.graph, where);
    }
  } else if (c.each) {
    Bound& b = bound(c.graph);
    or_cancelled([&] { b.run_each(env_, static_cast<std::int64_t>(q_.images()), how_); });
  } else {
    run_graph(c.graph, where);
  }
}

void Loop::run_graph(const std::string& graph, const Where* where) {
  Bound& b = bound(graph);
  or_cancelled([&] { b.run(env_, how_); });
  for (const Port& r : b.session().results()) {
    if (r.by_row) of_rows_.insert(r.slot);
  }
  if (!where) return;
  if (keep_logits && b.makes(slot_.logits)) {
    const Tensor& rows = *env_[slot_.logits];
    logits_.push_back(
        {now_, gather(rows, *env_[slot_.row]), gather(rows, *env_[slot_.null_row])});
  }
  if (b.makes(slot_.token)) commit(*where, env_[slot_.token]);
}

void Loop::commit(const Where& where, const Ref& token) {
  drew_ = true;
  if (q_.forced) env_[slot_.token] = columns(*q_.forced, where);
  const std::int64_t* from = env_[slot_.token]->as<std::int64_t>();
  const std::size_t c = where.size(), b = q_.images(), n = static_cast<std::size_t>(p_.positions);
  if (token->size() != b * c) {
    throw Error("a step commits " + std::to_string(c) + " tokens of " + std::to_string(b) +
                " images, but its graph makes " + std::to_string(token->size()));
  }
  for (std::size_t i = 0; i < b; ++i) {
    for (std::size_t j = 0; j < c; ++j) {
      tokens_->as<std::int64_t>()[i * n + static_cast<std::size_t>(where[j])] = from[i * c + j];
    }
  }
  env_[slot_.tokens] = tokens_;
}

// Tells on_step; false where it had enough.
bool Loop::report(std::size_t done) {
  if (!q_.on_step) return true;
  whole_ = done == count_steps();
  const Progress seen{done, count_steps(), q_.images(), static_cast<std::size_t>(p_.positions),
                      tokens_->as<std::int64_t>(),
                      [this] { return partial()->array(); },
                      [this] { return to_uint8(*partial())->array(); }};
  const bool more = q_.on_step(seen);
  cancel_.check();
  return more;
}

Bound& Loop::bound(const std::string& graph) {
  const auto found = bounds_.find(graph);
  if (found != bounds_.end()) return found->second;
  return bounds_.emplace(graph, Bound(models_.session(graph))).first->second;
}

double Loop::in_sessions() const {
  double total = let_go_;
  for (const auto& [name, b] : bounds_) total += b.seconds();
  return total;
}

Ref Loop::tokens() const {
  return drew_ ? tokens_ : Tensor::zeros(DType::i64, {tokens_->shape[0], 0});
}

Ref Loop::rounds() const {
  if (rounds_.empty()) return nullptr;
  Ref out = integers(rounds_);
  const auto b = static_cast<std::int64_t>(q_.images());
  out->shape = {static_cast<std::int64_t>(rounds_.size()) / b, b};
  return out;
}

}  // namespace arc
