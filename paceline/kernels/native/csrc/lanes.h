// Sixteen float32 lanes on any processor, and what can be said of them without knowing the processor.
#pragma once

struct Bf16 {
    uint16_t bits;
};
struct Fp16 {
    uint16_t bits;
};

template <class T>
inline T load_bytes(const void *p) {
    T x;
    memcpy(&x, p, sizeof(x));
    return x;
}
inline uint32_t to_bits(float x) { return load_bytes<uint32_t>(&x); }
inline float from_bits(uint32_t bits) { return load_bytes<float>(&bits); }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#else
#include "lanes_portable.h"
#endif

constexpr int64_t width = 16;

// Elements of one of the three types; which one is known at run time.
inline int64_t size_of(int64_t dtype) { return dtype == PACELINE_FLOAT32 ? 4 : 2; }

inline char *address(const paceline_matrix &matrix, int64_t row, int64_t column) {
    return (char *)matrix.data + (row * matrix.stride + column) * size_of(matrix.dtype);
}

inline Lanes load_as(int64_t dtype, const void *p) {
    if (dtype == PACELINE_FLOAT32) return load((const float *)p);
    return dtype == PACELINE_BFLOAT16 ? load((const Bf16 *)p) : load((const Fp16 *)p);
}

inline void store_as(int64_t dtype, void *p, Lanes x) {
    if (dtype == PACELINE_FLOAT32) return store((float *)p, x);
    if (dtype == PACELINE_BFLOAT16) return store((Bf16 *)p, x);
    store((Fp16 *)p, x);
}

// The first `count` lanes; the others are zero.
inline Lanes load_as(int64_t dtype, const void *p, int64_t count) {
    if (count >= width) return load_as(dtype, p);
    alignas(64) char whole[64] = {};
    memcpy(whole, p, count * size_of(dtype));
    return load_as(dtype, whole);
}

inline void store_as(int64_t dtype, void *p, Lanes x, int64_t count) {
    if (count >= width) return store_as(dtype, p, x);
    alignas(64) char whole[64];
    store_as(dtype, whole, x);
    memcpy(p, whole, count * size_of(dtype));
}

inline Lanes load(const float *p, int64_t count) { return load_as(PACELINE_FLOAT32, p, count); }

inline Lanes first_lanes(Lanes x, int64_t count) {
    float all[width];
    store(all, x);
    return load(all, count);
}

inline float max_of(Lanes x) {
    float all[width];
    store(all, x);
    for (int64_t half = width / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) all[i] = all[i] > all[i + half] ? all[i] : all[i + half];
    return all[0];
}

// In one order, whatever the processor: halves are added to halves. `sums_of` does so too.
inline float sum_of(Lanes x) {
    float all[width];
    store(all, x);
    for (int64_t half = width / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) all[i] += all[i + half];
    return all[0];
}

// e^x within two units in the last place, after Cephes; NaN stays NaN.
inline Lanes exp(Lanes x) {
    const Lanes magic = broadcast(12582912.0f);  // adding it leaves the nearest integer in the low bits
    x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
    const Lanes biased = fma(x, broadcast(1.44269504088896341f), magic), n = biased - magic;
    const Lanes r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
    Lanes p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    return times_power(fma(p, r * r, r + broadcast(1.0f)), biased);
}

// Absolutely, not relatively, as exact as float32 is: near zero it cancels.
inline Lanes tanh(Lanes x) { return broadcast(1.0f) - broadcast(2.0f) / (exp(x + x) + broadcast(1.0f)); }
