/* The C interface of models compiled by lapidary. The same text is in every generated header; it may be
 * included more than once through several of them. */
#ifndef LAPIDARY_H
#define LAPIDARY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What functions return. After anything but LAPIDARY_OK, lapidary_last_error() says more. */
typedef int32_t lapidary_status;
#define LAPIDARY_OK 0          /* done */
#define LAPIDARY_PROGRAM 1     /* the compiled model is damaged, or made for another runtime or machine */
#define LAPIDARY_INPUT 2       /* an input or output does not fit the model: name, type, shape */
#define LAPIDARY_STEP 3        /* an operation failed on this data */
#define LAPIDARY_MEMORY 4      /* memory could not be had */
#define LAPIDARY_SYSTEM 5      /* the operating system refused */
#define LAPIDARY_ARGUMENT 6    /* a null pointer, or a number out of range */
#define LAPIDARY_TOO_SMALL 7   /* an output's buffer is too small; its `bytes` and `dims` say what it needs */
#define LAPIDARY_INTERNAL 8    /* a defect of the runtime; the model cannot be trusted any more */

/* Element types: the numbers of ONNX. 4- and 2-bit types take one byte for each element. */
#define LAPIDARY_F32 1
#define LAPIDARY_U8 2
#define LAPIDARY_I8 3
#define LAPIDARY_U16 4
#define LAPIDARY_I16 5
#define LAPIDARY_I32 6
#define LAPIDARY_I64 7
#define LAPIDARY_BOOL 9
#define LAPIDARY_F16 10
#define LAPIDARY_F64 11
#define LAPIDARY_U32 12
#define LAPIDARY_U64 13
#define LAPIDARY_BF16 16

#define LAPIDARY_MAX_RANK 8

/* A loaded model. Any number of threads may run one at the same time. */
typedef struct lapidary_model lapidary_model;

/* A tensor in the caller's memory: row-major, no gaps. Memory aligned to 64 bytes is used in place, other
 * memory is copied. */
typedef struct lapidary_tensor {
    const char *name;                /* the port; NULL: the one at this position */
    int32_t elem;                    /* element type */
    int32_t rank;                    /* number of dimensions */
    int64_t dims[LAPIDARY_MAX_RANK]; /* dimensions; of outputs: written */
    void *data;                      /* elements; of inputs: only read */
    size_t bytes;                    /* size of `data`; of outputs: becomes the bytes written */
} lapidary_tensor;

/* An input or output of a model. */
typedef struct lapidary_port {
    const char *name;                /* lives as long as the model */
    int32_t elem;                    /* element type; 0: not a tensor, only the executable can run it */
    int32_t rank;                    /* -1: known only at run time */
    int64_t dims[LAPIDARY_MAX_RANK]; /* -1: depends on the inputs */
} lapidary_port;

/* Text on the last failure in this thread; empty if there was none. Valid until the next call. */
const char *lapidary_last_error(void);

/* Frees a model; no thread may be running it. NULL is allowed. */
void lapidary_destroy(lapidary_model *model);

/* Runs a model. Every input is given once. Outputs that are not listed are dropped; `elem`, `rank`, `dims`
 * and `bytes` of the listed ones are written. Buffers must not overlap. */
lapidary_status lapidary_run(lapidary_model *model, const lapidary_tensor *inputs, size_t n_inputs,
                             lapidary_tensor *outputs, size_t n_outputs);

size_t lapidary_input_count(const lapidary_model *model);
size_t lapidary_output_count(const lapidary_model *model);
lapidary_status lapidary_input(const lapidary_model *model, size_t index, lapidary_port *port);
lapidary_status lapidary_output(const lapidary_model *model, size_t index, lapidary_port *port);

#ifdef __cplusplus
}
#endif

#endif
