// The C interface over the C++ one. Nothing is thrown across it.
#include <arcompile/arcompile.h>

#include <arcompile/arcompile.hpp>
#include <cmath>
#include <cstring>
#include <new>

struct arc_error {
  std::string what, hint;
  int code;
  bool fixed = false;  // the one that needs no memory, and is not freed
};

struct arc_engine {
  arc::Engine engine;
  std::string manifest, runtime;
  std::map<std::string, double> defaults;
};

struct arc_request {
  arc::Request request;
};

struct arc_output {
  std::map<std::string, arc::Array> tensors;
  arc::Timings timings;
};

struct arc_stop {
  arc::Stop stop;
};

struct arc_progress {
  const arc::Progress& seen;
  std::int64_t shape[2];
  mutable arc::Array preview;
};

namespace {

struct Cancelled {};  // what on_step's answer becomes on its way through the loop

arc_error* made(const char* what, const char* hint, int code) {
  return new arc_error{what, hint, code};
}

// Runs `body`, and tells what it throws.
template <class Body>
arc_error* guarded(Body body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const arc::Error& e) {
      return made(e.what(), e.hint().c_str(), static_cast<int>(e.code()));
    } catch (const Cancelled&) {
      return made("the run was cancelled", "", ARC_CANCELLED);
    } catch (const std::bad_alloc&) {
      return made("out of memory", "", ARC_MACHINE);
    } catch (const std::exception& e) {
      return made(e.what(), "this is a bug in libarcompile", ARC_INTERNAL);
    } catch (...) {
      return made("a callback threw", "", ARC_THEIRS);
    }
  } catch (...) {  // no memory for the message
    static arc_error none{"out of memory", "", ARC_MACHINE, true};
    return &none;
  }
}

void need(const void* pointer, const char* name) {
  if (!pointer) throw arc::Error(std::string(name) + " is NULL");
}

arc::View view(const arc_tensor& t) {
  if (static_cast<unsigned>(t.dtype) > ARC_BOOL) throw arc::Error("a tensor has no such dtype");
  if (t.rank > 16 || (t.rank && !t.shape)) throw arc::Error("a tensor has no shape");
  arc::View out{static_cast<arc::DType>(t.dtype), {}, t.data};
  bool empty = false;
  for (std::size_t i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 0) throw arc::Error("a tensor has a negative size");
    out.shape.push_back(t.shape[i]);
    empty = empty || !t.shape[i];
  }
  if (!empty) need(t.data, "the data of a tensor");
  return out;
}

arc_tensor tensor(const arc::Array& a) {
  if (!a) return {ARC_F32, 0, nullptr, nullptr};
  return {static_cast<arc_dtype>(a.dtype()), a.shape().size(), a.shape().data(), a.raw()};
}

template <class T>
T& condition(arc_request* r) {  // what was given so far, of this kind
  if (!std::holds_alternative<T>(r->request.condition)) r->request.condition = T{};
  return std::get<T>(r->request.condition);
}

}  // namespace

const char* arc_error_what(const arc_error* e) { return e ? e->what.c_str() : ""; }
const char* arc_error_hint(const arc_error* e) { return e ? e->hint.c_str() : ""; }
int arc_error_code(const arc_error* e) { return e ? e->code : 0; }
void arc_error_free(arc_error* e) {
  if (e && !e->fixed) delete e;
}

namespace {

arc_engine* opened(const char* folder, const arc::Options& options) {
  need(folder, "folder");
  arc::Engine engine = arc::Engine::open(folder, options);
  return new arc_engine{engine, engine.manifest(), engine.runtime(), engine.defaults()};
}

std::string word(const char* given) { return given ? given : ""; }

}  // namespace

arc_error* arc_engine_open(const char* folder, int threads, const char* ort_library,
                           const char* kernels, arc_engine** out) {
  return guarded([&] {
    need(out, "out");
    *out = nullptr;
    *out = opened(folder, {threads, word(ort_library), word(kernels), ""});
  });
}

arc_error* arc_engine_open_signed(const char* folder, int threads, const char* ort_library,
                                  const char* kernels, const char* signed_by, arc_engine** out) {
  return guarded([&] {
    need(out, "out"), need(signed_by, "signed_by");
    *out = nullptr;
    if (!*signed_by) throw arc::Error("signed_by is empty");
    *out = opened(folder, {threads, word(ort_library), word(kernels), signed_by});
  });
}

void arc_engine_free(arc_engine* e) { delete e; }
const char* arc_engine_family(const arc_engine* e) { return e ? e->engine.family().c_str() : ""; }
const char* arc_engine_manifest(const arc_engine* e) { return e ? e->manifest.c_str() : ""; }
const char* arc_engine_runtime(const arc_engine* e) { return e ? e->runtime.c_str() : ""; }
size_t arc_engine_labels(const arc_engine* e) { return e ? e->engine.labels().size() : 0; }

const char* arc_engine_label(const arc_engine* e, size_t i) {
  return i < arc_engine_labels(e) ? e->engine.labels()[i].c_str() : nullptr;
}

double arc_engine_default(const arc_engine* e, const char* name) {
  if (!e || !name) return NAN;
  const auto found = e->defaults.find(name);
  return found == e->defaults.end() ? NAN : found->second;
}

arc_error* arc_engine_plan(const arc_engine* e, int64_t images, int guided, const char* part,
                           int64_t* bytes) {
  return guarded([&] {
    need(e, "engine"), need(bytes, "bytes");
    const arc::Plan p = e->engine.plan(images, guided != 0);
    if (part && !p.parts.count(part)) {
      throw arc::Error("a plan has no part '" + std::string(part) + "'",
                       "known: activations, decoder, pictures, runtime, state, weights");
    }
    *bytes = part ? p.parts.at(part) : p.total();
  });
}

arc_request* arc_request_new(void) { return new (std::nothrow) arc_request; }
void arc_request_free(arc_request* r) { delete r; }

arc_error* arc_request_classes(arc_request* r, const int64_t* ids, size_t n) {
  return guarded([&] {
    need(r, "request");
    if (n) need(ids, "ids");
    r->request.condition = arc::Classes(ids, ids + n);
  });
}

arc_error* arc_request_class_name(arc_request* r, const char* name) {
  return guarded([&] {
    need(r, "request"), need(name, "name");
    condition<arc::Names>(r).emplace_back(name);
  });
}

arc_error* arc_request_prompt(arc_request* r, const int64_t* ids, size_t n) {
  return guarded([&] {
    need(r, "request");
    if (n) need(ids, "ids");
    condition<arc::Prompts>(r).emplace_back(ids, ids + n);
  });
}

arc_error* arc_request_input(arc_request* r, const char* name, arc_tensor value) {
  return guarded([&] {
    need(r, "request"), need(name, "name");
    condition<arc::Inputs>(r)[name] = view(value);
  });
}

arc_error* arc_request_seeds(arc_request* r, const uint64_t* seeds, size_t n) {
  return guarded([&] {
    need(r, "request");
    if (n) need(seeds, "seeds");
    r->request.seed.assign(seeds, seeds + n);
  });
}

arc_error* arc_request_set(arc_request* r, const char* name, const double* values, size_t n) {
  return guarded([&] {
    need(r, "request"), need(name, "name");
    if (n) need(values, "values");
    arc::Request& q = r->request;
    const std::map<std::string, std::vector<double>*> known{{"guidance", &q.guidance},
                                                            {"temperature", &q.temperature},
                                                            {"top_k", &q.top_k},
                                                            {"top_p", &q.top_p}};
    const auto found = known.find(name);
    if (found == known.end()) {
      throw arc::Error("a request has no number '" + std::string(name) + "'",
                       "known: guidance, temperature, top_k, top_p");
    }
    found->second->assign(values, values + n);
  });
}

arc_error* arc_request_copies(arc_request* r, int64_t n) {
  return guarded([&] { need(r, "request"), r->request.n = n; });
}

arc_error* arc_request_guidance_interval(arc_request* r, int64_t tokens) {
  return guarded([&] { need(r, "request"), r->request.guidance_interval = tokens; });
}

arc_error* arc_request_given(arc_request* r, const char* draw, arc_tensor noise) {
  return guarded([&] {
    need(r, "request"), need(draw, "draw");
    r->request.given[draw] = view(noise);
  });
}

arc_error* arc_request_stop(arc_request* r, const arc_stop* stop) {
  return guarded([&] {
    need(r, "request"), need(stop, "stop");
    r->request.stop = stop->stop;
  });
}

arc_error* arc_request_on_step(arc_request* r, arc_on_step call, void* user) {
  return guarded([&] {
    need(r, "request");
    r->request.on_step = nullptr;
    if (!call) return;
    r->request.on_step = [call, user](const arc::Progress& p) {
      const arc_progress seen{p, {static_cast<std::int64_t>(p.images),
                                  static_cast<std::int64_t>(p.positions)}, {}};
      const int answer = call(&seen, user);
      if (answer != ARC_GO_ON && answer != ARC_ENOUGH) throw Cancelled{};
      return answer == ARC_GO_ON;
    };
  });
}

size_t arc_progress_step(const arc_progress* p) { return p->seen.step; }
size_t arc_progress_steps(const arc_progress* p) { return p->seen.steps; }
arc_tensor arc_progress_tokens(const arc_progress* p) {
  return {ARC_I64, 2, p->shape, p->seen.tokens};
}

arc_error* arc_progress_preview(const arc_progress* p, arc_tensor* out) {
  return guarded([&] {
    need(p, "progress"), need(out, "out");
    p->preview = p->seen.preview();
    *out = tensor(p->preview);
  });
}

arc_error* arc_generate(const arc_engine* e, const arc_request* r, arc_output** out) {
  return guarded([&] {
    need(e, "engine"), need(r, "request"), need(out, "out");
    *out = nullptr;
    arc::Output o = e->engine.generate(r->request);
    *out = new arc_output{{{"tokens", o.tokens}, {"pixels", o.pixels}, {"images", o.images},
                           {"latents", o.latents}, {"rounds", o.rounds}}, std::move(o.timings)};
  });
}

arc_error* arc_logits(const arc_engine* e, const arc_request* r, arc_tensor tokens,
                      arc_output** out) {
  return guarded([&] {
    need(e, "engine"), need(r, "request"), need(out, "out");
    *out = nullptr;
    auto [conditional, unconditional] = e->engine.logits(r->request, view(tokens));
    *out = new arc_output{{{"conditional", conditional}, {"unconditional", unconditional}}, {}};
  });
}

arc_error* arc_encode(const arc_engine* e, arc_tensor pixels, arc_output** out) {
  return guarded([&] {
    need(e, "engine"), need(out, "out");
    *out = nullptr;
    *out = new arc_output{{{"tokens", e->engine.encode(view(pixels))}}, {}};
  });
}

void arc_output_free(arc_output* o) { delete o; }

arc_tensor arc_output_tensor(const arc_output* o, const char* name) {
  if (!o || !name) return tensor({});
  const auto found = o->tensors.find(name);
  return found == o->tensors.end() ? tensor({}) : tensor(found->second);
}

arc_timings arc_output_timings(const arc_output* o) {
  const arc::Timings& t = o->timings;
  return {t.prompt, t.loop, t.finish, t.total, t.sessions, t.steps.size()};
}

const double* arc_output_steps(const arc_output* o) { return o->timings.steps.data(); }

arc_stop* arc_stop_new(void) {
  try {
    return new arc_stop;
  } catch (...) {
    return nullptr;
  }
}
void arc_stop_now(const arc_stop* s) {
  if (s) arc::Stop(s->stop).stop();
}
void arc_stop_free(arc_stop* s) { delete s; }

const char* arc_version(void) { return arc::version(); }
