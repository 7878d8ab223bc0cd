// Products of a few rows and blocks of outputs that are summed in registers.
#pragma once

// Left to itself GCC unrolls these loops too late to see that the sums of a tile are registers, and moves them about.
#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

// Into the second cache: the first one can wait for too few lines at a time to keep the memory busy.
inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }

struct Fetched {
    const char *next, *due;
};

// Where a tile lies: blocks of a panel of weights and rows of activations, over the inputs [first, last).
template <class Kind>
struct Place {
    const Activations<Kind> &x;
    const char *panel;
    int64_t block;  // the first one, of the panel's
    int64_t row, first, last, group_size;
    const char *next;  // what is fetched meanwhile, for the next chunk: so many bytes a step
    int64_t pace;

    static constexpr int64_t step_bytes = panel_blocks * Kind::step_bytes;
    const char *step(int64_t k) const {
        if constexpr (Kind::grouped) return panel + k / group_size * group_bytes(group_size);
        return panel + k / Kind::step * step_bytes;
    }
    const char *weights() const { return step(first) + block * Kind::step_bytes; }
    const typename Kind::Activation *activations(int64_t r) const { return x.values + (row + r) * x.stride; }
    typename Kind::Sum *spilled(int64_t r) const { return x.spilled + (row + r) * panel_blocks + block; }

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

    Ints offset(int64_t r, int64_t group) const { return broadcast(x.offsets[(row + r) * x.groups + group]); }

    template <int R>
    void fetch(Fetched &fetched) const {
        if constexpr (R > 1)
            for (fetched.due += pace; fetched.next < fetched.due; fetched.next += 64) prefetch(fetched.next);
    }

    // Several tiles share a chunk, of which only the first one waits for memory; so each of the first ones fetches a
    // part of the next chunk. A tile alone just reads on, and what the processor fetches by itself is enough.
    void set_pace(int64_t tile, int64_t tiles) {
        const int64_t shares = tiles < 4 ? 2 : 4;
        const int64_t steps = (last - first) / Kind::step;
        pace = tiles > 1 && tile < shares ? (step(last) - step(first)) / (steps * shares) : 0;
        next = step(last) + steps * pace * tile;
    }
};

template <class Kind, int R, int B>
void plain_tile(const Place<Kind> &at) {
    const typename Kind::Activation *x[R];
    typename Kind::Sum sum[R][B];
    UNROLLED for (int r = 0; r < R; ++r) x[r] = at.activations(r);
    at.begin(sum);
    const char *weights = at.weights();
    Fetched fetched{at.next, at.next};
    for (int64_t k = at.first; k < at.last; k += Kind::step, weights += at.step_bytes) {
        typename Kind::Weight w[B];
        UNROLLED for (int b = 0; b < B; ++b) w[b] = Kind::weight(weights + b * Kind::step_bytes);
        at.template fetch<R>(fetched);
        UNROLLED for (int r = 0; r < R; ++r) {
            const auto value = Kind::activation(x[r] + k);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = Kind::accumulate(sum[r][b], value, w[b]);
        }
    }
    at.end(sum);
}

// The exact products of one group, added to `sum`.
template <class Kind, int R, int B>
inline void group_products(const Place<Kind> &at, const int8_t *const (&x)[R], const char *weights, int64_t first,
                           Fetched &fetched, Ints (&sum)[R][B]) {
    for (int64_t k = first; k < first + at.group_size; k += Kind::step, weights += at.step_bytes) {
        Quads low[B], high[B];
        UNROLLED for (int b = 0; b < B; ++b) {
            const Quads both = load_quads(weights + b * Kind::step_bytes);
            low[b] = low_nibbles(both);
            high[b] = high_nibbles(both);
        }
        at.template fetch<R>(fetched);
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
    Fetched fetched{at.next, at.next};
    const int64_t group_size = at.group_size, bytes = group_bytes(group_size);
    const char *weights = at.weights();
    // Scales lie behind the weights of all blocks of the panel.
    const char *scales = at.step(at.first + group_size) + (at.block - panel_blocks) * width * (int64_t)sizeof(Fp16);
    int64_t group = at.first / group_size;
    for (int64_t k = at.first; k < at.last; k += group_size, ++group, weights += bytes, scales += bytes) {
        Ints sum[R][B];
        UNROLLED for (int r = 0; r < R; ++r) {
            const Ints offset = at.offset(r, group);
            UNROLLED for (int b = 0; b < B; ++b) sum[r][b] = offset;
        }
        group_products<Kind>(at, x, weights, k, fetched, sum);
        UNROLLED for (int b = 0; b < B; ++b) {
            const Lanes scale = load((const Fp16 *)scales + b * width);
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
