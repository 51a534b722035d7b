// Draws pictures with an engine: draw <engine> <seed> <picture.ppm> <condition>...
//
// A condition is what the engine takes: class numbers, or the token ids of a prompt, or for each
// input `name=dtype:2x3:file`, the raw numbers of a file in the machine's byte order.
#include <arcompile/arcompile.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <list>
#include <sstream>

namespace {

std::list<std::string> files;  // what inputs lie in, for as long as they are used

arc::View read(const std::string& dtype, const std::string& shape, const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw arc::Error("cannot read " + path);
  files.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>{});
  const arc::DType kind = dtype == "i64" ? arc::DType::i64
                          : dtype == "bool" ? arc::DType::boolean : arc::DType::f32;
  arc::View view{kind, {}, files.back().data()};
  std::istringstream sizes(shape);
  std::size_t bytes = dtype == "i64" ? 8 : dtype == "bool" ? 1 : 4;
  for (std::string n; std::getline(sizes, n, 'x');) {
    view.shape.push_back(std::stoll(n));
    bytes *= static_cast<std::size_t>(view.shape.back());
  }
  if (bytes != files.back().size()) throw arc::Error(path + " is not of shape " + shape);
  return view;
}

arc::Request parse(int argc, char** argv) {
  arc::Request request;
  request.seed = {std::strtoull(argv[2], nullptr, 10)};
  arc::Classes ids;
  arc::Inputs inputs;
  for (int i = 4; i < argc; ++i) {
    std::istringstream word(argv[i]);
    std::string name, dtype, shape, path;
    if (std::getline(word, name, '=') && std::getline(word, dtype, ':') &&
        std::getline(word, shape, ':') && std::getline(word, path)) {
      inputs[name] = read(dtype, shape, path);
    } else {
      ids.push_back(std::atoll(argv[i]));
    }
  }
  if (inputs.empty()) request.condition = ids;
  else request.condition = inputs;
  return request;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: %s <engine> <seed> <picture.ppm> <condition>...\n", argv[0]);
    return 2;
  }
  try {
    const arc::Engine engine = arc::Engine::open(argv[1]);
    const arc::Output out = engine.generate(parse(argc, argv));
    if (!out.images) throw arc::Error("this engine draws tokens only", "build it with --decoder");
    const arc::Shape& size = out.images.shape();  // [B, H, W, 3]: one above the other
    std::ofstream file(argv[3], std::ios::binary);
    file << "P6\n" << size[2] << " " << size[0] * size[1] << "\n255\n";
    file.write(out.images.data<char>(), static_cast<std::streamsize>(out.images.bytes()));
    std::printf("%s: %.2f s\n", argv[3], out.timings.total);
  } catch (const arc::Error& e) {
    std::fprintf(stderr, "error: %s\n%s\n", e.what(), e.hint().c_str());
    return static_cast<int>(e.code());
  }
}
