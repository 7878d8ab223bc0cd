// RMSNorm and LayerNorm, with the residual added first: sums in one order, one rounding at the end.
#pragma once

// x, or what replaces the residual: their sum, as the residual's type keeps it.
inline Lanes norm_input(const paceline_norm &a, int64_t row, int64_t i) {
    const int64_t count = a.size - i;
    const Lanes x = load_as(a.x.dtype, address(a.x, row, i), count);
    if (a.residual.data == nullptr) return x;
    char *residual = address(a.residual, row, i);
    store_as(a.residual.dtype, residual, load_as(a.residual.dtype, residual, count) + x, count);
    return load_as(a.residual.dtype, residual, count);
}

// The second look at the same numbers: the residual now holds the sum.
inline Lanes norm_again(const paceline_norm &a, int64_t row, int64_t i) {
    const paceline_matrix &from = a.residual.data == nullptr ? a.x : a.residual;
    return load_as(from.dtype, address(from, row, i), a.size - i);
}

inline void rms_norm_row(const paceline_norm &a, int64_t row) {
    Lanes squares = broadcast(0.0f);
    for (int64_t i = 0; i < a.size; i += width) {
        const Lanes x = norm_input(a, row, i);
        squares = fma(x, x, squares);
    }
    const Lanes scale = broadcast(1.0f / sqrtf(sum_of(squares) / (float)a.size + (float)a.epsilon));
    for (int64_t i = 0; i < a.size; i += width) {
        const Lanes y = norm_again(a, row, i) * scale * load(a.weight + i, a.size - i);
        store_as(a.out.dtype, address(a.out, row, i), y, a.size - i);
    }
}

inline float mean_of_row(const paceline_norm &a, int64_t row) {
    Lanes sum = broadcast(0.0f);
    for (int64_t i = 0; i < a.size; i += width) sum = sum + norm_input(a, row, i);
    return sum_of(sum) / (float)a.size;
}

inline float variance_of_row(const paceline_norm &a, int64_t row, Lanes mean) {
    Lanes squares = broadcast(0.0f);
    for (int64_t i = 0; i < a.size; i += width) {
        const Lanes x = first_lanes(norm_again(a, row, i) - mean, smaller(width, a.size - i));
        squares = fma(x, x, squares);
    }
    return sum_of(squares) / (float)a.size;
}

inline void layer_norm_row(const paceline_norm &a, int64_t row) {
    const Lanes mean = broadcast(mean_of_row(a, row));
    const Lanes scale = broadcast(1.0f / sqrtf(variance_of_row(a, row, mean) + (float)a.epsilon));
    for (int64_t i = 0; i < a.size; i += width) {
        Lanes y = (norm_again(a, row, i) - mean) * scale * load(a.weight + i, a.size - i);
        if (a.bias != nullptr) y = y + load(a.bias + i, a.size - i);
        store_as(a.out.dtype, address(a.out, row, i), y, a.size - i);
    }
}

template <void (*norm_row)(const paceline_norm &, int64_t)>
void run_norm(const void *arguments, const Team &team) {
    const paceline_norm &a = *(const paceline_norm *)arguments;
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); ++row) norm_row(a, row);
}

constexpr auto run_rms_norm = run_norm<rms_norm_row>;
constexpr auto run_layer_norm = run_norm<layer_norm_row>;
