// Draws one picture with an engine: generate <engine> <class> <seed> <picture.ppm>
#include <arcompile/arcompile.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s <engine> <class> <seed> <picture.ppm>\n", argv[0]);
    return 2;
  }
  try {
    const arc::Engine engine = arc::Engine::open(argv[1]);
    arc::Request request{arc::Classes{std::atoll(argv[2])}};
    request.seed = {std::strtoull(argv[3], nullptr, 10)};
    request.on_step = [](const arc::Progress& p) {
      std::fprintf(stderr, "\rstep %zu of %zu", p.step, p.steps);
      return true;  // false would leave the picture as it is
    };
    const arc::Output out = engine.generate(request);
    if (!out.images) throw arc::Error("this engine draws tokens only");
    const arc::Shape& size = out.images.shape();  // [B, H, W, 3]
    std::ofstream file(argv[4], std::ios::binary);
    file << "P6\n" << size.at(2) << " " << size.at(1) << "\n255\n";
    file.write(out.images.data<char>(), static_cast<std::streamsize>(size[1] * size[2] * 3));
    std::fprintf(stderr, "\n%s: %.2f s\n", argv[4], out.timings.total);
  } catch (const arc::Error& e) {
    std::fprintf(stderr, "error: %s\n%s\n", e.what(), e.hint().c_str());
    return static_cast<int>(e.code());
  }
}
