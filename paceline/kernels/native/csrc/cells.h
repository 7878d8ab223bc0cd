// Products of a few queries with K/V cells. How cells become numbers is a type of cells alone:
//   cell(place)             what finds the channels of one cell
//   channels(cell, i)       sixteen channels in float32, from i on
//   channels(cell, i, n)    n of them, then zeros
#pragma once

// The first `count` lanes; the others are zero.
template <class Element>
inline Lanes load_some(const Element *p, int64_t count) {
    Element whole[width] = {};
    memcpy(whole, p, count * sizeof(Element));
    return load(whole);
}

template <class T>
struct PlainCells {
    using Element = T;
    using Cell = const T *;
    const T *data;
    int64_t head_dim;

    Cell cell(int64_t place) const { return data + place * head_dim; }
    static Lanes channels(Cell at, int64_t channel) { return load(at + channel); }
    static Lanes channels(Cell at, int64_t channel, int64_t count) { return load_some(at + channel, count); }
};

constexpr int64_t stretch = 256;  // positions whose scores lie side by side and have one maximum
constexpr int64_t panel = 64;     // positions whose K or V stay in the nearest cache while the queries go by

inline int64_t padded_channels(int64_t head_dim) { return rounded_up(head_dim, width); }

// A query's share of one stretch: sums of values [padded channels], the maximum, the sum of the weights.
inline int64_t partial_size(int64_t head_dim) { return padded_channels(head_dim) + width; }

constexpr int power_of_two_below(int count) { return count >= 8 ? 8 : count >= 4 ? 4 : count >= 2 ? 2 : 1; }

template <int Q, int P, bool whole, class Cells>
inline void add_products(const Cells &keys, const typename Cells::Cell (&cell)[P], const float *q, int64_t channel,
                         Lanes (&sum)[Q][P]) {
    const int64_t padded = padded_channels(keys.head_dim);
    Lanes x[Q];
    UNROLLED for (int i = 0; i < Q; ++i) x[i] = load(q + i * padded + channel);
    UNROLLED for (int p = 0; p < P; ++p) {
        const Lanes k = whole ? keys.channels(cell[p], channel) : keys.channels(cell[p], channel, keys.head_dim - channel);
        UNROLLED for (int i = 0; i < Q; ++i) sum[i][p] = fma(x[i], k, sum[i][p]);
    }
}

// Sums whose lanes are still to be added, of Q queries and P positions; `apart` lies between those of two queries.
template <int Q, int P, class Cells>
inline void products(const Cells &keys, const float *q, const int64_t *places, Lanes *sums, int apart) {
    typename Cells::Cell cell[P];
    Lanes sum[Q][P];
    UNROLLED for (int p = 0; p < P; ++p) {
        cell[p] = keys.cell(places[p]);
        UNROLLED for (int i = 0; i < Q; ++i) sum[i][p] = broadcast(0.0f);
    }
    int64_t channel = 0;
    for (; channel + width <= keys.head_dim; channel += width)
        add_products<Q, P, true>(keys, cell, q, channel, sum);
    if (channel < keys.head_dim) add_products<Q, P, false>(keys, cell, q, channel, sum);
    UNROLLED for (int i = 0; i < Q; ++i)
        UNROLLED for (int p = 0; p < P; ++p) sums[i * apart + p] = sum[i][p];
}

// Scores of Q rows of q and `count` positions, a multiple of 16.
template <int Q, class Cells>
void score_queries(const Cells &keys, const float *q, const int64_t *places, int64_t count, float *scores) {
    constexpr int at_once = Q == 1 ? 16 : Q == 2 ? 8 : 4, held = power_of_two_below(register_budget / Q);
    constexpr int step = held < at_once ? held : at_once;
    for (int64_t first = 0; first < count; first += at_once) {
        Lanes sums[width];
        UNROLLED for (int i = Q * at_once; i < width; ++i) sums[i] = broadcast(0.0f);
        UNROLLED for (int i = 0; i < at_once; i += step)
            products<Q, step>(keys, q, places + first + i, sums + i, at_once);
        float each[width];
        store(each, sums_of(sums));
        UNROLLED for (int i = 0; i < Q; ++i)
            memcpy(scores + i * stretch + first, each + i * at_once, at_once * sizeof(float));
    }
}

// Adds to C blocks of channels of Q partials, in the order of the positions.
template <int Q, int C, bool whole, class Cells>
inline void add_channels(const Cells &values, const float *weights, const int64_t *places, int64_t count,
                         int64_t channel, float *partials) {
    const int64_t size = partial_size(values.head_dim);
    Lanes sum[Q][C];
    UNROLLED for (int i = 0; i < Q; ++i)
        UNROLLED for (int c = 0; c < C; ++c) sum[i][c] = load(partials + i * size + channel + c * width);
    for (int64_t p = 0; p < count; ++p) {
        const typename Cells::Cell cell = values.cell(places[p]);
        Lanes v[C];
        UNROLLED for (int c = 0; c < C; ++c)
            v[c] = whole ? values.channels(cell, channel + c * width)
                         : values.channels(cell, channel, values.head_dim - channel);
        UNROLLED for (int i = 0; i < Q; ++i) {
            const Lanes weight = broadcast(weights[i * stretch + p]);
            UNROLLED for (int c = 0; c < C; ++c) sum[i][c] = fma(weight, v[c], sum[i][c]);
        }
    }
    UNROLLED for (int i = 0; i < Q; ++i)
        UNROLLED for (int c = 0; c < C; ++c) store(partials + i * size + channel + c * width, sum[i][c]);
}

template <int Q, int C, class Cells>
void add_blocks(const Cells &values, const float *weights, const int64_t *places, int64_t count, int64_t channel,
                float *partials) {
    for (; channel + C * width <= values.head_dim; channel += C * width)
        add_channels<Q, C, true>(values, weights, places, count, channel, partials);
    if (channel == values.head_dim) return;
    if constexpr (C > 1) {
        add_blocks<Q, C / 2>(values, weights, places, count, channel, partials);
    } else {
        add_channels<Q, 1, false>(values, weights, places, count, channel, partials);
    }
}

// Adds `count` positions, weighted, to the partials of Q queries.
template <int Q, class Cells>
void add_values(const Cells &values, const float *weights, const int64_t *places, int64_t count, float *partials) {
    add_blocks<Q, power_of_two_below(register_budget / Q)>(values, weights, places, count, 0, partials);
}
