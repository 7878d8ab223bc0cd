// Products of a few rows and blocks of outputs that are summed in registers.
#pragma once

// Left to itself GCC unrolls these loops too late to see that the sums of a tile are registers, and moves them about.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

// Where a tile lies: from `row` and the panel's `block` on, over the inputs [first, last).
template <class Kind>
struct Place {
    const paceline_linear &a;
    const Activations<Kind> &x;
    int64_t panel, row, block, first, last;

    const typename Kind::Activation *activations(int64_t r) const { return x.values + (row + r) * x.padded; }
    const char *weights(int64_t b) const {
        return (const char *)a.weight + (panel + block + b) * (x.padded / Kind::step) * Kind::step_bytes;
    }
    typename Kind::Sum *spilled(int64_t r) const { return x.spilled + (row + r) * panel_blocks + block; }
    Lanes scale(int64_t b, int64_t group) const {
        return load((const Fp16 *)a.scale + ((panel + block + b) * x.groups + group) * width);
    }
    int32_t sum(int64_t r, int64_t group) const { return x.sums[(row + r) * x.groups + group]; }
};

// How many rows and blocks a level has the registers for; a group's integers need as many again.
template <class Kind>
struct Shape {
    static constexpr int budget = Kind::grouped && register_budget > 1 ? register_budget / 2 : register_budget;
    static constexpr int most_rows = budget < 8 ? budget : 8;
    static constexpr int blocks(int rows) { return budget >= 4 * rows ? 4 : budget >= 2 * rows ? 2 : 1; }
};

template <class Kind, int R, int B>
void plain_tile(const Place<Kind> &at) {
    const typename Kind::Activation *x[R];
    const char *weights[B];
    typename Kind::Sum sum[R][B];
    UNROLLED for (int b = 0; b < B; ++b) weights[b] = at.weights(b);
    UNROLLED for (int r = 0; r < R; ++r) {
        x[r] = at.activations(r);
        UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = at.spilled(r)[b];
    }
    for (int64_t k = at.first; k < at.last; k += Kind::step) {
        typename Kind::Weight w[B];
        UNROLLED for (int b = 0; b < B; ++b) w[b] = Kind::weight(weights[b] + k / Kind::step * Kind::step_bytes);
        UNROLLED for (int r = 0; r < R; ++r) {
            const auto value = Kind::activation(x[r] + k);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = Kind::accumulate(sum[r][b], value, w[b]);
        }
    }
    UNROLLED for (int r = 0; r < R; ++r)
        UNROLLED for (int b = 0; b < B; ++b) at.spilled(r)[b] = sum[r][b];
}

// The exact products of one group: nibbles stand for numbers 8 less, which the sum of the activations makes good.
template <class Kind, int R, int B>
inline void group_products(const Place<Kind> &at, const int8_t *const (&x)[R], int64_t first, int64_t last,
                           Ints (&sum)[R][B]) {
    const char *weights[B];
    UNROLLED for (int b = 0; b < B; ++b) weights[b] = at.weights(b);
    UNROLLED for (int r = 0; r < R; ++r)
        UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = zero<Ints>();
    for (int64_t k = first; k < last; k += Kind::step) {
        Quads low[B], high[B];
        UNROLLED for (int b = 0; b < B; ++b) {
            const Quads both = load_quads(weights[b] + k / Kind::step * Kind::step_bytes);
            low[b] = low_nibbles(both);
            high[b] = high_nibbles(both);
        }
        UNROLLED for (int r = 0; r < R; ++r) {
            const Quads value = broadcast_quad(x[r] + k), next = broadcast_quad(x[r] + k + 4);
            UNROLLED for (int b = 0; b < B; ++b)
                sum[r][b] = dot_nibbles(dot_nibbles(sum[r][b], value, low[b]), next, high[b]);
        }
    }
}

template <class Kind, int R, int B>
void grouped_tile(const Place<Kind> &at) {
    const int64_t size = at.a.group_size;
    const int8_t *x[R];
    Lanes total[R][B];
    UNROLLED for (int r = 0; r < R; ++r) {
        x[r] = at.activations(r);
        UNROLLED for (int b = 0; b < B; ++b) total[r][b] = at.spilled(r)[b];
    }
    for (int64_t group = at.first / size; group < at.last / size; ++group) {
        Ints sum[R][B];
        group_products<Kind>(at, x, group * size, (group + 1) * size, sum);
        Lanes scale[B];
        UNROLLED for (int b = 0; b < B; ++b) scale[b] = at.scale(b, group);
        UNROLLED for (int r = 0; r < R; ++r) {
            const Ints offset = broadcast(8 * at.sum(r, group));
            UNROLLED for (int b = 0; b < B; ++b) total[r][b] = fma(to_float(sum[r][b] - offset), scale[b], total[r][b]);
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

// `blocks` blocks of the first `rows` rows, at most R of them.
template <class Kind, int R = Shape<Kind>::most_rows>
void multiply_rows(Place<Kind> at, int64_t rows, int64_t blocks) {
    if constexpr (R > 1)
        if (rows < R) return multiply_rows<Kind, R - 1>(at, rows, blocks);
    constexpr int wide = Shape<Kind>::blocks(R);
    while (at.block < blocks) {
        if (blocks - at.block >= wide) {
            tile<Kind, R, wide>(at);
            at.block += wide;
        } else {
            tile<Kind, R, 1>(at);
            at.block += 1;
        }
    }
}
