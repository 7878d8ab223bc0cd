// Thresholds found without sorting: by maxima of blocks and by digits.
#pragma once

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

struct Selected {
    uint32_t key;
    int64_t needed, weight;  // how much of its own weight was needed, and how much it has
};

// The largest key that, with those above it, has the `needed` weight; each weighs 1 without weights. Destroys both.
inline Selected select_key(uint32_t *keys, int64_t *weights, int64_t count, int64_t needed) {
    Selected found{0, needed, 0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t histogram[256] = {};
        for (int64_t i = 0; i < count; ++i) histogram[keys[i] >> shift & 255] += weights == nullptr ? 1 : weights[i];
        uint32_t digit = 255;
        for (; digit > 0 && histogram[digit] < found.needed; --digit) found.needed -= histogram[digit];
        found.key |= digit << shift;
        found.weight = histogram[digit];
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
        least = from_ordered(select_key(keys, nullptr, blocks, k).key);
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
    return from_ordered(select_key(keys, nullptr, count, k).key);
}
