/* What the kernels use of the standard headers, which NVRTC does not have. */
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
#define FLT_MAX 0x1.fffffep+127f
#define FLT_MIN 0x1p-126f
#define DBL_MAX 0x1.fffffffffffffp+1023
#define DBL_MIN 0x1p-1022
#define INFINITY __int_as_float(0x7f800000)
#define NULL 0
