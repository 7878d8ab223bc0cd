// The threshold of top-p: integer masses in units of 2^-40 of the likeliest token, a histogram over depth, then digits.
#pragma once

constexpr int64_t num_buckets = 4096;
constexpr float deepest = 30.0f;  // a token so far below the best has no mass

// round(e^-depth 2^40) for depths from 0 to `deepest`, with the same bits at every level: nothing is fused.
inline int64_t mass_of(double depth) {
    constexpr double magic = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
    const double x = -depth, shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
    const double r = x - n * 0x1.62e42fee00000p-1 - n * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    const uint64_t bits = load_bytes<uint64_t>(&p) + ((load_bytes<uint64_t>(&shifted) + 40) << 52);
    const double rounded = load_bytes<double>(&bits) + magic;
    return load_bytes<int64_t>(&rounded) - 0x4338000000000000;
}

// A logit's place below the best, after temperature: what truncation and noise are given.
struct Scale {
    float shift, temperature;
    bool on;  // off, scores are the logits

    float of(float logit) const { return on ? (logit - shift) / temperature : logit; }
    void of_block(const float *logits, float *scores) const {
        if (on) {
            for (int64_t i = 0; i < block_size; ++i) scores[i] = (logits[i] - shift) / temperature;
        } else {
            memcpy(scores, logits, block_size * sizeof(float));
        }
    }
};

inline int32_t bucket_of(float depth) {
    return (int32_t)((depth < deepest ? depth : deepest) * ((float)(num_buckets - 1) / deepest));
}

struct NucleusRoom {
    uint32_t *keys;    // [blocks][block_size]
    int64_t *weights;  // [blocks][block_size]
};

// How far a block's tokens are below the best, no more than `deepest`; tokens below `least` are at the bottom.
struct Depths {
    float scores[block_size], values[block_size];
    int32_t buckets[block_size];

    Depths(const Scale &scale, const float *logits, float best, float least) {
        scale.of_block(logits, scores);
        for (int64_t i = 0; i < block_size; ++i) {
            const float depth = scores[i] >= least ? best - scores[i] : deepest;
            values[i] = depth < deepest ? depth : deepest;
        }
        for (int64_t i = 0; i < block_size; ++i) buckets[i] = bucket_of(values[i]);
    }
};

inline void add_masses(const Depths &depths, int64_t *histogram) {
    int64_t masses[block_size];
    for (int64_t i = 0; i < block_size; ++i) masses[i] = mass_of(depths.values[i]);
    for (int64_t i = 0; i < block_size; ++i) histogram[depths.buckets[i]] += masses[i];
}

// Keys and weights of the block's tokens in the bucket, behind the first `count` that there are.
inline int64_t collect(const Depths &depths, int32_t bucket, const NucleusRoom &room, int64_t count) {
    int any = 0;
    for (int64_t i = 0; i < block_size; ++i) any |= depths.buckets[i] == bucket;
    if (!any) return count;
    for (int64_t i = 0; i < block_size; ++i) {
        if (depths.buckets[i] != bucket) continue;
        room.keys[count] = ordered(depths.scores[i]);
        room.weights[count] = mass_of(depths.values[i]);
        count += room.weights[count] > 0;
    }
    return count;
}

// Adds the masses of all scores from `least` on in blocks [first, last) to the histogram. `best` is the row's best.
inline void add_masses(const LogitRow &logits, const float *maxima, const Scale &scale, float best, float least,
                       int64_t first, int64_t last, int64_t *histogram) {
    float room[block_size];
    for (int64_t index = first; index < last; ++index) {
        const float maximum = scale.of(maxima[index]);
        if (maximum < least || best - maximum >= deepest) continue;
        add_masses(Depths(scale, logits.block(index, room), best, least), histogram);
    }
}

// The score of the last token of the smallest set of likeliest tokens that holds `share` of the mass of the histogram,
// to which every block has been added.
inline float last_of_nucleus(const LogitRow &logits, const float *maxima, const Scale &scale, float best, float least,
                             double share, const int64_t *histogram, const NucleusRoom &room) {
    float space[block_size];
    int64_t total = 0, count = 0;
    for (int64_t i = 0; i < num_buckets; ++i) total += histogram[i];
    int64_t needed = smaller((int64_t)ceil((double)total * share), total);
    int32_t bucket = 0;
    for (; histogram[bucket] < needed; ++bucket) needed -= histogram[bucket];
    for (int64_t index = 0; index < logits.num_blocks(); ++index) {
        const float maximum = scale.of(maxima[index]);
        if (maximum < least || bucket_of(best - maximum) > bucket) continue;
        count = collect(Depths(scale, logits.block(index, space), best, least), bucket, room, count);
    }
    return from_ordered(select_key(room.keys, room.weights, count, needed));
}
