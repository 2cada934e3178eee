/* Compiles if the compiler, with the flags for v2 in setup.py, can emit SSE4.2. */
#include <immintrin.h>

int main(int argc, char **argv) {
    (void)argv;
    return _mm_movemask_epi8(_mm_cmpgt_epi64(_mm_set1_epi32(argc), _mm_setzero_si128()));
}
