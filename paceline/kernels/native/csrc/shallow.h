// The threshold of top-p from the masses of likely tokens and a bound on all: most tokens of a large vocabulary are too far
// below the threshold for their exact masses to matter. Where they might, there is no answer, and nucleus.h has it.
#pragma once

constexpr int64_t fewest_blocks = 32;  // of a row for which an estimate pays
constexpr int64_t listed_share = 8;    // listing costs more than adding up if it is of more than one token in so many

// What one thread found in its blocks. The tokens are in its room, with their exact masses.
struct Shallow {
    double rest;    // sum of e^-depth over all other tokens, to `relative_doubt` and a unit of mass for each token
    int64_t count;  // of tokens within reach
};

constexpr double relative_doubt = 1e-6;  // more than what float32's exponentials and sums of four of them lose

// A depth that is likely to be a little below the threshold, and how many tokens are likely to be above it: from every
// block's best token, and all tokens of some blocks.
struct Limit {
    float depth;
    int64_t count;
};

inline Limit likely_limit(const Kept &row, double share) {
    constexpr int64_t every = 16, num_cells = 256;
    constexpr float cells_per_depth = (float)(num_cells - 1) / deepest;
    int64_t counts[num_cells] = {};
    float room[block_size];
    for (int64_t index = 0; index < row.logits.num_blocks(); ++index) {
        if (!row.has_mass(index)) continue;
        const bool all = index % every == 0;
        counts[(int64_t)((row.best - row.scale.of(row.maxima[index])) * cells_per_depth)] += all ? 1 - every : 1;
        if (!all) continue;
        const Depths depths(row.scale, row.logits.block(index, room), row.best, row.least);
        for (int64_t i = 0; i < block_size; ++i) counts[(int64_t)(depths.values[i] * cells_per_depth)] += every;
    }
    double masses[num_cells], total = 0;
    for (int64_t i = 0; i < num_cells; ++i) {
        masses[i] = (double)counts[i] * ::exp(-((double)i + 0.5) / cells_per_depth);
        total += masses[i];
    }
    double needed = total * (share + 0.3 * (1 - share));
    int64_t last = 0, count = counts[0];
    for (; last < num_cells - 2 && masses[last] < needed; count += counts[++last]) needed -= masses[last];
    return {(float)(last + 1) / cells_per_depth, count};
}

// Looks at all tokens of blocks [first, last), and lists those within reach.
inline Shallow listed(const Kept &row, int64_t first, int64_t last, const NucleusRoom &room) {
    double sums[width] = {};
    float space[block_size], rest[block_size], four[width];
    int64_t count = 0;
    const Lanes zero = broadcast(0.0f);
    for (int64_t index = first; index < last; ++index) {
        if (!row.has_mass(index)) continue;
        const Depths depths(row.scale, row.logits.block(index, space), row.best, row.least);
        Lanes e[4];
        for (int64_t i = 0; i < block_size; ++i)
            rest[i] = depths.values[i] > row.reach ? depths.values[i] : deepest;  // whose exponential is next to nothing
        for (int64_t i = 0; i < 4; ++i) e[i] = exp(zero - load(rest + i * width));
        store(four, (e[0] + e[1]) + (e[2] + e[3]));
        for (int64_t i = 0; i < width; ++i) sums[i] += (double)four[i];
        for (uint64_t bits = at_most(depths.values, row.reach); bits != 0; bits &= bits - 1)
            room.keys[count++] = ordered(depths.scores[__builtin_ctzll(bits)]);
    }
    for (int64_t i = 0; i < count; ++i) room.weights[i] = mass_of(row.best - from_ordered(room.keys[i]));
    for (int64_t i = 1; i < width; ++i) sums[0] += sums[i];
    return {sums[0], count};
}

// As `last_of_nucleus`, into `last`, of the tokens in the room and what `listed` says of all. False if that does not tell.
inline bool last_of_listed(const Kept &row, double share, const Shallow &all, const NucleusRoom &room, float &last) {
    int64_t mass = 0, kept = 0;
    for (int64_t i = 0; i < all.count; ++i) mass += room.weights[i];
    const double rest = all.rest * 0x1p40, total = (double)mass + rest;
    const double doubt = rest * relative_doubt + (double)row.logits.size;
    const int64_t least = larger(1, (int64_t)ceil((total - doubt) * share) - 1);
    const int64_t most = (int64_t)ceil((total + doubt) * share) + 1;
    if (mass < most) return false;
    memset(room.histogram, 0, num_buckets * sizeof(int64_t));
    for (int64_t i = 0; i < all.count; ++i)
        room.histogram[row.bucket_of(row.best - from_ordered(room.keys[i]))] += room.weights[i];
    int64_t needed = least;
    const int32_t bucket = bucket_that_reaches(room.histogram, needed);
    for (int64_t i = 0; i < all.count; ++i) {
        const bool inside = row.bucket_of(row.best - from_ordered(room.keys[i])) == bucket;
        room.keys[kept] = room.keys[i];
        room.weights[kept] = room.weights[i];
        kept += inside;
    }
    const Selected found = select_key(room.keys, room.weights, kept, needed);
    last = from_ordered(found.key);
    return found.needed + (most - least) <= found.weight;
}
