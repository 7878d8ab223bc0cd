// The rotary position embedding of heads whose angles were looked up.
#pragma once

inline Lanes rotary_angle(const paceline_matrix &angles, int64_t row, int64_t i, int64_t count) {
    return load_as(angles.dtype, address(angles, row, i), count);
}

struct Turned {
    Lanes left, right;
};

// Channels from `i` on and from `i + half` on, by the angles of a row, `count` of each.
inline Turned turn(Lanes left, Lanes right, const paceline_matrix &cosine, const paceline_matrix &sine, int64_t row,
                   int64_t i, int64_t half, int64_t count) {
    return {fma(right, rotary_angle(sine, row, i, count), left * rotary_angle(cosine, row, i, count)),
            fma(left, rotary_angle(sine, row, i + half, count), right * rotary_angle(cosine, row, i + half, count))};
}

// Channels `i` and `i + half` of one head, `count` of each.
inline void rotate_pairs(const paceline_rotary &a, int64_t row, int64_t head, int64_t i) {
    const int64_t half = a.rotary_dim / 2, count = smaller(width, half - i);
    const int64_t from = head * a.head_stride + i, to = head * a.out_head_stride + i;
    const Lanes left = load_as(a.x.dtype, address(a.x, row, from), count);
    const Lanes right = load_as(a.x.dtype, address(a.x, row, from + half), count);
    const Turned turned = turn(left, right, a.cosine, a.sine, row, i, half, count);
    store_as(a.out.dtype, address(a.out, row, to), turned.left, count);
    store_as(a.out.dtype, address(a.out, row, to + half), turned.right, count);
}

inline void copy_channels(const paceline_rotary &a, int64_t row, int64_t head) {
    for (int64_t i = a.rotary_dim; i < a.head_dim; i += width) {
        const Lanes x = load_as(a.x.dtype, address(a.x, row, head * a.head_stride + i), a.head_dim - i);
        store_as(a.out.dtype, address(a.out, row, head * a.out_head_stride + i), x, a.head_dim - i);
    }
}

inline void run_rotary(const void *arguments, const Team &team) {
    const paceline_rotary &a = *(const paceline_rotary *)arguments;
    const int64_t count = a.rows * a.heads;
    for (int64_t index = team.first(count); index < team.last(count); ++index) {
        const int64_t row = index / a.heads, head = index % a.heads;
        for (int64_t i = 0; i < a.rotary_dim / 2; i += width) rotate_pairs(a, row, head, i);
        copy_channels(a, row, head);
    }
}
