// The threshold of top-p from the masses of all tokens: a histogram over depth, then digits.
#pragma once

// Adds the masses of all tokens of blocks [first, last) to the histogram.
inline void add_masses(const Kept &row, int64_t first, int64_t last, int64_t *histogram) {
    float room[block_size];
    int32_t buckets[block_size];
    int64_t masses[block_size];
    for (int64_t index = first; index < last; ++index) {
        if (!row.has_mass(index)) continue;
        const Depths depths(row.scale, row.logits.block(index, room), row.best, row.least);
        row.buckets_of(depths, buckets);
        for (int64_t i = 0; i < block_size; ++i) masses[i] = mass_of(depths.values[i]);
        for (int64_t i = 0; i < block_size; ++i) histogram[buckets[i]] += masses[i];
    }
}

// Keys and weights of the block's tokens in the bucket, behind the first `count` that there are.
inline int64_t collect(const Depths &depths, const int32_t *buckets, int32_t bucket, const NucleusRoom &room,
                       int64_t count) {
    int any = 0;
    for (int64_t i = 0; i < block_size; ++i) any |= buckets[i] == bucket;
    if (!any) return count;
    for (int64_t i = 0; i < block_size; ++i) {
        if (buckets[i] != bucket) continue;
        room.keys[count] = ordered(depths.scores[i]);
        room.weights[count] = mass_of(depths.values[i]);
        count += room.weights[count] > 0;
    }
    return count;
}

// The bucket in which the histogram reaches `needed`, of which the buckets before it are taken off.
inline int32_t bucket_that_reaches(const int64_t *histogram, int64_t &needed) {
    int32_t bucket = 0;
    for (; histogram[bucket] < needed; ++bucket) needed -= histogram[bucket];
    return bucket;
}

// The score of the last token of the smallest set of likeliest tokens that holds `share` of the mass of the histogram,
// to which every block has been added.
inline float last_of_nucleus(const Kept &row, double share, const NucleusRoom &room) {
    float space[block_size];
    int32_t buckets[block_size];
    int64_t total = 0, count = 0;
    for (int64_t i = 0; i < num_buckets; ++i) total += room.histogram[i];
    int64_t needed = smaller((int64_t)ceil((double)total * share), total);
    const int32_t bucket = bucket_that_reaches(room.histogram, needed);
    for (int64_t index = 0; index < row.logits.num_blocks(); ++index) {
        const float maximum = row.scale.of(row.maxima[index]);
        if (maximum < row.least || row.bucket_of(row.best - maximum) > bucket) continue;
        const Depths depths(row.scale, row.logits.block(index, space), row.best, row.least);
        row.buckets_of(depths, buckets);
        count = collect(depths, buckets, bucket, room, count);
    }
    return from_ordered(select_key(room.keys, room.weights, count, needed).key);
}
