/* Runs the compiled digit recogniser as a freestanding function. Usage: program INPUT; prints ten scores. */
#include "digits.h"
#include <stdio.h>
#include <stdlib.h>

static float image[digits_INPUT_Input3_ELEMENTS];
static float scores[digits_OUTPUT_Plus214_Output_0_ELEMENTS];

int main(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!file || fread(image, 1, sizeof image, file) != sizeof image) return 10;
    void *arena = aligned_alloc(64, digits_ARENA_BYTES + 64);
    const void *inputs[] = {image};
    void *outputs[] = {scores};
    digits_run(inputs, outputs, arena);
    for (int i = 0; i < 10; i++) printf("%.6g\n", scores[i]);
    free(arena);
    return 0;
}
