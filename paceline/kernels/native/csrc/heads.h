// What lies between the product of a row and attention: heads are normed, rotated, and written where they are read.
#pragma once

// One head in float32; `width` channels behind its last one may be read and written, as the second of two halves starts
// anywhere. Up to so many channels the head lies on the stack, which the compiler knows to be nobody else's.
constexpr int64_t most_near = 256;

struct NearHead {
    alignas(64) float channels[most_near + width];
};

struct FarHead {
    float *channels;
};

inline FarHead deal_head(const paceline_heads &a, Dealer &dealer, int64_t index, int64_t team_size) {
    FarHead found{};
    for (int64_t thread = 0; thread < team_size; ++thread) {
        const FarHead own{dealer.take<float>(rounded_up(a.head_dim, width) + width)};
        if (thread == index) found = own;
    }
    return found;
}

inline size_t heads_scratch(const void *arguments, int64_t team_size) {
    const paceline_heads &a = *(const paceline_heads *)arguments;
    if (a.head_dim <= most_near) return 0;
    Dealer dealer{0};
    deal_head(a, dealer, 0, team_size);
    return (size_t)dealer.next;
}

template <class Head>
inline void load_head(const paceline_heads &a, int64_t row, int64_t head, Head &to) {
    for (int64_t i = 0; i < a.head_dim; i += width)
        store(to.channels + i, load_as(a.qkv.dtype, address(a.qkv, row, head * a.head_dim + i), a.head_dim - i));
}

template <class Head>
inline void store_head(int64_t dtype, char *p, int64_t head_dim, const Head &from) {
    for (int64_t i = 0; i < head_dim; i += width)
        store_as(dtype, p + i * size_of(dtype), load(from.channels + i), head_dim - i);
}

template <class Head>
inline void norm_head(const paceline_heads &a, const float *weight, Head &head) {
    Lanes squares = broadcast(0.0f);
    for (int64_t i = 0; i < a.head_dim; i += width) {
        const Lanes x = load(head.channels + i);
        squares = fma(x, x, squares);
    }
    const Lanes scale = broadcast(1.0f / sqrtf(sum_of(squares) / (float)a.head_dim + (float)a.epsilon));
    for (int64_t i = 0; i < a.head_dim; i += width)
        store(head.channels + i, load(head.channels + i) * scale * load(weight + i, a.head_dim - i));
}

template <class Head>
inline void rotate_head(const paceline_heads &a, int64_t row, Head &head) {
    const int64_t half = a.rotary_dim / 2, angles = a.angle_rows == nullptr ? row : a.angle_rows[row];
    for (int64_t i = 0; i < half; i += width) {
        const int64_t count = smaller(width, half - i);
        float *left = head.channels + i, *right = left + half;
        const Turned turned = turn(load(left), load(right), a.cosine, a.sine, angles, i, half, count);
        store_as(PACELINE_FLOAT32, left, turned.left, count);
        store_as(PACELINE_FLOAT32, right, turned.right, count);
    }
}

// Where a K/V head's channels of a cell start, in heads: `head_dim` elements each.
inline int64_t place_of(const paceline_pool &pool, int64_t kv_heads, int64_t kv_head, int64_t page, int64_t offset) {
    return (page * kv_heads + kv_head) * pool.page_size + offset;
}

template <class Head>
inline void write_cell(const paceline_heads &a, void *cells, int64_t row, int64_t kv_head, const Head &head) {
    const int64_t cell = a.cells[row], page_size = a.pool.page_size;
    const int64_t place = place_of(a.pool, a.kv_heads, kv_head, cell / page_size, cell % page_size);
    store_head(a.pool.dtype, (char *)cells + place * a.head_dim * size_of(a.pool.dtype), a.head_dim, head);
}

// The head of a row with this number, of query, key and value heads in this order.
template <class Head>
inline void turn_head(const paceline_heads &a, int64_t row, int64_t number, Head &head) {
    const int64_t key = number - a.heads, value = key - a.kv_heads;
    load_head(a, row, number, head);
    if (value >= 0) return write_cell(a, a.pool.v, row, value, head);
    const float *weight = key >= 0 ? a.k_norm : a.q_norm;
    if (weight != nullptr) norm_head(a, weight, head);
    rotate_head(a, row, head);
    if (key >= 0) return write_cell(a, a.pool.k, row, key, head);
    store_head(a.q.dtype, address(a.q, row, number * a.head_dim), a.head_dim, head);
}

inline void run_heads(const void *arguments, const Team &team) {
    const paceline_heads &a = *(const paceline_heads *)arguments;
    const int64_t all = a.heads + 2 * a.kv_heads, count = a.rows * all;
    const int64_t first = team.first(count), last = team.last(count);
    if (a.head_dim <= most_near) {
        for (int64_t index = first; index < last; ++index) {
            NearHead head;
            turn_head(a, index / all, index % all, head);
        }
    } else {
        Dealer dealer{(uintptr_t)team.scratch};
        FarHead head = deal_head(a, dealer, team.index, team.size);
        for (int64_t index = first; index < last; ++index) turn_head(a, index / all, index % all, head);
    }
}
