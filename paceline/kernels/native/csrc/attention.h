// Paged attention whose rows do not see each other.
//
// All that decides a row's bits goes by position: a score is sixteen chains over the channels, whose sums are added
// halves to halves; a stretch of positions has one maximum, sixteen chains of weights, and a chain of values for every
// channel; stretches are joined in ascending order. Where K/V lie, which rows share a pass over them, and which thread
// makes it, does not enter.
#pragma once

#include "visibility.h"

#include "cells.h"

#include "attention_work.h"

template <int number>
struct Constant {
    static constexpr int value = number;
};

// Calls function(Q, first query) with Q a constant of at most four, until there are `count`.
template <class Function>
inline void by_four(int64_t count, Function function) {
    int64_t first = 0;
    for (; count - first >= 4; first += 4) function(Constant<4>(), first);
    switch (count - first) {
        case 3: return function(Constant<3>(), first);
        case 2: return function(Constant<2>(), first);
        case 1: return function(Constant<1>(), first);
    }
}

// Ones for the positions of a tile that a row sees, zeros for the others.
inline Lanes seen_lanes(const Sight &sight, int64_t tile) {
    float seen[width];
    for (int64_t i = 0; i < width; ++i) seen[i] = sight.first <= tile + i && tile + i < sight.last ? 1.0f : 0.0f;
    return load(seen);
}

// Turns a query's scores of the tiles [first, last) into weights; fills in their maximum and the weights' sum.
inline void weigh(const paceline_attention &a, const Sight &sight, int64_t first, int64_t last, float *scores,
                  float *partial) {
    const Lanes scale = broadcast((float)a.scale), softcap = broadcast((float)a.softcap);
    Lanes most = broadcast(-INFINITY), sum = broadcast(0.0f);
    for (int64_t tile = first; tile < last; tile += width) {
        float *const at = scores + tile % stretch;
        Lanes x = load(at) * scale;
        if (a.softcap > 0) x = softcap * tanh(x / softcap);
        store(at, x);
        most = max(x, most);
    }
    const float maximum = max_of(most);
    for (int64_t tile = first; tile < last; tile += width) {
        float *const at = scores + tile % stretch;
        Lanes weight = exp(load(at) - broadcast(maximum));
        if (tile < sight.first || tile + width > sight.last) weight = weight * seen_lanes(sight, tile);
        store(at, weight);
        sum = sum + weight;
    }
    partial[padded_channels(a.head_dim)] = maximum;
    partial[padded_channels(a.head_dim) + 1] = sum_of(sum);
}

// One part, over one stretch after the other.
template <class Cells>
class Pass {
  public:
    Pass(const paceline_attention &a, const Part &part, const Room &room)
        : a_(a), block_(part.block), room_(room), keys_{(const typename Cells::Element *)a.pool.k, a.head_dim},
          values_{(const typename Cells::Element *)a.pool.v, a.head_dim},
          places_{*a.visibility, a.pool, a.kv_heads, part.kv_head, block_.request}, group_(a.heads / a.kv_heads),
          padded_(padded_channels(a.head_dim)), size_(partial_size(a.head_dim)) {
        for (int64_t query = 0; query < block_.queries; ++query) widen(part.kv_head * group_, query);
    }

    // Fills in the partials of the queries that see anything of the stretch.
    void attend(int64_t number, float *partials) {
        first_ = number * stretch;
        last_ = smaller(first_ + stretch, rounded_up(block_.last, width));
        shared_first_ = larger(first_, block_.shared_first);
        shared_last_ = smaller(last_, block_.shared_last);
        if (shared_first_ >= shared_last_) shared_first_ = shared_last_ = last_;
        places_.of_slots(shared_first_, shared_last_, room_.places);
        score_all();
        for (int64_t query = 0; query < block_.queries; ++query) {
            const Sight &sight = block_.sights[query / group_];
            float *const partial = partials + query * size_;
            if (first_tile(sight) >= last_tile(sight)) continue;
            weigh(a_, sight, first_tile(sight), last_tile(sight), room_.scores + query * stretch, partial);
            memset(partial, 0, padded_ * sizeof(float));
        }
        sum_all(partials);
    }

  private:
    void widen(int64_t first_head, int64_t query) {
        const int64_t row = block_.first_row + query / group_, head = first_head + query % group_;
        for (int64_t i = 0; i < a_.head_dim; i += width)
            store(room_.q + query * padded_ + i,
                  load_as(a_.q.dtype, address(a_.q, row, head * a_.head_dim + i), a_.head_dim - i));
    }

    int64_t first_tile(const Sight &sight) const { return larger(first_, sight.first / width * width); }
    int64_t last_tile(const Sight &sight) const { return smaller(last_, rounded_up(sight.last, width)); }

    // Tiles [first, last) of one row: K/V are where the row has them.
    void score_own(int64_t row, int64_t first, int64_t last) {
        const Sight &sight = block_.sights[row];
        const int64_t query = row * group_;
        for (int64_t tile = first; tile < last; tile += width) {
            const int64_t from = larger(tile, sight.first), to = smaller(tile + width, sight.last);
            int64_t places[width];
            places_.of_row(block_.first_row + row, sight, from, to, places + (from - tile));
            // What the row does not see is never read; one that it does see stands in, and weighs nothing.
            for (int64_t i = 0; i < width; ++i)
                if (tile + i < from || tile + i >= to) places[i] = places[from - tile];
            by_four(group_, [&](auto q, int64_t i) {
                score_queries<q.value>(keys_, room_.q + (query + i) * padded_, places, width,
                                       room_.scores + (query + i) * stretch + (tile - first_));
            });
        }
    }

    void score_all() {
        for (int64_t from = shared_first_; from < shared_last_; from += panel)
            by_four(block_.queries, [&](auto q, int64_t i) {
                score_queries<q.value>(keys_, room_.q + i * padded_, room_.places + (from - shared_first_),
                                       smaller(panel, shared_last_ - from),
                                       room_.scores + i * stretch + (from - first_));
            });
        for (int64_t row = 0; row < block_.rows; ++row) {
            const Sight &sight = block_.sights[row];
            score_own(row, first_tile(sight), smaller(last_tile(sight), shared_first_));
            score_own(row, larger(first_tile(sight), shared_last_), last_tile(sight));
        }
    }

    void sum_own(int64_t row, int64_t first, int64_t last, float *partials) {
        const Sight &sight = block_.sights[row];
        const int64_t query = row * group_;
        for (int64_t tile = first; tile < last; tile += width) {
            const int64_t from = larger(tile, sight.first), to = smaller(tile + width, sight.last);
            int64_t places[width];
            places_.of_row(block_.first_row + row, sight, from, to, places);
            by_four(group_, [&](auto q, int64_t i) {
                add_values<q.value>(values_, room_.scores + (query + i) * stretch + (from - first_), places, to - from,
                                    partials + (query + i) * size_);
            });
        }
    }

    // For each row in ascending order of positions: its own tiles in front, those of all, its own behind.
    void sum_all(float *partials) {
        for (int64_t row = 0; row < block_.rows; ++row) {
            const Sight &sight = block_.sights[row];
            sum_own(row, first_tile(sight), smaller(last_tile(sight), shared_first_), partials);
        }
        for (int64_t from = shared_first_; from < shared_last_; from += panel)
            by_four(block_.queries, [&](auto q, int64_t i) {
                add_values<q.value>(values_, room_.scores + i * stretch + (from - first_),
                                    room_.places + (from - shared_first_), smaller(panel, shared_last_ - from),
                                    partials + i * size_);
            });
        for (int64_t row = 0; row < block_.rows; ++row) {
            const Sight &sight = block_.sights[row];
            sum_own(row, larger(first_tile(sight), shared_last_), last_tile(sight), partials);
        }
    }

    const paceline_attention &a_;
    const Block &block_;
    const Room &room_;
    const Cells keys_, values_;
    const Places places_;
    const int64_t group_, padded_, size_;
    int64_t first_ = 0, last_ = 0;                // positions of the stretch
    int64_t shared_first_ = 0, shared_last_ = 0;  // those that all rows see at the same places
};

inline bool sees(const Sight &sight, int64_t number) {
    return sight.first < smaller(sight.last, (number + 1) * stretch) && sight.last > number * stretch;
}

// Takes the next stretch that a query sees into what is joined already.
inline void join(const paceline_attention &a, const Sight &sight, int64_t number, const float *partial, float *joined) {
    const int64_t padded = padded_channels(a.head_dim);
    if (!sees(sight, number)) return;
    if (number == sight.first / stretch) {
        memcpy(joined, partial, (padded + 2) * sizeof(float));
        return;
    }
    const Lanes old = broadcast(joined[padded]), fresh = broadcast(partial[padded]), most = max(old, fresh);
    const Lanes keep = exp(old - most), take = exp(fresh - most);
    for (int64_t i = 0; i < padded; i += width)
        store(joined + i, fma(load(partial + i), take, load(joined + i) * keep));
    float both[width];
    store(both, fma(broadcast(partial[padded + 1]), take, broadcast(joined[padded + 1]) * keep));
    joined[padded + 1] = both[0];
    store(both, most);
    joined[padded] = both[0];
}

inline void finish(const paceline_attention &a, const Part &part, int64_t query, const float *joined) {
    const int64_t group = a.heads / a.kv_heads, head = part.kv_head * group + query % group;
    const Sight &sight = part.block.sights[query / group];
    if (sight.first >= sight.last) return;
    const Lanes sum = broadcast(joined[padded_channels(a.head_dim) + 1]);
    for (int64_t i = 0; i < a.head_dim; i += width)
        store_as(a.out.dtype, address(a.out, part.block.first_row + query / group, head * a.head_dim + i),
                 load(joined + i) / sum, a.head_dim - i);
}

inline float *stored_partial(const paceline_attention &a, const Part &part, const Room &room, int64_t number) {
    const int64_t before = part.stored + (number - part.block.first_stretch()) * part.block.queries;
    return room.stored + before * partial_size(a.head_dim);
}

template <class Cells>
void attend_part(const paceline_attention &a, const Part &part, const Room &room, int64_t thread) {
    const Block &block = part.block;
    const int64_t group = a.heads / a.kv_heads, size = partial_size(a.head_dim);
    if (thread < part.first_owner() || thread > part.last_owner()) return;
    Pass<Cells> pass(a, part, room);
    for (int64_t number = block.first_stretch(); number < block.last_stretch(); ++number) {
        if (part.owner(number) != thread) continue;
        float *const partials = part.is_cut() ? stored_partial(a, part, room, number) : room.partials;
        pass.attend(number, partials);
        for (int64_t query = 0; query < block.queries && !part.is_cut(); ++query)
            join(a, block.sights[query / group], number, partials + query * size, room.joined + query * size);
    }
    for (int64_t query = 0; query < block.queries && !part.is_cut(); ++query)
        finish(a, part, query, room.joined + query * size);
}

// What several threads have made of one part; its queries are shared among all.
inline void join_part(const paceline_attention &a, const Part &part, const Room &room, const Team &team) {
    const Block &block = part.block;
    const int64_t group = a.heads / a.kv_heads, size = partial_size(a.head_dim);
    for (int64_t query = team.first(block.queries); query < team.last(block.queries); ++query) {
        for (int64_t number = block.first_stretch(); number < block.last_stretch(); ++number)
            join(a, block.sights[query / group], number, stored_partial(a, part, room, number) + query * size,
                 room.joined);
        finish(a, part, query, room.joined);
    }
}

template <class Cells>
void attention(const paceline_attention &a, const Team &team) {
    Dealer dealer{(uintptr_t)team.scratch};
    const Room room = deal_room(a, dealer, team.index, team.size);
    bool cut = false;
    for_each_part(a, team.size, [&](const Part &part) {
        attend_part<Cells>(a, part, room, team.index);
        cut = cut || part.is_cut();
    });
    if (!cut) return;
    team.wait();
    for_each_part(a, team.size, [&](const Part &part) {
        if (part.is_cut()) join_part(a, part, room, team);
    });
}

inline void run_attention(const void *arguments, const Team &team) {
    const paceline_attention &a = *(const paceline_attention *)arguments;
    switch (a.pool.dtype) {
        case PACELINE_FLOAT32: return attention<PlainCells<float>>(a, team);
        case PACELINE_BFLOAT16: return attention<PlainCells<Bf16>>(a, team);
        case PACELINE_FLOAT16: return attention<PlainCells<Fp16>>(a, team);
    }
}
