/* Does this compiler have the NEON of arm64? */
#include <arm_neon.h>

int main(int argc, char **argv) {
    (void)argv;
    return (int)vaddvq_f32(vdupq_n_f32((float)argc));
}
