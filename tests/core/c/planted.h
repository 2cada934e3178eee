#ifndef PLANTED_H
#define PLANTED_H

/* Commits one error on purpose: a tool that does not report it proves nothing by its silence. */
int planted(const char *error);

#endif
