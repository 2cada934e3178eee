/* Tests of the C core alone. INPLACE_ABN_ISA=v3 selects one instruction set; default: all of this machine. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "allocations.h"
#include "cases.h"
#include "check.h"
#include "extremes.h"
#include "large.h"
#include "planted.h"

static void light(const abn_kernels *kernels, int every) { test_cases(kernels, (effort){every, 0}); }

static void heavy(const abn_kernels *kernels, int every) { test_cases(kernels, (effort){every, 1}); }

static void extremes(const abn_kernels *kernels, int every) { test_extremes(kernels, every); }

static void allocations(const abn_kernels *kernels, int every) {
    (void)every;
    test_allocations(kernels);
}

static void large(const abn_kernels *kernels, int every) {
    (void)every;
    test_large(kernels);
}

static void large_in_place(const abn_kernels *kernels, int every) {
    (void)every;
    if (!test_large_in_place(kernels)) printf("not enough memory for large-in-place\n");
}

static const struct {
    const char *name, *help;
    void (*run)(const abn_kernels *kernels, int every);
    int best_set_only;
} commands[] = {
    {"light", "[every]  small shapes in every combination, or in every n-th", light, 0},
    {"heavy", "[every]  light, and shapes that take more than one block", heavy, 0},
    {"extremes", "[every]  extreme values, in all types and activations, or in every n-th", extremes, 0},
    {"allocations", "each allocation fails in turn", allocations, 1},
    {"large", "beyond 2^31 elements and 2^32 bytes", large, 1},
    {"large-in-place", "the forward in 4.3 GB of memory", large_in_place, 1},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void run_command(int which, int every) {
    const char *wanted = getenv("INPLACE_ABN_ISA");
    int sets = 0;
    for (int i = 0; abn_kernels_at(i); i++) {
        const abn_kernels *kernels = abn_kernels_at(i);
        const tally before = counted;
        if (!abn_kernels_usable(kernels) || (wanted && strcmp(wanted, abn_kernels_name(kernels)))) continue;
        if (sets++ && commands[which].best_set_only) break;
        commands[which].run(kernels, every);
        printf("%s: %ld checks, %ld failed\n", abn_kernels_name(kernels), counted.checks - before.checks,
               counted.failures - before.failures);
    }
    check(sets > 0, "this machine has no instruction set to test");
}

int main(int count, char **arguments) {
    abn_initialize();
    if (count == 3 && !strcmp(arguments[1], "planted")) return planted(arguments[2]);
    name_crashes();
    for (int i = 0; count > 1 && i < COMMANDS; i++) {
        if (strcmp(arguments[1], commands[i].name)) continue;
        run_command(i, count > 2 ? atoi(arguments[2]) : 1);
        printf("checks %ld failed %ld\n", counted.checks, counted.failures);
        return counted.failures != 0;
    }
    for (int i = 0; i < COMMANDS; i++) fprintf(stderr, "reliability %s  %s\n", commands[i].name, commands[i].help);
    fprintf(stderr, "reliability planted over|under|heap|leak|undefined|uninitialised|race\n");
    return 2;
}
