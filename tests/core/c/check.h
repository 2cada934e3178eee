/* Counting of checks, and what to print when one fails or the program crashes. */
#ifndef CHECK_H
#define CHECK_H

typedef struct {
    long checks, failures;
} tally;

extern tally counted;

/* Names what is being tested, for messages. */
void now_testing(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Counts a check; where it does not hold, prints what is being tested and the message. Returns whether it holds. */
int check(int holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* From now on a crash prints what was being tested. */
void name_crashes(void);

#endif
