/* Compiles if the compiler, with the flags for v4 in setup.py, can emit every feature of v4. */
#include <immintrin.h>

int main(int argc, char **argv) {
    __m512i i = _mm512_set1_epi32(argc);
    const __m512 a = _mm512_and_ps(_mm512_castsi512_ps(i), _mm512_set1_ps(1.0f));     /* F, DQ */
    __m256 b = _mm256_maskz_mov_ps(1, _mm512_castps512_ps256(a));                     /* VL */
    i = _mm512_maskz_mov_epi16(_mm512_cmpneq_epi16_mask(i, _mm512_set1_epi16(7)), i); /* BW */
    b = _mm256_fmadd_ps(b, b, _mm256_cvtph_ps(_mm512_castsi512_si128(i)));            /* FMA, F16C */
    (void)argv;
    return _mm256_movemask_epi8(_mm256_abs_epi8(_mm256_castps_si256(b))); /* AVX2 */
}
