// A daemon without HTTP: reads requests from stdin, one a line, and answers on stdout.
//
//   serve <engine> [threads]
//   < ready <family>
//   > <class> <seed> <file.ppm>        draws a picture; file - writes none
//   > quit
//   < ok <file.ppm> <seconds> <us>     us: of a step, microseconds outside ONNX Runtime
//   < error <what>
#include <arcompile/arcompile.hpp>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

namespace {

std::string draw(const arc::Engine& engine, const std::string& line) {
  std::int64_t label = 0;
  std::uint64_t seed = 0;
  std::string file;
  if (!(std::istringstream(line) >> label >> seed >> file)) {
    throw arc::Error("a request is <class> <seed> <file.ppm>");
  }
  arc::Request request{arc::Classes{label}};
  request.seed = {seed};
  const arc::Output out = engine.generate(request);
  if (!out.images) throw arc::Error("this engine draws tokens only");
  const arc::Shape& size = out.images.shape();
  std::ofstream to(file == "-" ? "/dev/null" : file, std::ios::binary);
  to << "P6\n" << size.at(2) << " " << size.at(1) << "\n255\n";
  to.write(out.images.data<char>(), static_cast<std::streamsize>(size[1] * size[2] * 3));
  if (!to.flush()) throw arc::Error("cannot write " + file);
  const arc::Timings& t = out.timings;
  const double us = 1e6 * (t.loop - t.sessions) / static_cast<double>(t.steps.size());
  return file + " " + std::to_string(t.total) + " " + std::to_string(us);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: " << argv[0] << " <engine> [threads]\n";
    return 2;
  }
  try {
    const arc::Engine engine = arc::Engine::open(argv[1], {argc > 2 ? std::atoi(argv[2]) : 0, "", ""});
    std::cout << "ready " << engine.family() << std::endl;
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
      try {
        const std::string drawn = draw(engine, line);
        std::cout << "ok " << drawn << std::endl;
      } catch (const arc::Error& e) {
        std::cout << "error " << e.what() << std::endl;
      }
    }
  } catch (const arc::Error& e) {
    std::cerr << "error: " << e.what() << "\n" << e.hint() << "\n";
    return static_cast<int>(e.code());
  }
}
