/* Compiles if the compiler, with the flags for v3 in setup.py, can emit every feature of v3. */
#include <immintrin.h>

int main(int argc, char **argv) {
    __m256 a = _mm256_cvtph_ps(_mm_set1_epi32(argc)); /* F16C */
    a = _mm256_fmadd_ps(a, a, a);                     /* FMA */
    (void)argv;
    return _mm256_movemask_epi8(_mm256_abs_epi8(_mm256_castps_si256(a))); /* AVX2 */
}
