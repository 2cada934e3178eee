/* Counts checks; prints the current case if one fails or the program crashes. */
#ifndef CHECK_H
#define CHECK_H

typedef struct {
    long checks, failures;
} tally;

extern tally counted;

/* Names what is being tested, for messages. */
void now_testing(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Counts a check. If it fails, prints the current case and the message. Returns nonzero if it holds. */
int check(int holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* From now on a crash prints the current case. */
void name_crashes(void);

#endif
