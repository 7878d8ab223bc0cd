// Rows seen in blocks, and thresholds found without sorting: by maxima of blocks, histograms and digits.
#pragma once

constexpr int64_t block_size = words_at_once;

#if defined(__AVX512F__)
inline float largest_of(Lanes x) { return _mm512_reduce_max_ps(x.v); }
inline bool unordered(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }
#elif defined(__AVX2__)
inline float largest_of(Lanes x) {
    const __m256 eight = _mm256_max_ps(x.v[0], x.v[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
inline bool unordered(Lanes a, Lanes b) {
    const __m256 low = _mm256_cmp_ps(a.v[0], b.v[0], _CMP_UNORD_Q), high = _mm256_cmp_ps(a.v[1], b.v[1], _CMP_UNORD_Q);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
}
#else
inline float largest_of(Lanes x) {
    float all[width];
    store(all, x);
    for (int64_t half = width / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) all[i] = all[i] > all[i + half] ? all[i] : all[i + half];
    return all[0];
}
inline bool unordered(Lanes a, Lanes b) {
    float first[width], second[width];
    store(first, a);
    store(second, b);
    int found = 0;
    for (int64_t i = 0; i < width; ++i) found |= (first[i] != first[i]) | (second[i] != second[i]);
    return found != 0;
}
#endif

// One row of logits, of which every block is whole: behind the end lies -inf.
struct LogitRow {
    const paceline_matrix *matrix;
    int64_t row, size;

    int64_t num_blocks() const { return (size + block_size - 1) / block_size; }

    // The block's logits, in `room` [block_size] unless they lie in memory as they are needed.
    const float *block(int64_t index, float *room) const {
        const int64_t first = index * block_size, count = smaller(block_size, size - first);
        const char *p = address(*matrix, row, first);
        if (count == block_size && matrix->dtype == PACELINE_FLOAT32) return (const float *)p;
        for (int64_t i = count / width * width; i < block_size; ++i) room[i] = -INFINITY;
        for (int64_t i = 0; i < count; i += width) {
            float wide[width];
            store(wide, load_as(matrix->dtype, p + i * size_of(matrix->dtype), count - i));
            memcpy(room + i, wide, smaller(width, count - i) * sizeof(float));
        }
        return room;
    }

    // The largest logit of the block; NaN if there is one.
    float maximum(int64_t index) const {
        float room[block_size];
        const float *x = block(index, room);
        const Lanes a = load(x), b = load(x + width), c = load(x + 2 * width), d = load(x + 3 * width);
        if (unordered(a, b) || unordered(c, d)) return NAN;
        return largest_of(max(max(a, b), max(c, d)));
    }
};

// The largest of the maxima; NaN if there is one.
inline float largest_maximum(const float *maxima, int64_t count) {
    float largest = -INFINITY;
    for (int64_t i = 0; i < count; ++i) {
        if (maxima[i] != maxima[i]) return NAN;
        largest = maxima[i] > largest ? maxima[i] : largest;
    }
    return largest;
}

// Integers in the order of the floats; -0 comes before 0.
inline uint32_t ordered(float x) {
    const uint32_t bits = to_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float from_ordered(uint32_t key) { return from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// The largest key that, with those above it, has the `needed` weight; each weighs 1 without weights. Destroys both.
inline uint32_t select_key(uint32_t *keys, int64_t *weights, int64_t count, int64_t needed) {
    uint32_t found = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t histogram[256] = {};
        for (int64_t i = 0; i < count; ++i) histogram[keys[i] >> shift & 255] += weights == nullptr ? 1 : weights[i];
        uint32_t digit = 255;
        for (; digit > 0 && histogram[digit] < needed; --digit) needed -= histogram[digit];
        found |= digit << shift;
        int64_t kept = 0;
        for (int64_t i = 0; i < count; ++i) {
            const bool same = (keys[i] >> shift & 255) == digit;
            keys[kept] = keys[i];
            if (weights != nullptr) weights[kept] = weights[i];
            kept += same;
        }
        count = kept;
    }
    return found;
}

// The k-th largest logit of a row that has at least k. As many blocks as k have a maximum that reaches the k-th largest
// maximum, which is therefore no more than what is looked for. `keys` has room for every block.
inline float kth_largest(const LogitRow &logits, const float *maxima, int64_t k, uint32_t *keys) {
    const int64_t blocks = logits.num_blocks();
    float least = -INFINITY, room[block_size];
    if (k <= blocks) {
        for (int64_t i = 0; i < blocks; ++i) keys[i] = ordered(maxima[i]);
        least = from_ordered(select_key(keys, nullptr, blocks, k));
    }
    int64_t count = 0;
    for (int64_t index = 0; index < blocks; ++index) {
        if (maxima[index] < least) continue;
        const float *x = logits.block(index, room);
        for (int64_t i = 0; i < block_size; ++i) {
            keys[count] = ordered(x[i]);
            count += x[i] >= least;
        }
    }
    return from_ordered(select_key(keys, nullptr, count, k));
}
