#include "check.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGES = 20 }; /* one defect fails many checks */

tally counted;
static char current[512] = "start\n";

void now_testing(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(current, sizeof current - 1, format, arguments);
    va_end(arguments);
    strcat(current, "\n");
}

int check(int holds, const char *format, ...) {
    counted.checks++;
    if (holds) return 1;
    if (counted.failures++ < MESSAGES) {
        va_list arguments;
        va_start(arguments, format);
        fprintf(stderr, "FAILED: ");
        vfprintf(stderr, format, arguments);
        fprintf(stderr, "\n  in %s", current);
        va_end(arguments);
    }
    return 0;
}

/* SA_RESETHAND removes the handler: on return the access is retried, and then terminates the program. */
static void on_crash(int signal_number) {
    static const char text[] = "CRASH in ";
    (void)signal_number;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0 || write(STDERR_FILENO, current, strlen(current)) < 0) _exit(2);
}

void name_crashes(void) {
    struct sigaction action = {.sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
}
