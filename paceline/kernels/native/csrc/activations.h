// How rows of x become what the products of a kind take.
#pragma once

constexpr int64_t rows_at_once = 128;  // enough products for each weight that is read, few enough for a cache

// Activations of so few numbers cost every thread less to prepare for itself than to wait for the others.
constexpr int64_t most_alone = 16384;

// Activations of up to `rows_at_once` rows, in the scratch of the team; of each thread where it is `alone`.
template <class Kind>
struct Activations {
    typename Kind::Activation *values;  // [rows][stride]
    float *scales;                      // [rows]
    int32_t *offsets;                   // [rows][groups], int4's: nibbles stand for numbers 8 less
    float *wide;                        // [padded], of this thread alone
    typename Kind::Sum *spilled;        // [rows][panel_blocks], of this thread alone
    int64_t padded, groups;
    int64_t stride;  // not of 2^n bytes, so that rows do not compete for the same lines of a cache
    bool alone;
};

// Blocks of 16 outputs whose weights lie side by side, step by step: what a thread reads is one stream, and yet there
// are sums enough that do not wait for each other.
constexpr int panel_blocks = 4;

// Of int4: the weights of a group and, behind them, their scales.
constexpr int64_t group_bytes(int64_t group_size) {
    return panel_blocks * (group_size / 8 * 64 + width * (int64_t)sizeof(Fp16));
}

inline int64_t padded_inputs(const paceline_linear &a, int64_t step) {
    return rounded_up(a.in_features, a.kind == PACELINE_INT4 ? a.group_size : step);
}

inline int64_t num_groups(const paceline_linear &a) {
    return a.kind == PACELINE_INT4 ? padded_inputs(a, 1) / a.group_size : 1;
}

template <class Kind>
int64_t panel_bytes(const paceline_linear &a) {
    if (Kind::grouped) return num_groups(a) * group_bytes(a.group_size);
    return padded_inputs(a, Kind::step) / Kind::step * panel_blocks * Kind::step_bytes;
}

template <class Kind>
void deal_prepared(Activations<Kind> &to, Dealer &dealer, int64_t rows) {
    to.values = dealer.take<typename Kind::Activation>(rows * to.stride);
    to.scales = dealer.take<float>(rows);
    to.offsets = dealer.take<int32_t>(rows * to.groups);
}

template <class Kind>
Activations<Kind> deal(const paceline_linear &a, Dealer &dealer, int64_t index, int64_t team_size) {
    Activations<Kind> found;
    const int64_t rows = smaller(a.rows, rows_at_once);
    found.padded = padded_inputs(a, Kind::step);
    found.stride = found.padded + 64 / (int64_t)sizeof(typename Kind::Activation);
    found.groups = num_groups(a);
    found.alone = rows * found.padded <= most_alone;
    if (!found.alone) deal_prepared(found, dealer, rows);
    Activations<Kind> own = found;
    for (int64_t thread = 0; thread < team_size; ++thread) {
        own.wide = dealer.take<float>(found.padded + width);
        own.spilled = dealer.take<typename Kind::Sum>(rows * panel_blocks);
        if (found.alone) deal_prepared(own, dealer, rows);
        if (thread == index) found = own;
    }
    return found;
}

inline void widen(const paceline_linear &a, int64_t row, float *wide, int64_t padded) {
    for (int64_t i = 0; i < a.in_features; i += width)
        store(wide + i, load_as(a.x.dtype, address(a.x, row, i), a.in_features - i));
    for (int64_t i = a.in_features; i < padded; ++i) wide[i] = 0.0f;
}

// The scale of a row that is quantised to [-127, 127]; NaN if the row has a number that is not finite.
inline float quantised_scale(const float *wide, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t magnitude = load_bytes<uint32_t>(wide + i) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= 0x7f800000) return NAN;
    const float most = from_bits(largest);
    return most < 1e-30f ? 0.0f : most / 127.0f;  // below, the reciprocal would overflow
}

inline void quantise(const float *wide, int64_t count, float scale, int offset, int8_t *values) {
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float x = scale > 0.0f ? wide[i] : 0.0f;
        const float shifted = x * inverse + 12582912.0f;  // the nearest integer is in the low bits
        values[i] = (int8_t)(uint8_t)(to_bits(shifted) - 0x4b400000u + (uint32_t)offset);
    }
}

template <class FloatKind>
void prepare(const paceline_linear &a, const Activations<FloatKind> &to, int64_t row, int64_t index) {
    widen(a, row, to.wide, to.padded);
    memcpy(to.values + index * to.stride, to.wide, to.padded * sizeof(float));
}

inline void prepare(const paceline_linear &a, const Activations<Bf16Kind> &to, int64_t row, int64_t index) {
    widen(a, row, to.wide, to.padded);
    for (int64_t i = 0; i < to.padded; i += width)
        store_as(PACELINE_BFLOAT16, to.values + index * to.stride + i, load(to.wide + i), to.padded - i);
}

inline void prepare(const paceline_linear &a, const Activations<Int8Kind> &to, int64_t row, int64_t index) {
    widen(a, row, to.wide, to.padded);
    to.scales[index] = quantised_scale(to.wide, to.padded);
    quantise(to.wide, to.padded, to.scales[index], activation_offset, to.values + index * to.stride);
}

inline void prepare(const paceline_linear &a, const Activations<Int4Kind> &to, int64_t row, int64_t index) {
    int8_t *values = to.values + index * to.stride;
    widen(a, row, to.wide, to.padded);
    to.scales[index] = quantised_scale(to.wide, to.padded);
    quantise(to.wide, to.padded, to.scales[index], 0, values);
    for (int64_t group = 0; group < to.groups; ++group) {
        int32_t sum = 0;
        for (int64_t i = group * a.group_size; i < (group + 1) * a.group_size; ++i) sum += values[i];
        to.offsets[index * to.groups + group] = -8 * sum;
    }
}
