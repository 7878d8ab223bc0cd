// Products of a few rows and blocks of outputs that are summed in registers.
#pragma once

// Left to itself GCC unrolls these loops too late to see that the sums of a tile are registers, and moves them about.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

#ifndef AHEAD
#define AHEAD 4096
#endif
#ifndef HINT
#define HINT 2
#endif
// Bytes of weights that are on their way while others are multiplied; the processor by itself looks ahead no further
// than a page, and not at all while it is busy with many rows.
constexpr int64_t bytes_ahead = AHEAD;

inline void prefetch(const char *p) { __builtin_prefetch(p, 0, HINT); }

// Where a tile lies: blocks of weights and rows of activations, over the inputs [first, last).
template <class Kind>
struct Place {
    const Activations<Kind> &x;
    const char *weights;   // of the first block; the next ones follow it
    const Fp16 *scales;    // of the first block and group
    int64_t row, first, last, group_size;

    int64_t block_bytes() const { return x.padded / Kind::step * Kind::step_bytes; }
    const typename Kind::Activation *activations(int64_t r) const { return x.values + (row + r) * x.stride; }
    typename Kind::Sum *spilled(int64_t r) const { return x.spilled + (row + r) * most_blocks; }
    Lanes scale(int64_t b, int64_t group) const { return load(scales + (b * x.groups + group) * width); }
    Ints offset(int64_t r, int64_t group) const { return broadcast(x.offsets[(row + r) * x.groups + group]); }

    // Where the `blocks` blocks' weights are read next, `ahead` bytes in each: behind the end of a block in those that
    // follow. Relative to what is read at the same time.
    int64_t lead(int64_t blocks, int64_t ahead, bool behind) const {
        return behind ? ahead + (blocks - 1) * block_bytes() : ahead;
    }
    // The input from which on the weights to be fetched lie behind the blocks' end.
    int64_t turn(int64_t ahead) const {
        const int64_t inputs = x.padded - ahead / Kind::step_bytes * Kind::step;
        return inputs < first ? first : smaller(inputs, last);
    }
};

// How many rows and blocks a level has the registers for.
template <class Kind>
struct Shape {
    static constexpr int budget = Kind::grouped && register_budget > 1 ? register_budget / 2 : register_budget;
    static constexpr int most_rows = budget < 8 ? budget : 8;
    static constexpr int blocks(int rows) { return budget >= most_blocks * rows ? most_blocks : budget / rows; }
};

template <class Kind, int R, int B>
void plain_tile(const Place<Kind> &at) {
    constexpr int64_t ahead = bytes_ahead / Kind::step_bytes * Kind::step_bytes;
    const int64_t block_bytes = at.block_bytes();
    const typename Kind::Activation *x[R];
    typename Kind::Sum sum[R][B];
    UNROLLED for (int r = 0; r < R; ++r) {
        x[r] = at.activations(r);
        UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = at.spilled(r)[b];
    }
    const char *weights = at.weights + at.first / Kind::step * Kind::step_bytes;
    const int64_t turn = at.turn(ahead);
    for (int64_t k = at.first; k < at.last;) {
        const int64_t end = k < turn ? turn : at.last;
        const char *next = weights + at.lead(B, ahead, k >= turn);
        for (; k < end; k += Kind::step, weights += Kind::step_bytes, next += Kind::step_bytes) {
            typename Kind::Weight w[B];
            UNROLLED for (int b = 0; b < B; ++b) {
                w[b] = Kind::weight(weights + b * block_bytes);
                prefetch(next + b * block_bytes);
            }
            UNROLLED for (int r = 0; r < R; ++r) {
                const auto value = Kind::activation(x[r] + k);
                UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = Kind::accumulate(sum[r][b], value, w[b]);
            }
        }
    }
    UNROLLED for (int r = 0; r < R; ++r)
        UNROLLED for (int b = 0; b < B; ++b) at.spilled(r)[b] = sum[r][b];
}

// The exact products of one group, added to `sum`.
template <class Kind, int R, int B>
inline void group_products(const Place<Kind> &at, const int8_t *const (&x)[R], int64_t first, int64_t last,
                           int64_t lead, Ints (&sum)[R][B]) {
    const int64_t block_bytes = at.block_bytes();
    const char *weights = at.weights + first / Kind::step * Kind::step_bytes;
    for (int64_t k = first; k < last; k += Kind::step, weights += Kind::step_bytes) {
        Quads low[B], high[B];
        UNROLLED for (int b = 0; b < B; ++b) {
            const Quads both = load_quads(weights + b * block_bytes);
            prefetch(weights + lead + b * block_bytes);
            low[b] = low_nibbles(both);
            high[b] = high_nibbles(both);
        }
        UNROLLED for (int r = 0; r < R; ++r) {
            const Quads value = broadcast_quad(x[r] + k), next = broadcast_quad(x[r] + k + 4);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = dot_nibbles(sum[r][b], value, low[b]);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = dot_nibbles(sum[r][b], next, high[b]);
        }
    }
}

template <class Kind, int R, int B>
void grouped_tile(const Place<Kind> &at) {
    constexpr int64_t ahead = bytes_ahead / Kind::step_bytes * Kind::step_bytes;
    const int8_t *x[R];
    Lanes total[R][B];
    UNROLLED for (int r = 0; r < R; ++r) {
        x[r] = at.activations(r);
        UNROLLED for (int b = 0; b < B; ++b) total[r][b] = at.spilled(r)[b];
    }
    const int64_t turn = at.turn(ahead), groups_ahead = ahead / (at.group_size / Kind::step * Kind::step_bytes) + 2;
    for (int64_t k = at.first; k < at.last; k += at.group_size) {
        const int64_t group = k / at.group_size;
        Ints sum[R][B];
        UNROLLED for (int r = 0; r < R; ++r) {
            const Ints offset = at.offset(r, group);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = offset;
        }
        group_products<Kind>(at, x, k, k + at.group_size, at.lead(B, ahead, k >= turn), sum);
        UNROLLED for (int b = 0; b < B; ++b) {
            const Lanes scale = at.scale(b, group);
            prefetch((const char *)(at.scales + (b * at.x.groups + group + groups_ahead) * width));
            UNROLLED for (int r = 0; r < R; ++r) total[r][b] = fma(to_float(sum[r][b]), scale, total[r][b]);
        }
    }
    UNROLLED for (int r = 0; r < R; ++r)
        UNROLLED for (int b = 0; b < B; ++b) at.spilled(r)[b] = total[r][b];
}

template <class Kind, int R, int B>
inline void tile(const Place<Kind> &at) {
    if constexpr (Kind::grouped) {
        grouped_tile<Kind, R, B>(at);
    } else {
        plain_tile<Kind, R, B>(at);
    }
}

// `rows` rows of B blocks, at most R of them.
template <class Kind, int R, int B>
void multiply_rows(const Place<Kind> &at, int64_t rows) {
    if constexpr (R > 1)
        if (rows < R) return multiply_rows<Kind, R - 1, B>(at, rows);
    tile<Kind, R, B>(at);
}
