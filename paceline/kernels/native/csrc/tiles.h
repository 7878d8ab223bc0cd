// Products of a few rows and blocks of outputs that are summed in registers.
#pragma once

// Left to itself GCC unrolls these loops too late to see that the sums of a tile are registers, and moves them about.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

// How far ahead of the products a block's weights are fetched. The processor by itself looks no further than the end of
// a page, and less far the more rows there are to multiply before it sees the next weights; one row lets it see enough.
constexpr int64_t bytes_ahead(int rows) { return rows <= 2 ? 2048 : 4096; }

// Into the second cache: the first one can wait for too few lines at a time to keep the memory busy.
inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }

// Where a tile lies: blocks of weights and rows of activations, over the inputs [first, last).
template <class Kind>
struct Place {
    const Activations<Kind> &x;
    const char *weights;  // of the first block; the next ones follow it
    const Fp16 *scales;   // of the first block and group; NULL without groups
    int64_t row, first, last, group_size;

    int64_t block_bytes() const { return x.padded / Kind::step * Kind::step_bytes; }
    const typename Kind::Activation *activations(int64_t r) const { return x.values + (row + r) * x.stride; }
    typename Kind::Sum *spilled(int64_t r) const { return x.spilled + (row + r) * most_blocks; }

    // What the chunk of inputs before this one left.
    template <int R, int B>
    void begin(typename Kind::Sum (&sum)[R][B]) const {
        UNROLLED for (int r = 0; r < R; ++r)
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = zero<typename Kind::Sum>();
        if (first == 0) return;
        UNROLLED for (int r = 0; r < R; ++r)
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = spilled(r)[b];
    }
    template <int R, int B>
    void end(const typename Kind::Sum (&sum)[R][B]) const {
        UNROLLED for (int r = 0; r < R; ++r)
            UNROLLED for (int b = 0; b < B; ++b) spilled(r)[b] = sum[r][b];
    }

    Lanes scale(int64_t b, int64_t group) const { return load(scales + (b * x.groups + group) * width); }
    Ints offset(int64_t r, int64_t group) const { return broadcast(x.offsets[(row + r) * x.groups + group]); }

    // From this input on the weights to be fetched are no longer those of these blocks but of as many that follow them.
    int64_t turn(int64_t ahead) const {
        const int64_t input = x.padded - ahead / Kind::step_bytes * Kind::step;
        return input < first ? first : smaller(input, last);
    }
    // How many bytes behind the weights of input k those to be fetched lie.
    int64_t lead(int64_t blocks, int64_t k, int64_t ahead) const {
        return k < turn(ahead) ? ahead : ahead + (blocks - 1) * block_bytes();
    }
};

// How many rows and blocks a level has the registers for.
template <class Kind>
struct Shape {
    static constexpr int budget = Kind::grouped && register_budget > 1 ? register_budget / 2 : register_budget;
    static constexpr int most_rows = budget < 8 ? budget : 8;
    static constexpr int widest = budget < most_blocks ? budget : most_blocks;
};

template <class Kind, int R, int B>
void plain_tile(const Place<Kind> &at) {
    const int64_t block_bytes = at.block_bytes();
    const typename Kind::Activation *x[R];
    typename Kind::Sum sum[R][B];
    UNROLLED for (int r = 0; r < R; ++r) x[r] = at.activations(r);
    at.begin(sum);
    const char *weights = at.weights + at.first / Kind::step * Kind::step_bytes;
    const int64_t turn = at.turn(bytes_ahead(R));
    for (int64_t k = at.first; k < at.last;) {
        const int64_t end = k < turn ? turn : at.last;
        const char *next = weights + at.lead(B, k, bytes_ahead(R));
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
    at.end(sum);
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
    const int8_t *x[R];
    Lanes total[R][B];
    UNROLLED for (int r = 0; r < R; ++r) x[r] = at.activations(r);
    at.begin(total);
    const int64_t groups_ahead = bytes_ahead(R) / (at.group_size / Kind::step * Kind::step_bytes);
    for (int64_t k = at.first; k < at.last; k += at.group_size) {
        const int64_t group = k / at.group_size;
        Ints sum[R][B];
        UNROLLED for (int r = 0; r < R; ++r) {
            const Ints offset = at.offset(r, group);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = offset;
        }
        group_products<Kind>(at, x, k, k + at.group_size, at.lead(B, k, bytes_ahead(R)), sum);
        UNROLLED for (int b = 0; b < B; ++b) {
            const Lanes scale = at.scale(b, group);
            prefetch(at.scales + (b * at.x.groups + group + groups_ahead) * width);
            UNROLLED for (int r = 0; r < R; ++r) total[r][b] = fma(to_float(sum[r][b]), scale, total[r][b]);
        }
    }
    at.end(total);
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
