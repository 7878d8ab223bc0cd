// Sixteen lanes in two AVX2 registers.
#pragma once

constexpr int register_budget = 6;  // Lanes that a tile may sum into, of 16 registers

struct Lanes {
    __m256 v[2];
};
struct Ints {
    __m256i v[2];
};
struct Quads {  // four bytes in each lane
    __m256i v[2];
};

inline Lanes operator+(Lanes a, Lanes b) { return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}}; }
inline Lanes operator-(Lanes a, Lanes b) { return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}}; }
inline Lanes operator*(Lanes a, Lanes b) { return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}}; }
inline Lanes operator/(Lanes a, Lanes b) { return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline Lanes max(Lanes a, Lanes b) { return {{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}}; }
inline Lanes min(Lanes a, Lanes b) { return {{_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])}}; }
inline Lanes broadcast(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }

inline __m128i load_eight(const void *p, int half) { return _mm_loadu_si128((const __m128i *)p + half); }
inline __m256 widened(const Bf16 *p, int half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_eight(p, half)), 16));
}

inline Lanes load(const float *p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline Lanes load(const Fp16 *p) { return {{_mm256_cvtph_ps(load_eight(p, 0)), _mm256_cvtph_ps(load_eight(p, 1))}}; }
inline Lanes load(const Bf16 *p) { return {{widened(p, 0), widened(p, 1)}}; }

inline __m128i rounded_to_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline void store(float *p, Lanes x) {
    _mm256_storeu_ps(p, x.v[0]);
    _mm256_storeu_ps(p + 8, x.v[1]);
}
inline void store(Fp16 *p, Lanes x) {
    for (int half = 0; half < 2; ++half)
        _mm_storeu_si128((__m128i *)p + half, _mm256_cvtps_ph(x.v[half], _MM_FROUND_TO_NEAREST_INT));
}
inline void store(Bf16 *p, Lanes x) {
    for (int half = 0; half < 2; ++half) _mm_storeu_si128((__m128i *)p + half, rounded_to_bf16(x.v[half]));
}

// Lane i is the sum of the lanes of x[i], for eight of them.
inline __m256 eight_sums_of(const Lanes *x) {
    __m256 quarters[4];
    for (int k = 0; k < 4; ++k) {
        const __m256 left = _mm256_add_ps(x[k].v[0], x[k].v[1]), right = _mm256_add_ps(x[k + 4].v[0], x[k + 4].v[1]);
        quarters[k] = _mm256_add_ps(_mm256_permute2f128_ps(left, right, 0x20),
                                    _mm256_permute2f128_ps(left, right, 0x31));
    }
    __m256 pairs[2];
    for (int i = 0; i < 2; ++i) {
        const __m256d left = _mm256_castps_pd(quarters[2 * i]), right = _mm256_castps_pd(quarters[2 * i + 1]);
        pairs[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(left, right)),
                                 _mm256_castpd_ps(_mm256_unpackhi_pd(left, right)));
    }
    return _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x88), _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd));
}

// Lane i is the sum of the lanes of x[i].
inline Lanes sums_of(const Lanes (&x)[16]) { return {{eight_sums_of(x), eight_sums_of(x + 8)}}; }

// x * 2^n, where n is the integer in the low bits of `biased`.
inline __m256 times_power(__m256 x, __m256 biased) {
    const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
}
inline Lanes times_power(Lanes x, Lanes biased) {
    return {{times_power(x.v[0], biased.v[0]), times_power(x.v[1], biased.v[1])}};
}

inline __m256i load_half(const void *p, int half) { return _mm256_loadu_si256((const __m256i *)p + half); }
inline Quads load_quads(const void *p) { return {{load_half(p, 0), load_half(p, 1)}}; }
inline Quads stream_quads(const void *p) { return load_quads(p); }
inline Quads broadcast_quad(const void *p) {
    const __m256i quad = _mm256_set1_epi32(load_bytes<int32_t>(p));
    return {{quad, quad}};
}
inline Quads low_nibbles(Quads x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(x.v[0], mask), _mm256_and_si256(x.v[1], mask)}};
}
inline Quads high_nibbles(Quads x) {
    return low_nibbles({{_mm256_srli_epi16(x.v[0], 4), _mm256_srli_epi16(x.v[1], 4)}});
}
// The bf16 numbers in the low and in the high halves, widened.
inline Lanes low_halves(Quads x) {
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(x.v[0], 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.v[1], 16))}};
}
inline Lanes high_halves(Quads x) {
    const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    return {{_mm256_castsi256_ps(_mm256_and_si256(x.v[0], mask)), _mm256_castsi256_ps(_mm256_and_si256(x.v[1], mask))}};
}

inline Ints load(const int32_t *p) { return {{load_half(p, 0), load_half(p, 1)}}; }
inline void store(int32_t *p, Ints x) {
    for (int half = 0; half < 2; ++half) _mm256_storeu_si256((__m256i *)p + half, x.v[half]);
}
inline Ints broadcast(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
inline Ints operator-(Ints a, Ints b) {
    return {{_mm256_sub_epi32(a.v[0], b.v[0]), _mm256_sub_epi32(a.v[1], b.v[1])}};
}
inline Ints operator*(Ints a, Ints b) {
    return {{_mm256_mullo_epi32(a.v[0], b.v[0]), _mm256_mullo_epi32(a.v[1], b.v[1])}};
}
inline Lanes to_float(Ints x) { return {{_mm256_cvtepi32_ps(x.v[0]), _mm256_cvtepi32_ps(x.v[1])}}; }

constexpr int activation_offset = 0;

inline __m256i dot_bytes(__m256i activations, __m256i weights) {
    const __m256i even = _mm256_madd_epi16(_mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8),
                                           _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srai_epi16(activations, 8), _mm256_srai_epi16(weights, 8));
    return _mm256_add_epi32(even, odd);
}
inline Ints dot_bytes(Ints sum, Quads activations, Quads weights) {
    return {{_mm256_add_epi32(sum.v[0], dot_bytes(activations.v[0], weights.v[0])),
             _mm256_add_epi32(sum.v[1], dot_bytes(activations.v[1], weights.v[1]))}};
}
inline __m256i dot_nibbles(__m256i activations, __m256i nibbles) {
    // Two products of at most 15 * 127 fit 16 bits, so nothing saturates.
    return _mm256_madd_epi16(_mm256_maddubs_epi16(nibbles, activations), _mm256_set1_epi16(1));
}
inline Ints dot_nibbles(Ints sum, Quads activations, Quads nibbles) {
    return {{_mm256_add_epi32(sum.v[0], dot_nibbles(activations.v[0], nibbles.v[0])),
             _mm256_add_epi32(sum.v[1], dot_nibbles(activations.v[1], nibbles.v[1]))}};
}
