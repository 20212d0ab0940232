/* Runs the compiled digit recogniser through its library, typed and by name, from two threads, and wrongly.
 * Usage: program INPUT (784 floats); prints ten scores. */
#include "digits.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static float image[digits_INPUT_Input3_ELEMENTS];
static lapidary_model *model;

static void *call(void *scores) {
    digits_inputs in = {image};
    digits_outputs out = {scores};
    return digits_call(model, &in, &out) == LAPIDARY_OK ? scores : NULL;
}

int main(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!file || fread(image, 1, sizeof image, file) != sizeof image) return 10;
    if (digits_create(2, NULL) != LAPIDARY_ARGUMENT || !*digits_last_error()) return 11;
    if (digits_create(2, &model) != LAPIDARY_OK) return 12;
    if (lapidary_input_count(model) != digits_INPUT_COUNT) return 13;
    lapidary_port port;
    if (lapidary_input(model, 0, &port) || strcmp(port.name, digits_INPUT_Input3_NAME)) return 14;
    if (port.elem != LAPIDARY_F32 || port.rank != 4 || port.dims[2] != 28) return 15;

    float a[10], b[10], c[10];
    pthread_t thread;
    void *done;
    if (pthread_create(&thread, NULL, call, a) || !call(b)) return 16;
    if (pthread_join(thread, &done) || !done) return 17;

    lapidary_tensor in = {digits_INPUT_Input3_NAME, LAPIDARY_F32, 4, {1, 1, 28, 28}, image, sizeof image};
    lapidary_tensor out = {digits_OUTPUT_Plus214_Output_0_NAME, 0, 0, {0}, c, sizeof c};
    if (digits_run(model, &in, 1, &out, 1) != LAPIDARY_OK) return 18;
    if (out.rank != 2 || out.dims[1] != 10 || out.bytes != sizeof c) return 19;
    if (memcmp(a, b, sizeof a) || memcmp(a, c, sizeof a)) return 20;

    out.bytes = 4;
    if (digits_run(model, &in, 1, &out, 1) != LAPIDARY_TOO_SMALL || out.bytes != sizeof c) return 21;
    in.dims[2] = 27;
    if (digits_run(model, &in, 1, &out, 1) != LAPIDARY_INPUT) return 22;
    in.name = "nobody";
    if (digits_run(model, &in, 1, &out, 1) != LAPIDARY_INPUT || !strstr(digits_last_error(), "nobody")) return 23;
    if (digits_run(model, NULL, 0, &out, 1) != LAPIDARY_INPUT) return 24;
    digits_destroy(model);
    for (int i = 0; i < 10; i++) printf("%.6g\n", a[i]);
    return 0;
}
