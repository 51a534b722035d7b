/* The C interface of libarcompile, for any language that can call C.
 *
 * Every function that can fail returns NULL when it went well, else an error that the caller frees.
 * Handles are opaque and freed by the function of their name; NULL may be freed. An engine may be
 * used from several threads; requests and outputs by one at a time. No exception leaves a function.
 */
#ifndef ARCOMPILE_H
#define ARCOMPILE_H

#include <arcompile/export.h>
#include <arcompile/version.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct arc_engine arc_engine;
typedef struct arc_request arc_request;
typedef struct arc_output arc_output;
typedef struct arc_error arc_error;
typedef struct arc_stop arc_stop;
typedef struct arc_progress arc_progress;

/* Who can put an error right: the caller, the machine's owner, nobody needs to, or we. */
enum { ARC_THEIRS = 1, ARC_MACHINE = 2, ARC_CANCELLED = 3, ARC_INTERNAL = 4 };

typedef enum {
  ARC_F32, ARC_F16, ARC_BF16, ARC_F64, ARC_I64, ARC_I32, ARC_I8, ARC_U8, ARC_BOOL
} arc_dtype;

/* A dense row-major tensor. What goes in belongs to the caller until the call that uses it ends;
 * what comes out belongs to the handle it came from. */
typedef struct {
  arc_dtype dtype;
  size_t rank;
  const int64_t* shape;
  const void* data;
} arc_tensor;

typedef struct {
  double prompt, loop, finish, total, sessions; /* seconds; sessions: ONNX Runtime's part of loop */
  size_t steps;
} arc_timings;

/* --- errors --- */
ARC_API const char* arc_error_what(const arc_error* error);
ARC_API const char* arc_error_hint(const arc_error* error); /* "" when there is none */
ARC_API int arc_error_code(const arc_error* error);
ARC_API void arc_error_free(arc_error* error);

/* --- engines --- */
/* threads: of one session, 0 for one per core; ort_library: a file, or NULL to look for it;
 * kernels: the file of our kernels, of the CPU or CUDA as the engine needs, "off" for none, or NULL
 * to look for them. */
ARC_API arc_error* arc_engine_open(const char* folder, int threads, const char* ort_library,
                                   const char* kernels, arc_engine** out);
/* The same, of an engine that the owner of a public key (a PEM file, Ed25519) must have signed. */
ARC_API arc_error* arc_engine_open_signed(const char* folder, int threads, const char* ort_library,
                                          const char* kernels, const char* signed_by,
                                          arc_engine** out);
ARC_API void arc_engine_free(arc_engine* engine);
ARC_API const char* arc_engine_family(const arc_engine* engine);
ARC_API const char* arc_engine_manifest(const arc_engine* engine); /* JSON */
ARC_API const char* arc_engine_runtime(const arc_engine* engine);
ARC_API size_t arc_engine_labels(const arc_engine* engine);
ARC_API const char* arc_engine_label(const arc_engine* engine, size_t i); /* NULL: none such */
/* "guidance", "temperature", "top_k" or "top_p"; NaN for another name. */
ARC_API double arc_engine_default(const arc_engine* engine, const char* name);
/* Bytes that a run needs. part: "runtime", "weights", "state", "activations", "decoder",
 * "pictures", or NULL for all of them together. */
ARC_API arc_error* arc_engine_plan(const arc_engine* engine, int64_t images, int guided,
                                   const char* part, int64_t* bytes);

/* --- requests --- */
ARC_API arc_request* arc_request_new(void); /* NULL: no memory */
ARC_API void arc_request_free(arc_request* request);
/* The condition is one of these; the last call counts. */
ARC_API arc_error* arc_request_classes(arc_request* r, const int64_t* ids, size_t n);
ARC_API arc_error* arc_request_class_name(arc_request* r, const char* name); /* adds one */
ARC_API arc_error* arc_request_prompt(arc_request* r, const int64_t* ids, size_t n); /* adds one */
ARC_API arc_error* arc_request_input(arc_request* r, const char* name, arc_tensor value);
/* One value for all images, one per condition, or one per image. */
ARC_API arc_error* arc_request_seeds(arc_request* r, const uint64_t* seeds, size_t n);
/* name: "guidance", "temperature", "top_k" or "top_p". */
ARC_API arc_error* arc_request_set(arc_request* r, const char* name, const double* values, size_t n);
ARC_API arc_error* arc_request_copies(arc_request* r, int64_t n); /* images of each condition */
ARC_API arc_error* arc_request_guidance_interval(arc_request* r, int64_t tokens);
ARC_API arc_error* arc_request_given(arc_request* r, const char* draw, arc_tensor noise);
ARC_API arc_error* arc_request_stop(arc_request* r, const arc_stop* stop);
/* Called after each step, on the thread that called. It returns ARC_GO_ON, ARC_ENOUGH where the
 * picture shall stay as it is, or ARC_CANCEL. */
enum { ARC_GO_ON = 0, ARC_ENOUGH = 1, ARC_CANCEL = 2 };
typedef int (*arc_on_step)(const arc_progress* progress, void* user);
ARC_API arc_error* arc_request_on_step(arc_request* r, arc_on_step call, void* user);

/* --- within on_step --- */
ARC_API size_t arc_progress_step(const arc_progress* p);  /* 1 for the first */
ARC_API size_t arc_progress_steps(const arc_progress* p);
ARC_API arc_tensor arc_progress_tokens(const arc_progress* p);  /* i64 [B,N], -1: not yet */
/* u8 [B,H,W,3] of what there is so far; costs a decoding, and is valid until the call returns. */
ARC_API arc_error* arc_progress_preview(const arc_progress* p, arc_tensor* out);

/* --- running --- */
ARC_API arc_error* arc_generate(const arc_engine* engine, const arc_request* request,
                                arc_output** out);
/* The outputs are `conditional` and `unconditional`, f32 [B,N,V]. */
ARC_API arc_error* arc_logits(const arc_engine* engine, const arc_request* request,
                              arc_tensor tokens, arc_output** out);
ARC_API arc_error* arc_encode(const arc_engine* engine, arc_tensor pixels, arc_output** out);
ARC_API void arc_output_free(arc_output* output);
/* name: "tokens", "pixels", "images", "latents", "rounds", "conditional", "unconditional". data is NULL and
 * rank 0 where the output has no such tensor. */
ARC_API arc_tensor arc_output_tensor(const arc_output* output, const char* name);
ARC_API arc_timings arc_output_timings(const arc_output* output);
ARC_API const double* arc_output_steps(const arc_output* output); /* seconds of each step */

/* --- stopping, from any thread --- */
ARC_API arc_stop* arc_stop_new(void); /* NULL: no memory */
ARC_API void arc_stop_now(const arc_stop* stop);
ARC_API void arc_stop_free(arc_stop* stop);

ARC_API const char* arc_version(void);

#ifdef __cplusplus
}
#endif

#endif
