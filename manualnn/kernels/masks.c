/* Dropout in one pass: out = z r, r = q where the mask is 1 and else 0; and with a shift out = z r + s.

   As ATen's operations round it: z times the mask is z, or a 0 of z's sign, or NaN; times q it is rounded once,
   and once more when s is added. The mask comes as a byte an element and leaves as a bit, or comes as bits: eight
   to a byte, the first one highest. */

#include <string.h>

#pragma GCC optimize("O3")

typedef long long count;
typedef unsigned char byte;
typedef unsigned long long word;

enum { ROWS = 1024 };

typedef struct {
    float q, on, off; /* the shift of what is kept, and of what is dropped */
    int shifts;
} how;

static void block(count n, how by, const float *z, const byte *mask, float *out)
{
    if (by.shifts)
        for (count i = 0; i < n; i++) {
            float r = mask[i] ? by.q : 0.0f, s = mask[i] ? by.on : by.off, product = z[i] * r;
            out[i] = product + s;
        }
    else
        for (count i = 0; i < n; i++) {
            float r = mask[i] ? by.q : 0.0f;
            out[i] = z[i] * r;
        }
}

/* tensors: out, bits, z, mask */
void mask_and_pack(count n, int threads, float q, float on, float off, int shifts, void **tensors)
{
    float *out = tensors[0];
    byte *bits = tensors[1];
    const float *z = tensors[2];
    const byte *mask = tensors[3];
    const how by = {q, on, off, shifts};
    #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)
    for (count at = 0; at < n; at += ROWS) {
        count size = n - at < ROWS ? n - at : ROWS;
        block(size, by, z + at, mask + at, out + at);
        for (count i = 0; i < size; i += 8) {
            word eight = 0;
            memcpy(&eight, mask + at + i, size - i < 8 ? size - i : 8);
            bits[(at + i) / 8] = (eight * 0x8040201008040201ull) >> 56;
        }
    }
}

/* tensors: out, z, bits */
void mask_by_bits(count n, int threads, float q, float on, float off, int shifts, void **tensors)
{
    float *out = tensors[0];
    const float *z = tensors[1];
    const byte *bits = tensors[2];
    const how by = {q, on, off, shifts};
    #pragma omp parallel for num_threads(threads) if(threads > 1) schedule(static)
    for (count at = 0; at < n; at += ROWS) {
        count size = n - at < ROWS ? n - at : ROWS;
        byte mask[ROWS];
        for (count i = 0; i < size; i += 8) {
            word eight = bits[(at + i) / 8] * 0x8040201008040201ull;
            eight = (eight & 0x8080808080808080ull) >> 7;
            memcpy(mask + i, &eight, 8);
        }
        block(size, by, z + at, mask, out + at);
    }
}
