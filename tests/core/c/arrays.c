#include "arrays.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

enum { UNTOUCHED = 0xff };

const char *const dtype_names[ABN_DTYPES] = {"float32", "float64", "float16", "bfloat16"};

const number_format formats[ABN_DTYPES] = {
    [ABN_FLOAT32] = {24, -126, FLT_MAX},
    [ABN_FLOAT64] = {53, -1022, DBL_MAX},
    [ABN_FLOAT16] = {11, -14, 65504},
    [ABN_BFLOAT16] = {8, -126, 0x1.fep127},
};

double spacing_near_zero(abn_dtype dtype) {
    return ldexp(1, formats[dtype].least_exponent - formats[dtype].digits + 1);
}

double rounded(abn_dtype dtype, double value) {
    const number_format format = formats[dtype];
    int exponent;
    if (dtype == ABN_FLOAT64 || value == 0 || !isfinite(value)) return value;
    frexp(value, &exponent); /* |value| < 2^exponent */
    if (exponent < format.least_exponent + 1) exponent = format.least_exponent + 1;
    const double unit = ldexp(1, exponent - format.digits), result = rint(value / unit) * unit;
    return fabs(result) > format.largest ? copysign(INFINITY, value) : result;
}

/* The bits of a value that the type can hold. */
static uint16_t bits_of_half(abn_dtype dtype, double value) {
    const number_format format = formats[dtype];
    const unsigned sign = signbit(value) ? 0x8000 : 0, hidden = 1u << (format.digits - 1);
    const double size = fabs(value);
    int exponent;
    if (isnan(value)) return 0x7fff;
    if (isinf(value)) return (uint16_t)(sign | (dtype == ABN_FLOAT16 ? 0x7c00 : 0x7f80));
    if (size < ldexp(1, format.least_exponent)) return (uint16_t)(sign | (unsigned)(size / spacing_near_zero(dtype)));
    const unsigned significand = (unsigned)ldexp(frexp(size, &exponent), format.digits);
    return (uint16_t)(sign | (unsigned)(exponent - format.least_exponent) * hidden | (significand & (hidden - 1)));
}

static double value_of_half(abn_dtype dtype, uint16_t bits) {
    const number_format format = formats[dtype];
    const unsigned hidden = 1u << (format.digits - 1), low = bits & (hidden - 1), high = (bits & 0x7fff) / hidden;
    double size = (low + (high ? hidden : 0)) * spacing_near_zero(dtype);
    if (high > 1) size = ldexp(size, (int)high - 1);
    if (high == 0x7fff / hidden) size = low ? NAN : INFINITY;
    return bits & 0x8000 ? -size : size;
}

static void store(abn_dtype dtype, void *at, double value) {
    if (dtype == ABN_FLOAT64)
        *(double *)at = value;
    else if (dtype == ABN_FLOAT32)
        *(float *)at = (float)value;
    else
        *(uint16_t *)at = bits_of_half(dtype, rounded(dtype, value));
}

static double load(abn_dtype dtype, const void *at) {
    if (dtype == ABN_FLOAT64) return *(const double *)at;
    if (dtype == ABN_FLOAT32) return *(const float *)at;
    return value_of_half(dtype, *(const uint16_t *)at);
}

/* ---- arrays -------------------------------------------------------------------------------------------- */

array array_open(size_t bytes, flush_side side) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
    char *mapped = mmap(NULL, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || (inside && mprotect(mapped + page, inside, PROT_READ | PROT_WRITE))) {
        perror("array_open");
        exit(2);
    }
    memset(mapped + page, UNTOUCHED, inside);
    return (array){mapped + page, inside, mapped + page + (side == FLUSH_END ? inside - bytes : 0), bytes};
}

array array_of_doubles(const double *values, ptrdiff_t count, flush_side side) {
    array a = array_open((size_t)count * sizeof *values, side);
    if (values) memcpy(a.data, values, a.bytes);
    return a;
}

static void protect(const array *a, int rights) {
    if (a->page_bytes && mprotect(a->pages, a->page_bytes, rights)) {
        perror("mprotect");
        exit(2);
    }
}

void array_freeze(const array *a) { protect(a, PROT_READ); }

void array_thaw(const array *a) { protect(a, PROT_READ | PROT_WRITE); }

void array_close(array *a) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t changed = 0;
    array_thaw(a);
    memset(a->data, UNTOUCHED, a->bytes);
    for (size_t i = 0; i < a->page_bytes; i++) changed += (unsigned char)a->pages[i] != UNTOUCHED;
    check(changed == 0, "%zu bytes outside of an array were written", changed);
    munmap(a->pages - page, a->page_bytes + 2 * page);
    *a = (array){NULL, 0, NULL, 0};
}

/* ---- batches ------------------------------------------------------------------------------------------- */

tensor tensor_open(abn_dtype dtype, shape of, layout as, flush_side side) {
    abn_batch b = {NULL, dtype, of.batch, of.channels, of.spatial, 0, 1, 1};
    if (as.channels_last) {
        b.spatial_stride = of.channels + as.row_gap;
        b.batch_stride = of.spatial * b.spatial_stride + as.image_gap;
    } else {
        b.channel_stride = of.spatial + as.row_gap;
        b.batch_stride = of.channels * b.channel_stride + as.image_gap;
    }
    ptrdiff_t extent = 0;
    if (elements_of(of) > 0)
        extent = (of.batch - 1) * b.batch_stride + (of.channels - 1) * b.channel_stride +
                 (of.spatial - 1) * b.spatial_stride + 1;
    const array memory = array_open((size_t)extent * abn_dtype_size(dtype), side);
    b.data = memory.data;
    return (tensor){memory, b};
}

static char *element_at(const abn_batch *b, ptrdiff_t n, ptrdiff_t c, ptrdiff_t s) {
    const ptrdiff_t offset = n * b->batch_stride + c * b->channel_stride + s * b->spatial_stride;
    return (char *)b->data + offset * (ptrdiff_t)abn_dtype_size(b->dtype);
}

typedef void visit(const abn_batch *b, char *element, double *value);

static void for_each_element(const abn_batch *b, visit *visitor, double *values) {
    ptrdiff_t i = 0;
    for (ptrdiff_t n = 0; n < b->batch; n++)
        for (ptrdiff_t c = 0; c < b->channels; c++)
            for (ptrdiff_t s = 0; s < b->spatial; s++, i++)
                visitor(b, element_at(b, n, c, s), values ? values + i : NULL);
}

static void store_one(const abn_batch *b, char *element, double *value) { store(b->dtype, element, *value); }

static void load_one(const abn_batch *b, char *element, double *value) { *value = load(b->dtype, element); }

static void erase_one(const abn_batch *b, char *element, double *value) {
    (void)value;
    memset(element, UNTOUCHED, abn_dtype_size(b->dtype));
}

void tensor_write(const tensor *t, const double *values) {
    for_each_element(&t->batch, store_one, (double *)(uintptr_t)values);
}

void tensor_read(const tensor *t, double *values) { for_each_element(&t->batch, load_one, values); }

void tensor_close(tensor *t) {
    array_thaw(&t->memory);
    for_each_element(&t->batch, erase_one, NULL);
    t->memory.bytes = 0; /* gaps between elements count as outside */
    array_close(&t->memory);
}
