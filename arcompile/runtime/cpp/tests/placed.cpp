// Prints the kinds of a model's nodes that ONNX Runtime puts on the CPU and that count no shapes.
//   test_placed <libonnxruntime.so> <model.onnx>
#include <iostream>

#include "check.hpp"
#include "ort_library.hpp"

int main(int argc, char** argv) {
  CHECK(argc == 3);
  const arc::ort::Library library(argv[1], arc::ort::kCpu, "off");
  const arc::ort::Api& api = library.api();
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  library.must(api.CreateEnv(arc::ort::kFatal, "placed", &env), "env");
  library.must(api.CreateSessionOptions(&options), "options");
  library.must(api.AddSessionConfigEntry(options, "session.record_ep_graph_assignment_info", "1"),
               "note");
  library.must(api.CreateSession(env, argv[2], options, &session), "session");
  for (const std::string& kind : arc::ort::misplaced(library, session)) std::cout << kind << '\n';
  api.ReleaseSession(session);
  api.ReleaseSessionOptions(options);
  api.ReleaseEnv(env);
}
