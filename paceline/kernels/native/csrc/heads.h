// What lies between the product of a row and attention: heads are normed, rotated, and written where they are read.
#pragma once

constexpr int64_t most_head_dim = 256;

// One head in float32; what lies behind its last channel may be read and written.
struct Head {
    alignas(64) float channels[most_head_dim + width];
};

inline void load_head(const paceline_heads &a, int64_t row, int64_t head, Head &to) {
    for (int64_t i = 0; i < a.head_dim; i += width)
        store(to.channels + i, load_as(a.qkv.dtype, address(a.qkv, row, head * a.head_dim + i), a.head_dim - i));
}

inline void store_head(int64_t dtype, char *p, int64_t head_dim, const Head &from) {
    for (int64_t i = 0; i < head_dim; i += width)
        store_as(dtype, p + i * size_of(dtype), load(from.channels + i), head_dim - i);
}

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

inline void write_cell(const paceline_heads &a, void *cells, int64_t row, int64_t kv_head, const Head &head) {
    const int64_t cell = a.cells[row], page_size = a.pool.page_size;
    const int64_t place = place_of(a.pool, a.kv_heads, kv_head, cell / page_size, cell % page_size);
    store_head(a.pool.dtype, (char *)cells + place * a.head_dim * size_of(a.pool.dtype), a.head_dim, head);
}

inline void run_heads(const void *arguments, const Team &team) {
    const paceline_heads &a = *(const paceline_heads *)arguments;
    const int64_t all = a.heads + 2 * a.kv_heads, count = a.rows * all;
    for (int64_t index = team.first(count); index < team.last(count); ++index) {
        const int64_t row = index / all, number = index % all, key = number - a.heads, value = key - a.kv_heads;
        Head head;
        load_head(a, row, number, head);
        if (value >= 0) {
            write_cell(a, a.pool.v, row, value, head);
            continue;
        }
        const float *weight = key >= 0 ? a.k_norm : a.q_norm;
        if (weight != nullptr) norm_head(a, weight, head);
        rotate_head(a, row, head);
        if (key >= 0) {
            write_cell(a, a.pool.k, row, key, head);
        } else {
            store_head(a.q.dtype, address(a.q, row, number * a.head_dim), a.head_dim, head);
        }
    }
}
