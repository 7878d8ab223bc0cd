// Packed linears whose rows do not see each other.
//
// Every output of a row is one chain of sums over the inputs in their order, for any number of rows and threads: tiles
// differ in how many rows and blocks of outputs they hold in registers, chunks of inputs in when the chain's sum rests
// in memory, and neither in the chain.
#pragma once

#include "kinds.h"

#include "activations.h"

#include "tiles.h"

constexpr int64_t chunk_bytes = 16384;  // of a block

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
          scale(load(a.scale + output)) {}
    Lanes operator()(const Activations<Int8Kind> &x, Ints sum, int64_t row) const {
        return to_float(sum - offset) * (broadcast(x.scales[row]) * scale);
    }
    Ints offset;
    Lanes scale;
};

// The outputs of blocks [block, block + blocks), all of one panel, whose sums rest in memory.
template <class Kind>
void finish(const paceline_linear &a, const Activations<Kind> &x, int64_t first_row, int64_t rows, int64_t block,
            int64_t blocks) {
    for (int64_t i = block; i < block + blocks; ++i) {
        const int64_t output = i * width;
        const Ending<Kind> ending(a, output);
        for (int64_t row = 0; row < rows; ++row) {
            Lanes y = ending(x, x.spilled[row * panel_blocks + i % panel_blocks], row);
            if (a.bias != nullptr) y = y + load(a.bias + output);
            store_as(a.out.dtype, address(a.out, first_row + row, output), y, a.out_features - output);
        }
    }
}

// How many blocks and rows of a tile a level has the registers for.
template <class Kind>
constexpr int64_t budget = Kind::grouped && register_budget > 1 ? register_budget / 2 : register_budget;
// More rows share the unpacking of nibbles; other weights rather share what is loaded of the rows.
template <class Kind>
constexpr int64_t tallest = Kind::grouped ? 8 : 6;
template <class Kind>
constexpr int64_t widest(int64_t rows) {
    return larger(1, smaller(panel_blocks, budget<Kind> / smaller(rows, tallest<Kind>)));
}
template <class Kind, int B>
constexpr int64_t most_rows = smaller(tallest<Kind>, budget<Kind> / B);

// `blocks` blocks over a chunk of inputs, B at once as long as there are so many, then fewer. Returns how many tiles
// that takes; without `place` nothing is computed.
template <class Kind, int B = panel_blocks>
int64_t multiply_chunk(Place<Kind> *place, int64_t rows, int64_t blocks, int64_t tiles, int64_t before = 0) {
    if constexpr (B <= budget<Kind>)
        if (B <= widest<Kind>(rows)) {
            const int64_t parts = (rows + most_rows<Kind, B> - 1) / most_rows<Kind, B>;
            for (; blocks >= B; blocks -= B)
                for (int64_t i = 0; i < parts; ++i, ++before) {
                    if (place == nullptr) continue;
                    place->row = rows * i / parts;
                    place->set_pace(before, tiles);
                    multiply_rows<Kind, most_rows<Kind, B>, B>(*place, rows * (i + 1) / parts - place->row);
                    if (i + 1 == parts) place->block += B;
                }
        }
    if constexpr (B > 1)
        if (blocks > 0) return multiply_chunk<Kind, B / 2>(place, rows, blocks, tiles, before);
    return before;
}

// Blocks [block, block + blocks), all of one panel. Several tiles take turns chunk by chunk, so that its weights are
// still in a near cache for the last of them.
template <class Kind>
void multiply(const paceline_linear &a, const Activations<Kind> &x, int64_t rows, int64_t block, int64_t blocks) {
    const int64_t tiles = multiply_chunk<Kind>(nullptr, rows, blocks, 0);
    // Chunks of one size: each is fetched while the one before is multiplied.
    constexpr int64_t most = chunk_bytes / Kind::step_bytes * Kind::step;
    const int64_t chunks = tiles == 1 ? 1 : (x.padded + most - 1) / most;
    const int64_t chunk = rounded_up((x.padded + chunks - 1) / chunks, Kind::grouped ? a.group_size : Kind::step);
    const char *panel = (const char *)a.weight + block / panel_blocks * panel_bytes<Kind>(a);
    Place<Kind> place{x, panel, 0, 0, 0, 0, a.group_size, nullptr, 0};
    for (place.first = 0; place.first < x.padded; place.first = place.last) {
        place.last = smaller(place.first + chunk, x.padded);
        place.block = block % panel_blocks;
        multiply_chunk(&place, rows, blocks, tiles);
    }
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
            const int64_t end = smaller(team.last(blocks), rounded_up(block + 1, panel_blocks));
            multiply(a, x, rows, block, end - block);
            finish<Kind>(a, x, first_row, rows, block, end - block);
            block = end;
        }
    }
}

template <class Kind>
size_t scratch_of_rows(paceline_linear a, int64_t rows, int64_t team_size) {
    Dealer dealer{0};
    a.rows = rows;
    deal<Kind>(a, dealer, 0, team_size);
    return (size_t)dealer.next;
}

// An op before may yet lower the number of rows, and fewer of them can take more: each thread then prepares all.
template <class Kind>
size_t scratch_of_linear(const paceline_linear &a, int64_t team_size) {
    const int64_t alone = smaller(a.rows, most_alone / padded_inputs(a, Kind::step));
    const size_t few = scratch_of_rows<Kind>(a, alone, team_size), all = scratch_of_rows<Kind>(a, a.rows, team_size);
    return few > all ? few : all;
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
