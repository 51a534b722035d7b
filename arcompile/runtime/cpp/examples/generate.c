/* Draws one picture from C: generate_c <engine> <class> <seed> <picture.ppm> */
#include <arcompile/arcompile.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(arc_error* error) {
  const int code = arc_error_code(error);
  fprintf(stderr, "error: %s\n%s\n", arc_error_what(error), arc_error_hint(error));
  arc_error_free(error);
  return code;
}

int main(int argc, char** argv) {
  arc_engine* engine = NULL;
  arc_output* output = NULL;
  arc_error* error;
  if (argc != 5) {
    fprintf(stderr, "usage: %s <engine> <class> <seed> <picture.ppm>\n", argv[0]);
    return 2;
  }
  if ((error = arc_engine_open(argv[1], 0, NULL, NULL, &engine))) return fail(error);
  const int64_t label = atoll(argv[2]);
  const uint64_t seed = strtoull(argv[3], NULL, 10);
  arc_request* request = arc_request_new();
  if ((error = arc_request_classes(request, &label, 1))) return fail(error);
  if ((error = arc_request_seeds(request, &seed, 1))) return fail(error);
  if ((error = arc_generate(engine, request, &output))) return fail(error);
  const arc_tensor image = arc_output_tensor(output, "images"); /* u8 [1, H, W, 3] */
  if (image.rank != 4) return 1;
  FILE* file = fopen(argv[4], "wb");
  if (!file) return 1;
  fprintf(file, "P6\n%lld %lld\n255\n", (long long)image.shape[2], (long long)image.shape[1]);
  fwrite(image.data, 1, (size_t)(image.shape[1] * image.shape[2] * 3), file);
  fclose(file);
  arc_output_free(output);
  arc_request_free(request);
  arc_engine_free(engine);
  return 0;
}
