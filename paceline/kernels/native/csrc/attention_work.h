// How attention is cut into work: blocks of rows, their K/V heads, stretches of positions. None of it shows in a bit.
#pragma once

constexpr int64_t queries_per_block = 64;  // enough to use what is read of K/V again, few enough for a near cache

// Neighbouring rows of one request.
struct Block {
    int64_t request, first_row, rows, queries;  // queries: of one K/V head
    int64_t first, last;                        // positions that any of the rows sees
    int64_t shared_first, shared_last;          // whole tiles that all of them see, and where slots are positions
    Sight sights[queries_per_block];

    int64_t first_stretch() const { return first / stretch; }
    int64_t last_stretch() const { return rounded_up(last, stretch) / stretch; }
    int64_t num_stretches() const { return last_stretch() - first_stretch(); }
    // Of one K/V head up to a position: a cell that is read costs about as much as four queries take.
    int64_t cost(int64_t position) const { return (larger(first, smaller(position, last)) - first) * (queries + 4); }
};

inline int64_t rows_per_block(const paceline_attention &a) {
    return larger(1, queries_per_block / (a.heads / a.kv_heads));
}

inline void fill_block(const paceline_attention &a, int64_t request, int64_t row, int64_t rows, Block &block) {
    block.request = request;
    block.first_row = row;
    block.rows = rows;
    block.queries = rows * (a.heads / a.kv_heads);
    block.last = block.shared_first = 0;
    block.first = block.shared_last = INT64_MAX;
    for (int64_t i = 0; i < rows; ++i) {
        const Sight sight = sight_of(*a.visibility, a.visibility->context[request], row + i);
        block.sights[i] = sight;
        block.first = smaller(block.first, sight.first);
        block.last = larger(block.last, sight.last);
        block.shared_first = larger(block.shared_first, rounded_up(sight.first, width));
        block.shared_last = smaller(block.shared_last, sight.in_order / width * width);
    }
    block.first = smaller(block.first, block.last);
}

template <class Function>
void for_each_block(const paceline_attention &a, Function function) {
    const int64_t most = rows_per_block(a);
    Block block;
    for (int64_t request = 0; request < a.visibility->requests; ++request) {
        const int64_t last = a.visibility->row_start[request + 1];
        for (int64_t row = a.visibility->row_start[request]; row < last; row += most) {
            fill_block(a, request, row, smaller(most, last - row), block);
            function(block);
        }
    }
}

// One block and one K/V head, and which threads make its stretches.
struct Part {
    const Block &block;
    int64_t kv_head;
    int64_t before, total;  // cost of the parts before it, and of all
    int64_t team_size;
    int64_t stored;  // partials that the parts before it store, which are cut between threads

    int64_t owner(int64_t number) const {
        const int64_t middle = (block.cost(number * stretch) + block.cost((number + 1) * stretch)) / 2;
        return (before + middle) * team_size / total;
    }
    int64_t first_owner() const { return owner(block.first_stretch()); }
    int64_t last_owner() const { return owner(block.last_stretch() - 1); }
    bool is_cut() const { return first_owner() != last_owner(); }
};

// Calls function(part) for all parts in order, the same for every thread.
template <class Function>
void for_each_part(const paceline_attention &a, int64_t team_size, Function function) {
    int64_t total = 0, before = 0, stored = 0;
    for_each_block(a, [&](const Block &block) { total += block.cost(block.last) * a.kv_heads; });
    for_each_block(a, [&](const Block &block) {
        if (block.first == block.last) return;
        for (int64_t kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
            const Part part{block, kv_head, before, total, team_size, stored};
            function(part);
            before += block.cost(block.last);
            if (part.is_cut()) stored += block.queries * block.num_stretches();
        }
    });
}

// What a thread keeps while it works, and what all of them store.
struct Room {
    float *q;           // [queries, padded channels]
    float *scores;      // [queries, stretch]
    float *partials;    // [queries, partial]
    float *joined;      // [queries, partial]
    int64_t *places;    // [stretch]
    float *stored;      // the partials of parts that are cut, of all threads
};

inline Room deal_room(const paceline_attention &a, Dealer &dealer, int64_t index, int64_t team_size) {
    const int64_t queries = rows_per_block(a) * (a.heads / a.kv_heads), size = partial_size(a.head_dim);
    Room found{};
    for (int64_t thread = 0; thread < team_size; ++thread) {
        Room room{};
        room.q = dealer.take<float>(queries * padded_channels(a.head_dim));
        room.scores = dealer.take<float>(queries * stretch);
        room.partials = dealer.take<float>(queries * size);
        room.joined = dealer.take<float>(queries * size);
        room.places = dealer.take<int64_t>(stretch);
        if (thread == index) found = room;
    }
    found.stored = dealer.take<float>(0);
    return found;
}

inline size_t attention_scratch(const void *arguments, int64_t team_size) {
    const paceline_attention &a = *(const paceline_attention *)arguments;
    Dealer dealer{0};
    deal_room(a, dealer, 0, team_size);
    // Threads meet in at most one part fewer than there are of them.
    const int64_t cut = (team_size - 1) * rows_per_block(a) * (a.heads / a.kv_heads);
    int64_t stored = smaller(cut, a.visibility->rows * a.heads) * (a.visibility->most_visible / stretch + 1);
    if (a.visibility->most_visible == 0) {
        stored = 0;
        for_each_part(a, team_size, [&](const Part &part) {
            if (part.is_cut()) stored = part.stored + part.block.queries * part.block.num_stretches();
        });
    }
    dealer.take<float>(stored * partial_size(a.head_dim));
    return (size_t)dealer.next;
}
