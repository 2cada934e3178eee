/* Compiles if the compiler can emit arm64 NEON. */
#include <arm_neon.h>

int main(int argc, char **argv) {
    (void)argv;
    return (int)vaddvq_f32(vdupq_n_f32((float)argc));
}
