// Sixteen lanes in the vectors that every compiler of the GNU family knows: SSE2, NEON, or whatever there is.
#pragma once

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

#ifdef __aarch64__
constexpr int register_budget = 6;  // Lanes that a tile may sum into, of 32 registers
inline Floats4 fma(Floats4 a, Floats4 b, Floats4 c) {
    return (Floats4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
constexpr int register_budget = 3;  // of 16 registers
inline Floats4 fma(Floats4 a, Floats4 b, Floats4 c) { return a * b + c; }
#endif

struct Lanes {
    Floats4 v[4];
};
struct Ints {
    Ints4 v[4];
};
struct Quads {  // four bytes in each lane
    Ints4 v[4];
};

template <class Vector, class Function>
inline Vector each(Function function) {
    return {{function(0), function(1), function(2), function(3)}};
}

inline Lanes operator+(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Lanes operator-(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Lanes operator*(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Lanes operator/(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] / b.v[i]; }); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return each<Lanes>([&](int i) { return fma(a.v[i], b.v[i], c.v[i]); }); }
// Like the instruction of x86: b where either is NaN.
inline Lanes max(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes min(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes broadcast(float x) { return each<Lanes>([&](int) { return Floats4{x, x, x, x}; }); }

inline float widened(Bf16 x) { return from_bits((uint32_t)x.bits << 16); }

inline float widened(Fp16 x) {
    const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa != 0) << 22);
    if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = (float)mantissa * 0x1p-24f;
    return from_bits(sign | to_bits(tiny));
}

inline void narrow(Bf16 *p, float x) {
    const uint32_t bits = to_bits(x);
    p->bits = (uint16_t)((x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void narrow(Fp16 *p, float x) {
    const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t found;
    if (magnitude > 0x7f800000) {
        found = 0x7e00 | (magnitude >> 13 & 0x1ff);
    } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
        found = 0x7c00;
    } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
        found = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
    } else {
        found = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    }
    p->bits = (uint16_t)(sign | found);
}

inline Lanes load(const float *p) { return load_bytes<Lanes>(p); }
inline void store(float *p, Lanes x) { memcpy(p, &x, sizeof(x)); }

template <class Half>
inline Lanes load(const Half *p) {
    float wide[16];
    for (int i = 0; i < 16; ++i) wide[i] = widened(p[i]);
    return load(wide);
}

template <class Half>
inline void store(Half *p, Lanes x) {
    float wide[16];
    store(wide, x);
    for (int i = 0; i < 16; ++i) narrow(p + i, wide[i]);
}

// Lane i is the sum of the lanes of x[i].
inline Lanes sums_of(const Lanes (&x)[16]) {
    float sums[16];
    for (int i = 0; i < 16; ++i) {
        const Floats4 quarter = (x[i].v[0] + x[i].v[2]) + (x[i].v[1] + x[i].v[3]);
        sums[i] = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    }
    return load(sums);
}

// x * 2^n, where n is the integer in the low bits of `biased`. Shifted as unsigned: the high bits are to be lost.
inline Lanes times_power(Lanes x, Lanes biased) {
    typedef uint32_t Unsigned4 __attribute__((vector_size(16)));
    return each<Lanes>([&](int i) { return (Floats4)((Unsigned4)x.v[i] + ((Unsigned4)biased.v[i] << 23)); });
}

inline Quads load_quads(const void *p) { return load_bytes<Quads>(p); }
inline Quads stream_quads(const void *p) { return load_quads(p); }
inline Quads broadcast_quad(const void *p) {
    const int32_t x = load_bytes<int32_t>(p);
    return each<Quads>([&](int) { return Ints4{x, x, x, x}; });
}
inline Quads low_nibbles(Quads x) { return each<Quads>([&](int i) { return x.v[i] & 0x0f0f0f0f; }); }
inline Quads high_nibbles(Quads x) { return each<Quads>([&](int i) { return x.v[i] >> 4 & 0x0f0f0f0f; }); }
// The bf16 numbers in the low and in the high halves, widened.
inline Lanes low_halves(Quads x) {
    typedef uint32_t Unsigned4 __attribute__((vector_size(16)));
    return each<Lanes>([&](int i) { return (Floats4)((Unsigned4)x.v[i] << 16); });
}
inline Lanes high_halves(Quads x) { return each<Lanes>([&](int i) { return (Floats4)(x.v[i] & (int32_t)0xffff0000); }); }

inline Ints load(const int32_t *p) { return load_bytes<Ints>(p); }
inline void store(int32_t *p, Ints x) { memcpy(p, &x, sizeof(x)); }
inline Ints broadcast(int32_t x) { return each<Ints>([&](int) { return Ints4{x, x, x, x}; }); }
inline Ints operator-(Ints a, Ints b) { return each<Ints>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Ints operator*(Ints a, Ints b) { return each<Ints>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Lanes to_float(Ints x) { return each<Lanes>([&](int i) { return __builtin_convertvector(x.v[i], Floats4); }); }

constexpr int activation_offset = 0;

inline Ints dot_bytes(Ints sum, Quads activations, Quads weights) {
    int8_t a[64], w[64];
    int32_t s[16];
    memcpy(a, &activations, 64);
    memcpy(w, &weights, 64);
    store(s, sum);
    for (int i = 0; i < 16; ++i)
        for (int j = 4 * i; j < 4 * i + 4; ++j) s[i] += a[j] * w[j];
    return load(s);
}
inline Ints dot_nibbles(Ints sum, Quads activations, Quads nibbles) { return dot_bytes(sum, activations, nibbles); }
