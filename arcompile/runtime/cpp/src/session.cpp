#include "session.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

#include "text.hpp"

namespace arc {

namespace {

DType dtype_of(int code, const std::string& graph) {
  switch (code) {
    case 1: return DType::f32;
    case 2: return DType::u8;
    case 3: return DType::i8;
    case 6: return DType::i32;
    case 7: return DType::i64;
    case 9: return DType::boolean;
    case 10: return DType::f16;
    case 11: return DType::f64;
    case 16: return DType::bf16;
    default:
      throw Error("graph " + graph + " has a tensor of ONNX type " + std::to_string(code) +
                      ", which this library does not know",
                  "upgrade libarcompile");
  }
}

Type type_of(const ort::Library& lib, OrtTypeInfo* info, const std::string& graph) {
  const ort::Api& api = lib.api();
  const std::string what = "ONNX Runtime cannot describe graph " + graph;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  lib.must(api.CastTypeInfoToTensorInfo(info, &tensor), what);
  if (!tensor) throw Error("graph " + graph + " has an input or output that is no tensor");
  int code = 0;
  std::size_t rank = 0;
  lib.must(api.GetTensorElementType(tensor, &code), what);
  lib.must(api.GetDimensionsCount(tensor, &rank), what);
  std::vector<std::int64_t> dims(rank);
  std::vector<const char*> names(rank);
  lib.must(api.GetDimensions(tensor, dims.data(), rank), what);
  lib.must(api.GetSymbolicDimensions(tensor, names.data(), rank), what);
  Type type{dtype_of(code, graph), {}};
  for (std::size_t i = 0; i < rank; ++i) {
    type.shape.push_back(dims[i] >= 0 ? Dim(dims[i]) : Dim::parse(names[i] ? names[i] : ""));
  }
  return type;
}

// Results that the host reads.
bool is_read_here(const std::string& name) {
  static const char* const all[] = {"token", "tokens", "accepted", "logits", "pixels", "latents"};
  return std::any_of(std::begin(all), std::end(all), [&](const char* n) { return name == n; });
}

}  // namespace

std::size_t Slots::operator[](const std::string& name) {
  const std::lock_guard<std::mutex> held(lock_);
  const auto found = known_.find(name);
  return found != known_.end() ? found->second : known_.emplace(name, known_.size()).first->second;
}

Session::Session(std::shared_ptr<const ort::Library> library, const std::string& graph,
                 const std::string& path, ort::Threads threads, Slots& slots)
    : library_(std::move(library)), graph_(graph), session_(library_->session(path, threads)) {
  const std::string what = "ONNX Runtime cannot describe graph " + graph;
  std::size_t n = 0;
  library_->must(library_->api().SessionGetInputCount(raw(), &n), what);
  Sizes told;
  for (std::size_t i = 0; i < n; ++i) {
    inputs_.push_back(port(i, true, slots));
    const std::size_t before = told.size();
    for (const Dim& d : inputs_.back().type.shape) {
      if (d.symbol()) told.emplace(d.name(), 0);
    }
    if (told.size() > before) tellers_.push_back(i);
  }
  library_->must(library_->api().SessionGetOutputCount(raw(), &n), what);
  for (std::size_t i = 0; i < n; ++i) {
    Port p = port(i, false, slots);
    for (const Dim& d : p.type.shape) p.extents.push_back(extent(d));
    for (std::size_t j = 0; j < inputs_.size(); ++j) {
      if (inputs_[j].name != p.name) continue;
      inputs_[j].type == p.type ? void(p.carried = static_cast<int>(j)) : void(p.renews = true);
    }
    p.stays = library_->on_device() && p.carried >= 0 && !is_read_here(p.name);
    results_.push_back(std::move(p));
  }
}

// Asked at every step: names are looked up once.
Extent Session::extent(const Dim& d) const {
  if (d.constant()) return {d.value({}), -1, 0};
  for (std::size_t i = 0; d.symbol() && i < inputs_.size(); ++i) {
    const auto& shape = inputs_[i].type.shape;
    const auto found = std::find(shape.begin(), shape.end(), d);
    if (found != shape.end()) {
      return {-1, static_cast<int>(i), static_cast<std::size_t>(found - shape.begin())};
    }
  }
  return {};
}

Port Session::port(std::size_t i, bool input, Slots& slots) const {
  const ort::Api& api = library_->api();
  const std::string what = "ONNX Runtime cannot describe graph " + graph_;
  OrtAllocator* allocator = nullptr;
  library_->must(api.GetAllocatorWithDefaultOptions(&allocator), what);
  char* name = nullptr;
  library_->must((input ? api.SessionGetInputName : api.SessionGetOutputName)(raw(), i, allocator,
                                                                              &name), what);
  Port p;
  p.wire = name;
  library_->said(api.AllocatorFree(allocator, name));
  p.name = !input && p.wire.rfind("out.", 0) == 0 ? p.wire.substr(4) : p.wire;
  OrtTypeInfo* info = nullptr;
  library_->must(
      (input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(raw(), i, &info), what);
  const ort::Owned<OrtTypeInfo> held{info, {api.ReleaseTypeInfo}};
  p.type = type_of(*library_, info, graph_);
  p.slot = slots[p.name];
  p.by_row = !input && !p.type.shape.empty() && p.type.shape[0] == Dim::parse("r");
  return p;
}

Bound::Bound(const Session& session)
    : s_(session), io_(session.library().binding(session.raw())),
      given_(session.inputs().size()), last_(session.inputs().size()),
      out_(session.results().size()), rooms_(session.results().size()), copies_(session.inputs().size(), false) {
  for (const Port& r : s_.results()) {
    if (r.carried >= 0 && !r.stays) copies_[static_cast<std::size_t>(r.carried)] = true;
  }
}

void Bound::run(Env& env, const OrtRunOptions* options, bool in_place) {
  if (bind_inputs(env, in_place)) make_outputs();
  bind_carried(in_place);
  execute(options);
  for (std::size_t i = 0; i < out_.size(); ++i) env[s_.results()[i].slot] = out_[i];
}

// What is carried is written where it was read; on an accelerator, once it lies there.
void Bound::bind_carried(bool in_place) {
  for (std::size_t i = 0; i < out_.size(); ++i) {
    const Port& r = s_.results()[i];
    if (r.renews) bind_output(i, Tensor::blank(out_[i]->dtype, out_[i]->shape));
    if (r.carried < 0) continue;
    const Ref& from = last_[static_cast<std::size_t>(r.carried)];
    if (r.stays && !(from->device && in_place)) {
      bind_output(i, s_.library().room(s_.raw(), from->dtype, from->shape));
    } else if (out_[i] != from) {
      bind_output(i, from);
    }
  }
}

// Binds what changed. True where a shape did, so that outputs must be made anew.
bool Bound::bind_inputs(Env& env, bool in_place) {
  bool reshaped = false;
  for (std::size_t i = 0; i < last_.size(); ++i) {
    const Port& port = s_.inputs()[i];
    const Ref& value = env[port.slot];
    if (!value) {
      throw Error("graph " + s_.graph() + " reads " + port.name + ", which nothing provides");
    }
    const bool own = copies_[i] && (value->lent || !in_place);
    const bool cast = value->dtype != port.type.dtype && value->lent;
    // an accelerator has a copy of what lies here, of the time when it was bound
    const bool stale = s_.library().on_device() && !value->device;
    if (value == given_[i] && !own && !cast && !stale) continue;
    const Ref fit = own || cast ? fitting(i, value) : value;
    reshaped = reshaped || !last_[i] || last_[i]->shape != fit->shape;
    given_[i] = value;
    if (fit != last_[i] || stale) bind_input(i, fit);
  }
  return reshaped;
}

// A copy that may be written to, of the dtype that the model wants; in last time's memory where
// it fits.
Ref Bound::fitting(std::size_t i, const Ref& given) {
  const DType want = s_.inputs()[i].type.dtype;
  const Ref found = given->dtype == want ? given : given->cast(want);
  const Ref& held = last_[i];
  if (!held || held->lent || held == given || held->shape != found->shape) {
    return found == given ? given->copy() : found;
  }
  if (found->bytes()) std::memcpy(held->data, found->data, found->bytes());
  return held;
}

void Bound::bind_input(std::size_t i, const Ref& value) {
  const ort::Library& lib = s_.library();
  lib.must(lib.api().BindInput(io_.get(), s_.inputs()[i].wire.c_str(), lib.value(*value)),
           "ONNX Runtime cannot bind " + s_.inputs()[i].name);
  last_[i] = value;
}

void Bound::bind_output(std::size_t i, const Ref& value) {
  const ort::Library& lib = s_.library();
  lib.must(lib.api().BindOutput(io_.get(), s_.results()[i].wire.c_str(), lib.value(*value)),
           "ONNX Runtime cannot bind " + s_.results()[i].name);
  out_[i] = value;
}

Sizes Bound::sizes() const {
  Sizes found;
  for (const std::size_t i : s_.tellers()) {
    measure(s_.inputs()[i].name, s_.inputs()[i].type, last_[i]->shape, found);
  }
  return found;
}

Shape Bound::shape_of(const Port& r) const {
  Shape out;
  for (const Extent& e : r.extents) {
    const Shape* told = e.input < 0 ? nullptr : &last_[static_cast<std::size_t>(e.input)]->shape;
    const std::int64_t size = !told ? e.size : e.axis < told->size() ? (*told)[e.axis] : -1;
    if (size < 0) return r.type.shape_of(sizes());
    out.push_back(size);
  }
  return out;
}

void Bound::make_outputs() {
  for (std::size_t i = 0; i < out_.size(); ++i) {
    const Port& r = s_.results()[i];
    if (r.carried >= 0) continue;
    const Shape shape = shape_of(r);
    if (out_[i] && out_[i]->shape == shape) continue;
    bind_output(i, r.renews ? Tensor::blank(r.type.dtype, shape) : room(i, shape));
  }
}

// Steps that grow find room for the next: giving memory back and getting it anew costs more than
// all else that happens here.
Ref Bound::room(std::size_t i, const Shape& shape) {
  const DType dtype = s_.results()[i].type.dtype;
  const std::size_t need = count(shape), held = rooms_[i] ? rooms_[i]->size() : 0;
  if (need > held || !held) {
    const std::size_t more = held ? std::max(need, 2 * held) : need;
    rooms_[i] = Tensor::blank(dtype, {static_cast<std::int64_t>(more)});
  }
  return rooms_[i]->reshaped(shape);
}

bool Bound::makes(std::size_t slot) const {
  return std::any_of(s_.results().begin(), s_.results().end(),
                     [&](const Port& r) { return r.slot == slot; });
}

void Bound::execute(const OrtRunOptions* options) {
  const ort::Library& lib = s_.library();
  const auto start = std::chrono::steady_clock::now();
  OrtStatus* status = lib.api().RunWithBinding(s_.raw(), options, io_.get());
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  lib.must(status, "ONNX Runtime failed in graph " + s_.graph());
}

void Bound::run_each(Env& env, std::int64_t n, const OrtRunOptions* options) {
  std::vector<Ref> whole(last_.size()), made(out_.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const Port& port = s_.inputs()[i];
    whole[i] = env[port.slot];
    if (!whole[i]) {
      throw Error("graph " + s_.graph() + " reads " + port.name + ", which nothing provides");
    }
    if (whole[i]->dtype != port.type.dtype) whole[i] = whole[i]->cast(port.type.dtype);
  }
  for (std::int64_t k = 0; k < n; ++k) {
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const bool split = !whole[i]->shape.empty() && whole[i]->shape[0] == n;
      bind_input(i, split ? whole[i]->rows(k, 1) : whole[i]);
    }
    const Sizes known = sizes();
    for (std::size_t i = 0; i < made.size(); ++i) {
      Shape one = s_.results()[i].type.shape_of(known);
      if (one.empty()) throw Error("graph " + s_.graph() + " makes no row for an image");
      const std::int64_t rows = one[0];
      if (!made[i]) {
        one[0] *= n;
        made[i] = Tensor::blank(s_.results()[i].type.dtype, one);
      }
      bind_output(i, made[i]->rows(k * rows, rows));
    }
    execute(options);
  }
  for (std::size_t i = 0; i < made.size(); ++i) env[s_.results()[i].slot] = made[i];
  std::fill(given_.begin(), given_.end(), nullptr);  // bound to parts: bind anew
}

Models::Models(std::shared_ptr<const ort::Library> library, std::string folder, int threads,
               const std::vector<std::string>& light, const std::set<std::string>& loop)
    : library_(std::move(library)), folder_(std::move(folder)), threads_(threads),
      light_(light.begin(), light.end()) {
  std::vector<std::string> heavy;
  std::set_difference(loop.begin(), loop.end(), light_.begin(), light_.end(),
                      std::back_inserter(heavy));
  if (heavy.size() == 1) spins_ = heavy[0];
}

bool Models::loaded() const {
  const std::lock_guard<std::mutex> held(lock_);
  return !sessions_.empty();
}

const Session& Models::session(const std::string& graph) const {
  const std::lock_guard<std::mutex> held(lock_);
  auto& found = sessions_[graph];
  if (!found) {
    found = std::make_unique<Session>(library_, graph, folder_ + "/" + graph + ".onnx",
                                      ort::Threads{light_.count(graph) ? 1 : threads_, graph == spins_},
                                      slots_);
    library_->settle();
  }
  return *found;
}

}  // namespace arc
