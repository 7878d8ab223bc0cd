// Rows of logits in blocks of 64 tokens, with what controls did to single ones.
#pragma once

constexpr int64_t block_size = words_at_once;

#if defined(__AVX512F__)
inline float largest_of(Lanes x) { return _mm512_reduce_max_ps(x.v); }
inline bool unordered(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }
inline bool any_reaches(Lanes x, float least) {
    return _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(least), _CMP_GE_OQ) != 0;
}
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
inline bool any_reaches(Lanes x, float least) {
    const __m256 eight = _mm256_max_ps(x.v[0], x.v[1]);
    return _mm256_movemask_ps(_mm256_cmp_ps(eight, _mm256_set1_ps(least), _CMP_GE_OQ)) != 0;
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
inline bool any_reaches(Lanes x, float least) { return largest_of(x) >= least; }
#endif

// Bit i is set where value i of a block is no more than the limit.
inline uint64_t at_most(const float *x, float limit) {
    uint64_t bits = 0;
#if defined(__AVX512F__)
    const __m512 limits = _mm512_set1_ps(limit);
    for (int64_t i = 0; i < block_size; i += width)
        bits |= (uint64_t)_mm512_cmp_ps_mask(load(x + i).v, limits, _CMP_LE_OQ) << i;
#elif defined(__AVX2__)
    const __m256 limits = _mm256_set1_ps(limit);
    for (int64_t i = 0; i < block_size; i += 8)
        bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), limits, _CMP_LE_OQ)) << i;
#else
    for (int64_t i = 0; i < block_size; ++i) bits |= (uint64_t)(x[i] <= limit) << i;
#endif
    return bits;
}

// The logits whose bits are set; -inf for the others.
inline void keep_bits(const float *x, uint64_t bits, float *kept) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < block_size; i += width)
        store(kept + i, {_mm512_mask_blend_ps((__mmask16)(bits >> i), _mm512_set1_ps(-INFINITY), load(x + i).v)});
#else
    for (int64_t i = 0; i < block_size; ++i) kept[i] = bits >> i & 1 ? x[i] : -INFINITY;
#endif
}

// One row of logits, of which every block is whole: behind the end lies -inf.
struct LogitRow {
    const paceline_matrix *matrix;
    int64_t row, size;
    const uint64_t *allowed = nullptr;  // a word per block, a bit per token; NULL: every token
    const int32_t *patch_of = nullptr;  // [blocks]: the patch in a block's place, or -1; NULL: there are none
    const float *patches = nullptr;     // [any][block_size]

    int64_t num_blocks() const { return (size + block_size - 1) / block_size; }

    // The block's logits, in `room` [block_size] unless they lie in memory as they are needed.
    const float *block(int64_t index, float *room) const {
        if (patch_of != nullptr && patch_of[index] >= 0) return patches + patch_of[index] * block_size;
        const float *x = unchanged(index, room);
        if (allowed == nullptr || allowed[index] == UINT64_MAX) return x;
        keep_bits(x, allowed[index], room);
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

  private:
    const float *unchanged(int64_t index, float *room) const {
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
};

// The logit after a control's edit.
inline float edited(float x, const paceline_edit &edit) {
    if (edit.first == INFINITY) return -INFINITY;
    return (x > 0 ? x / edit.repetition : x * edit.repetition) - edit.first - edit.second;
}

// Applies edits in their order: patches take the places of the blocks in which there are any, as `row` then says.
// `patch_of` [blocks] and `patches` [as many as edits, or blocks][block_size] are room for them.
inline void patch(LogitRow &row, const paceline_edit *edits, int64_t count, int32_t *patch_of, float *patches) {
    for (int64_t i = 0; i < row.num_blocks(); ++i) patch_of[i] = -1;
    int32_t used = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = edits[i].token / block_size;
        if (patch_of[index] < 0) {
            float room[block_size];
            memcpy(patches + used * block_size, row.block(index, room), sizeof(room));
            patch_of[index] = used++;
        }
        float &x = patches[patch_of[index] * block_size + edits[i].token % block_size];
        x = edited(x, edits[i]);
    }
    row.patch_of = patch_of;
    row.patches = patches;
}
