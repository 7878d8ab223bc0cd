// Packed linears whose rows do not see each other.
//
// Every output of a row is one chain of sums over the inputs in their order, for any number of rows and threads: tiles
// differ in how many rows and blocks of outputs they hold in registers, chunks of inputs in when the chain's sum rests
// in memory, and neither in the chain.
#pragma once

#include "kinds.h"

#include "activations.h"

#include "tiles.h"

// What turns a block's sums into its outputs.
template <class Kind>
struct Ending {
    Ending(const paceline_linear &, int64_t) {}
    Lanes operator()(const Activations<Kind> &, Lanes sum, int64_t) const { return sum; }
};

template <>
struct Ending<Int4Kind> {
    Ending(const paceline_linear &, int64_t) {}
    Lanes operator()(const Activations<Int4Kind> &x, Lanes sum, int64_t row) const {
        return sum * broadcast(x.scales[row]);
    }
};

template <>
struct Ending<Int8Kind> {
    Ending(const paceline_linear &a, int64_t output)
        : offset(broadcast((int32_t)activation_offset) * load(a.sums + output)),
          scale(load((const float *)a.scale + output)) {}
    Lanes operator()(const Activations<Int8Kind> &x, Ints sum, int64_t row) const {
        return to_float(sum - offset) * (broadcast(x.scales[row]) * scale);
    }
    Ints offset;
    Lanes scale;
};

template <class Kind>
void finish(const paceline_linear &a, const Activations<Kind> &x, int64_t first_row, int64_t rows, int64_t block,
            int64_t blocks) {
    for (int64_t i = 0; i < blocks; ++i) {
        const int64_t output = (block + i) * width;
        const Ending<Kind> ending(a, output);
        for (int64_t row = 0; row < rows; ++row) {
            Lanes y = ending(x, x.spilled[row * most_blocks + i], row);
            if (a.bias != nullptr) y = y + load(a.bias + output);
            store_as(a.out.dtype, address(a.out, first_row + row, output), y, a.out_features - output);
        }
    }
}

// Several tiles of rows take turns chunk by chunk, so that its weights are still in a near cache for the last of them.
constexpr int64_t chunk_bytes = 16384;  // of a block

template <class Kind, int B>
void multiply_blocks(const paceline_linear &a, const Activations<Kind> &x, int64_t rows, int64_t block) {
    constexpr int most = (int)smaller(Shape<Kind>::most_rows, Shape<Kind>::budget / B);
    const int64_t tiles = (rows + most - 1) / most;
    const int64_t chunk = tiles == 1 ? x.padded : chunk_bytes / Kind::step_bytes * Kind::step;
    Place<Kind> at{x, (const char *)a.weight, nullptr, 0, 0, 0, a.group_size};
    at.weights += block * at.block_bytes();
    if constexpr (Kind::grouped) at.scales = (const Fp16 *)a.scale + block * x.groups * width;
    for (at.first = 0; at.first < x.padded; at.first = at.last) {
        at.last = smaller(at.first + chunk, x.padded);
        for (int64_t i = 0; i < tiles; ++i) {
            at.row = rows * i / tiles;
            multiply_rows<Kind, most, B>(at, rows * (i + 1) / tiles - at.row);
        }
    }
}

// As many of the `left` blocks at once as the rows leave registers for; returns how many that was.
template <class Kind, int B = Shape<Kind>::widest>
int64_t multiply_some(const paceline_linear &a, const Activations<Kind> &x, int64_t rows, int64_t block, int64_t left) {
    if constexpr (B > 1)
        if (left < B || smaller(rows, Shape<Kind>::most_rows) * B > Shape<Kind>::budget)
            return multiply_some<Kind, B - 1>(a, x, rows, block, left);
    multiply_blocks<Kind, B>(a, x, rows, block);
    return B;
}

template <class Kind>
void linear(const paceline_linear &a, const Team &team) {
    Dealer dealer{(uintptr_t)team.scratch};
    const Activations<Kind> x = deal<Kind>(a, dealer, team.index, team.size);
    const int64_t blocks = rounded_up(a.out_features, width) / width;
    for (int64_t first_row = 0; first_row < a.rows; first_row += rows_at_once) {
        const int64_t rows = smaller(rows_at_once, a.rows - first_row);
        if (x.alone) {
            for (int64_t row = 0; row < rows; ++row) prepare(a, x, first_row + row, row);
        } else {
            if (first_row > 0) team.wait();
            for (int64_t row = team.first(rows); row < team.last(rows); ++row) prepare(a, x, first_row + row, row);
            team.wait();
        }
        for (int64_t block = team.first(blocks); block < team.last(blocks);) {
            const int64_t count = multiply_some(a, x, rows, block, team.last(blocks) - block);
            finish<Kind>(a, x, first_row, rows, block, count);
            block += count;
        }
    }
}

template <class Kind>
size_t scratch_of_linear(const paceline_linear &a, int64_t team_size) {
    Dealer dealer{0};
    deal<Kind>(a, dealer, 0, team_size);
    return (size_t)dealer.next;
}

inline void run_linear(const void *arguments, const Team &team) {
    const paceline_linear &a = *(const paceline_linear *)arguments;
    switch (a.kind) {
        case PACELINE_FP32: return linear<Fp32Kind>(a, team);
        case PACELINE_BF16: return linear<Bf16Kind>(a, team);
        case PACELINE_FP16: return linear<Fp16Kind>(a, team);
        case PACELINE_INT8: return linear<Int8Kind>(a, team);
        case PACELINE_INT4: return linear<Int4Kind>(a, team);
    }
}

inline size_t linear_scratch(const void *arguments, int64_t team_size) {
    const paceline_linear &a = *(const paceline_linear *)arguments;
    switch (a.kind) {
        case PACELINE_FP32: return scratch_of_linear<Fp32Kind>(a, team_size);
        case PACELINE_BF16: return scratch_of_linear<Bf16Kind>(a, team_size);
        case PACELINE_FP16: return scratch_of_linear<Fp16Kind>(a, team_size);
        case PACELINE_INT8: return scratch_of_linear<Int8Kind>(a, team_size);
        case PACELINE_INT4: return scratch_of_linear<Int4Kind>(a, team_size);
    }
    return 0;
}
