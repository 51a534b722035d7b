// The Python module arcompile.runtime._native: the loop, for requests that Python has checked.
#include <arcompile/arcompile.hpp>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;

namespace {

using In = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Arrays = std::map<std::string, In>;

arc::DType dtype_of(const nb::dlpack::dtype& d) {
  const std::pair<nb::dlpack::dtype, arc::DType> known[] = {
      {nb::dtype<float>(), arc::DType::f32},        {nb::dtype<double>(), arc::DType::f64},
      {nb::dtype<std::int64_t>(), arc::DType::i64}, {nb::dtype<std::int32_t>(), arc::DType::i32},
      {nb::dtype<std::int8_t>(), arc::DType::i8},   {nb::dtype<std::uint8_t>(), arc::DType::u8},
      {nb::dtype<bool>(), arc::DType::boolean}};
  for (const auto& [theirs, ours] : known) {
    if (d == theirs) return ours;
  }
  throw arc::Error("an array has a dtype that the native runtime does not take");
}

arc::Inputs views(const Arrays& arrays) {
  arc::Inputs out;
  for (const auto& [name, a] : arrays) {
    arc::View v{dtype_of(a.dtype()), {}, a.data()};
    for (std::size_t i = 0; i < a.ndim(); ++i) {
      v.shape.push_back(static_cast<std::int64_t>(a.shape(i)));
    }
    out[name] = v;
  }
  return out;
}

template <class T>
nb::object owned(const arc::Array& a) {
  std::vector<std::size_t> shape(a.shape().begin(), a.shape().end());
  auto* keep = new arc::Array(a);  // shares the memory for as long as Python holds the array
  const nb::capsule owner(keep, [](void* p) noexcept { delete static_cast<arc::Array*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(const_cast<void*>(a.raw()), shape.size(),
                                            shape.data(), owner));
}

nb::object array(const arc::Array& a) {
  if (!a) return nb::none();
  switch (a.dtype()) {
    case arc::DType::f32: return owned<float>(a);
    case arc::DType::i64: return owned<std::int64_t>(a);
    case arc::DType::u8: return owned<std::uint8_t>(a);
    default: throw arc::Error("an output has a dtype that the native runtime does not give");
  }
}

nb::dict timings(const arc::Timings& t) {
  nb::dict out;
  out["prompt"] = t.prompt, out["steps"] = t.steps, out["loop"] = t.loop;
  out["finish"] = t.finish, out["total"] = t.total, out["sessions"] = t.sessions;
  return out;
}

class Engine {
 public:
  Engine(const std::string& folder, int threads, const std::string& ort_library,
         const std::string& kernels)
      : engine_(arc::Engine::open(folder, {threads, ort_library, kernels, ""})) {}

  nb::dict generate(const Arrays& inputs, std::int64_t n, const std::vector<std::uint64_t>& seeds,
                    const std::map<std::string, std::vector<double>>& numbers,
                    std::optional<std::int64_t> interval, const Arrays& given,
                    const nb::object& on_step) const {
    arc::Request r;
    r.condition = views(inputs);
    r.n = n;
    r.seed = seeds;
    r.guidance = numbers.at("guidance"), r.temperature = numbers.at("temperature");
    r.top_k = numbers.at("top_k"), r.top_p = numbers.at("top_p");
    r.guidance_interval = interval;
    r.given = views(given);
    if (!on_step.is_none()) r.on_step = [&](const arc::Progress& p) { return tell(on_step, p); };
    arc::Output o;
    {
      const nb::gil_scoped_release others_run;
      o = engine_.generate(r);
    }
    nb::dict out;
    out["tokens"] = array(o.tokens), out["pixels"] = array(o.pixels);
    out["latents"] = array(o.latents), out["rounds"] = array(o.rounds);
    out["timings"] = timings(o.timings);
    return out;
  }

 private:
  static bool tell(const nb::object& on_step, const arc::Progress& p) {
    const nb::gil_scoped_acquire held;
    const auto bytes = p.images * p.positions * sizeof(std::int64_t);
    const std::shared_ptr<char> copy(new char[bytes], std::default_delete<char[]>());
    std::copy_n(reinterpret_cast<const char*>(p.tokens), bytes, copy.get());
    const arc::Array tokens(arc::DType::i64, {static_cast<std::int64_t>(p.images),
                                              static_cast<std::int64_t>(p.positions)}, copy);
    const auto pixels = nb::cpp_function([&p] { return array(p.pixels()); });
    return nb::cast<bool>(on_step(p.step, p.steps, array(tokens), pixels));
  }

  arc::Engine engine_;
};

// arc::Error becomes ArcError, with its hint and its code.
void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const arc::Error& e) {
    const nb::object kind = nb::module_::import_("arcompile.errors").attr("ArcError");
    const nb::object made = kind(e.what(), nb::arg("hint") = e.hint(),
                                 nb::arg("code") = static_cast<int>(e.code()));
    PyErr_SetObject(kind.ptr(), made.ptr());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "libarcompile, for requests that Python has checked.";
  m.attr("version") = arc::version();
  nb::register_exception_translator(translate);
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const std::string&, int, const std::string&, const std::string&>())
      .def("generate", &Engine::generate, nb::arg("inputs"), nb::arg("n"), nb::arg("seeds"),
           nb::arg("numbers"), nb::arg("interval").none(), nb::arg("given"),
           nb::arg("on_step").none());
}
