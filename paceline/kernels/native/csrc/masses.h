// Masses of tokens for top-p: integers in units of 2^-40 of the likeliest token, by how far a score is below the best.
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

// How far a block's tokens are below the best, no more than `deepest`; tokens below `least` are at the bottom.
struct Depths {
    float scores[block_size], values[block_size];

    Depths(const Scale &scale, const float *logits, float best, float least) {
        scale.of_block(logits, scores);
        for (int64_t i = 0; i < block_size; ++i) {
            const float depth = scores[i] >= least ? best - scores[i] : deepest;
            values[i] = depth < deepest ? depth : deepest;
        }
    }
};

// A row of logits whose likeliest tokens are to be kept: its scores, the best of them, and the least that are still in.
struct Kept {
    const LogitRow &logits;
    const float *maxima;  // of its blocks
    const Scale &scale;
    float best, least;
    float reach;  // the depth that all buckets but the last share

    int32_t bucket_of(float depth) const {
        return (int32_t)((depth < reach ? depth : reach) * ((float)(num_buckets - 1) / reach));
    }
    void buckets_of(const Depths &depths, int32_t *buckets) const {
        for (int64_t i = 0; i < block_size; ++i) buckets[i] = bucket_of(depths.values[i]);
    }
    bool has_mass(int64_t index) const {
        const float maximum = scale.of(maxima[index]);
        return maximum >= least && best - maximum < deepest;
    }
};

struct NucleusRoom {
    uint32_t *keys;      // [blocks][block_size]
    int64_t *weights;    // [blocks][block_size]
    int64_t *histogram;  // [num_buckets]
};
