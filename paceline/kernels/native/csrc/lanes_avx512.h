// Sixteen lanes in one AVX-512 register.
#pragma once

constexpr int register_budget = 24;  // Lanes that a tile may sum into, of 32 registers

struct Lanes {
    __m512 v;
};
struct Ints {
    __m512i v;
};
struct Quads {  // four bytes in each lane
    __m512i v;
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }

inline Lanes load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Lanes load(const Fp16 *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))}; }
inline Lanes load(const Bf16 *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

inline void store(float *p, Lanes x) { _mm512_storeu_ps(p, x.v); }
inline void store(Fp16 *p, Lanes x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(Bf16 *p, Lanes x) {
    const __m512i bits = _mm512_castps_si512(x.v), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i whole = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), rounded, quiet);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(whole, 16)));
}

// Lane i is the sum of the lanes of x[i].
inline Lanes sums_of(const Lanes (&x)[16]) {
    __m512 eighths[4];
    for (int k = 0; k < 4; ++k) {
        __m512 quarters[2];
        for (int i = 0; i < 2; ++i) {
            const __m512 left = x[k + 8 * i].v, right = x[k + 8 * i + 4].v;
            quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x44), _mm512_shuffle_f32x4(left, right, 0xee));
        }
        eighths[k] = _mm512_add_ps(_mm512_shuffle_f32x4(quarters[0], quarters[1], 0x88),
                                   _mm512_shuffle_f32x4(quarters[0], quarters[1], 0xdd));
    }
    __m512 pairs[2];
    for (int i = 0; i < 2; ++i) {
        const __m512d left = _mm512_castps_pd(eighths[2 * i]), right = _mm512_castps_pd(eighths[2 * i + 1]);
        pairs[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
    }
    return {_mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd))};
}

// x * 2^n, where n is the integer in the low bits of `biased`.
inline Lanes times_power(Lanes x, Lanes biased) {
    const __m512i shift = _mm512_slli_epi32(_mm512_castps_si512(biased.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), shift))};
}

inline Quads load_quads(const void *p) { return {_mm512_loadu_si512(p)}; }
// By halves: what is done with every line of a stream is little, and the processor reads ahead further when it sees two
// loads of a line. Where more is done, putting them together costs more than that gains.
inline Quads stream_quads(const void *p) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return {_mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)p + 1), 1)};
}
inline Quads broadcast_quad(const void *p) { return {_mm512_set1_epi32(load_bytes<int32_t>(p))}; }
inline Quads low_nibbles(Quads x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
inline Quads high_nibbles(Quads x) { return low_nibbles({_mm512_srli_epi16(x.v, 4)}); }
// The bf16 numbers in the low and in the high halves, widened.
inline Lanes low_halves(Quads x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
inline Lanes high_halves(Quads x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32((int)0xffff0000)))};
}

inline Ints load(const int32_t *p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t *p, Ints x) { _mm512_storeu_si512(p, x.v); }
inline Ints broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Ints operator*(Ints a, Ints b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline Lanes to_float(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }

#ifdef __AVX512VNNI__

// The instruction wants one unsigned side, so activations are stored with this added.
constexpr int activation_offset = 128;
inline Ints dot_bytes(Ints sum, Quads activations, Quads weights) {
    return {_mm512_dpbusd_epi32(sum.v, activations.v, weights.v)};
}
inline Ints dot_nibbles(Ints sum, Quads activations, Quads nibbles) {
    return {_mm512_dpbusd_epi32(sum.v, nibbles.v, activations.v)};
}

#else

constexpr int activation_offset = 0;
inline __m512i even_bytes(Quads x) { return _mm512_srai_epi16(_mm512_slli_epi16(x.v, 8), 8); }
inline __m512i odd_bytes(Quads x) { return _mm512_srai_epi16(x.v, 8); }
inline Ints dot_bytes(Ints sum, Quads activations, Quads weights) {
    const __m512i even = _mm512_madd_epi16(even_bytes(activations), even_bytes(weights));
    const __m512i odd = _mm512_madd_epi16(odd_bytes(activations), odd_bytes(weights));
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
}
inline Ints dot_nibbles(Ints sum, Quads activations, Quads nibbles) {
    // Two products of at most 15 * 127 fit 16 bits, so nothing saturates.
    const __m512i pairs = _mm512_maddubs_epi16(nibbles.v, activations.v);
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}

#endif

#ifdef __AVX512BF16__
#define PACELINE_DOT_BF16 1
inline Lanes dot_bf16(Lanes sum, Quads activations, Quads weights) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)activations.v, (__m512bh)weights.v)};
}
#endif
