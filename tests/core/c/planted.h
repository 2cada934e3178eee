#ifndef PLANTED_H
#define PLANTED_H

/* Commits one error on purpose, to test that the tool in use (sanitizer, Valgrind, arrays.h) detects it. */
int planted(const char *error);

#endif
