/* Compiles and links if OpenMP's header and library are installed. */
#include <omp.h>

int main(void) { return omp_get_max_threads() < 1; }
