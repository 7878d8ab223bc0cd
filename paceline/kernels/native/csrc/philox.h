// The noise of paceline/kernels/philox.py: Philox4x32-10 (Salmon et al. 2011) and what Gumbel noise can be made of a word.
#pragma once

// What the noise of a row depends on besides the token.
struct NoiseKey {
    uint32_t seed_low, seed_high;
    uint32_t output_index, sample_index, domain;
};

constexpr uint32_t philox_multipliers[2] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t philox_key_steps[2] = {0x9E3779B9u, 0xBB67AE85u};
constexpr int philox_rounds = 10;
constexpr int64_t words_at_once = 64;  // of 16 counters, four words each

#if defined(__AVX512F__)
#define PACELINE_WIDE_WORDS 8
using WideWords = __m512i;  // words in the low halves of 64-bit lanes; what the high halves hold does not matter
inline WideWords wide_words(uint32_t x) { return _mm512_set1_epi64((int64_t)x); }
inline WideWords counters_from(uint32_t x) {
    return _mm512_add_epi64(wide_words(x), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
}
inline WideWords products(WideWords x, uint32_t multiplier) { return _mm512_mul_epu32(x, wide_words(multiplier)); }
inline WideWords mixed(WideWords product, WideWords word, uint32_t key) {
    return _mm512_ternarylogic_epi64(_mm512_srli_epi64(product, 32), word, wide_words(key), 0x96);
}
inline WideWords paired(WideWords low, WideWords high) {
    return _mm512_mask_blend_epi32(0xaaaa, low, _mm512_slli_epi64(high, 32));
}
inline void store_words(uint32_t *p, const WideWords (&words)[4]) {
    const WideWords first = paired(words[0], words[1]), second = paired(words[2], words[3]);
    const WideWords low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), high = _mm512_add_epi64(low, wide_words(4));
    _mm512_storeu_si512(p, _mm512_permutex2var_epi64(first, low, second));
    _mm512_storeu_si512(p + 16, _mm512_permutex2var_epi64(first, high, second));
}
#elif defined(__AVX2__)
#define PACELINE_WIDE_WORDS 4
using WideWords = __m256i;
inline WideWords wide_words(uint32_t x) { return _mm256_set1_epi64x((int64_t)x); }
inline WideWords counters_from(uint32_t x) {
    return _mm256_add_epi64(wide_words(x), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline WideWords products(WideWords x, uint32_t multiplier) { return _mm256_mul_epu32(x, wide_words(multiplier)); }
inline WideWords mixed(WideWords product, WideWords word, uint32_t key) {
    return _mm256_xor_si256(_mm256_srli_epi64(product, 32), _mm256_xor_si256(word, wide_words(key)));
}
inline WideWords paired(WideWords low, WideWords high) {
    return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
}
inline void store_words(uint32_t *p, const WideWords (&words)[4]) {
    const WideWords first = paired(words[0], words[1]), second = paired(words[2], words[3]);
    const WideWords even = _mm256_unpacklo_epi64(first, second), odd = _mm256_unpackhi_epi64(first, second);
    _mm256_storeu_si256((__m256i *)p, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256((__m256i *)(p + 8), _mm256_permute2x128_si256(even, odd, 0x31));
}
#else
#define PACELINE_WIDE_WORDS 1
using WideWords = uint64_t;
inline WideWords wide_words(uint32_t x) { return x; }
inline WideWords counters_from(uint32_t x) { return x; }
inline WideWords products(WideWords x, uint32_t multiplier) { return (x & 0xffffffff) * multiplier; }
inline WideWords mixed(WideWords product, WideWords word, uint32_t key) { return product >> 32 ^ word ^ key; }
inline void store_words(uint32_t *p, const WideWords (&words)[4]) {
    for (int i = 0; i < 4; ++i) p[i] = (uint32_t)words[i];
}
#endif

// The four words of each of 16 counters from `counter` on: one word per token from 4 * counter on.
inline void noise_words(const NoiseKey &key, uint32_t counter, uint32_t *words) {
    constexpr int groups = 16 / PACELINE_WIDE_WORDS, together = groups < 4 ? groups : 4;
    for (int group = 0; group < groups; group += together) {
        WideWords x[together][4];
        for (int i = 0; i < together; ++i) {
            x[i][0] = counters_from(counter + (uint32_t)((group + i) * PACELINE_WIDE_WORDS));
            x[i][1] = wide_words(key.output_index);
            x[i][2] = wide_words(key.sample_index);
            x[i][3] = wide_words(key.domain);
        }
        uint32_t low_key = key.seed_low, high_key = key.seed_high;
        for (int round = 0; round < philox_rounds; ++round) {
            for (int i = 0; i < together; ++i) {
                const WideWords low = products(x[i][0], philox_multipliers[0]);
                const WideWords high = products(x[i][2], philox_multipliers[1]);
                x[i][0] = mixed(high, x[i][1], low_key);
                x[i][2] = mixed(low, x[i][3], high_key);
                x[i][1] = high;
                x[i][3] = low;
            }
            low_key += philox_key_steps[0];
            high_key += philox_key_steps[1];
        }
        for (int i = 0; i < together; ++i) store_words(words + (group + i) * PACELINE_WIDE_WORDS * 4, x[i]);
    }
}

// -log(-log(u)) of u = (word + 0.5) / 2^32, in float64 as the reference has it, then rounded.
inline float gumbel(uint32_t word) { return (float)-::log(-::log(((double)word + 0.5) * 0x1p-32)); }

// The largest noise there is, rounded up.
constexpr float largest_noise = 22.8740f;

// No less than gumbel(word), and little more where the noise is large: -log(-log(u)) <= -log(1 - u), and log2 of a float
// is no less than its exponent plus its mantissa's fraction.
inline float noise_bound(uint32_t word) {
    constexpr float ln2 = 0.69314718f, slack = 1e-4f;  // the roundings below add up to less
    const float rest = (float)(int32_t)(~word >> 1) + 0.25f;  // (1 - u) 2^31 or a little less
    return (127 + 31) * ln2 + slack - (float)(int32_t)to_bits(rest) * (ln2 * 0x1p-23f);
}
