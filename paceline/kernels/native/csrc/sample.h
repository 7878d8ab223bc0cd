// Rows of logits become tokens: the best one, or the best sum of score and noise among those that truncation leaves.
//
// Everything that decides is exact (maxima, integers, float32 operations on one token at a time), so a row's token
// depends neither on the other rows, nor on threads, nor on the level.
#pragma once

struct Drawn {
    float sum;
    int64_t token;

    void take(float other_sum, int64_t other_token) {
        if (other_sum > sum || (other_sum == sum && other_token < token)) *this = {other_sum, other_token};
    }
};

struct SampledRow {
    int64_t number;  // in the call
    LogitRow logits;
    float *maxima;      // of its blocks
    float *raw_maxima;  // of the logits before controls changed them; NULL if none did
    Scale scale;
    float best, least;  // scores; those below the least are not kept
    bool drawn;         // the token is chosen with noise
    bool by_mass;       // top-p may yet raise the least
    NoiseKey key;
    Drawn found;

    Kept kept(float reach) const { return {logits, maxima, scale, best, least, reach}; }
};

struct SampleRoom {
    uint32_t *keys;       // [team][blocks][block_size]
    int64_t *weights;     // [team][blocks][block_size]
    int64_t *histograms;  // [team][num_buckets]
    Shallow *shallow;     // [team]
    SampledRow *rows;     // those in work, shared by a team
    Drawn *partial;       // [team][rows in work]
    float *maxima;        // [rows in work][2][blocks]
    int32_t *patch_of;    // [rows in work][blocks]
    float *patches;       // [rows in work][most_patches][block_size]
    int64_t blocks, most_patches;

    NucleusRoom of_thread(int64_t index) const {
        const int64_t first = index * blocks * block_size;
        return {keys + first, weights + first, histograms + index * num_buckets};
    }
};

// Threads share rows where there are fewer; else each takes its own, one after the other.
inline int64_t rows_in_work(const paceline_sample &a, int64_t team_size) { return smaller(a.rows, 2 * team_size); }

inline int64_t num_edits(const paceline_sample &a, int64_t row) {
    return a.edit_start == nullptr ? 0 : a.edit_start[row + 1] - a.edit_start[row];
}

inline SampleRoom deal(const paceline_sample &a, Dealer &dealer, int64_t team_size) {
    SampleRoom room;
    const int64_t rows = rows_in_work(a, team_size);
    room.blocks = LogitRow{&a.logits, 0, a.size}.num_blocks();
    room.most_patches = 0;
    for (int64_t row = 0; row < a.rows; ++row)
        room.most_patches = larger(room.most_patches, smaller(num_edits(a, row), room.blocks));
    room.rows = dealer.take<SampledRow>(rows);
    room.partial = dealer.take<Drawn>(rows * team_size);
    room.maxima = dealer.take<float>(rows * 2 * room.blocks);
    room.patch_of = dealer.take<int32_t>(room.most_patches > 0 ? rows * room.blocks : 0);
    room.patches = dealer.take<float>(rows * room.most_patches * block_size);
    room.histograms = dealer.take<int64_t>(team_size * num_buckets);
    room.shallow = dealer.take<Shallow>(team_size);
    room.keys = dealer.take<uint32_t>(team_size * room.blocks * block_size);
    room.weights = dealer.take<int64_t>(team_size * room.blocks * block_size);
    return room;
}

inline SampledRow sampled_row(const paceline_sample &a, int64_t number, float *maxima, int64_t blocks) {
    const int64_t copy = a.copy == nullptr ? -1 : a.copy[number];
    SampledRow found{};
    found.number = number;
    found.logits = copy < 0 ? LogitRow{&a.logits, number, a.size} : LogitRow{&a.copies, copy, a.size};
    if (a.allowed != nullptr) found.logits.allowed = a.allowed[number];
    const bool changed = copy >= 0 || found.logits.allowed != nullptr || num_edits(a, number) > 0;
    found.maxima = maxima;
    found.raw_maxima = changed ? maxima + blocks : nullptr;
    return found;
}

// Lowest token of the row's best logits.
inline int64_t first_best(const SampledRow &row, float best) {
    float room[block_size];
    int64_t index = 0;
    while (row.maxima[index] != best) ++index;
    const float *x = row.logits.block(index, room);
    int64_t i = 0;
    while (x[i] != best) ++i;
    return index * block_size + i;
}

inline float noisy_score(const SampledRow &row, float logit, int64_t token) {
    uint32_t words[words_at_once];
    noise_words(row.key, (uint32_t)(token / 4), words);
    return row.scale.of(logit) + gumbel(words[token % 4]);
}

// Temperature, min-p and top-k, in this order: the least score that all of them keep.
inline float least_kept(const paceline_sample &a, int32_t seat, const SampledRow &row, uint32_t *keys) {
    float least = -INFINITY;
    if (a.min_p[seat] > 0) least = row.best + (float)a.min_p_margin[seat];
    if (a.top_k[seat] > 0 && a.top_k[seat] < a.size) {
        const float last = row.scale.of(kth_largest(row.logits, row.maxima, a.top_k[seat], keys));
        least = last > least ? last : least;
    }
    return least;
}

// What is known of a row once the maxima of its logits are: its token, or what the noise is to be added to.
inline void settle(const paceline_sample &a, SampledRow &row, uint32_t *keys) {
    const int64_t blocks = row.logits.num_blocks();
    const int32_t seat = a.seats[row.number];
    const float best = largest_maximum(row.maxima, blocks);
    const float raw = row.raw_maxima == nullptr ? best : largest_maximum(row.raw_maxima, blocks);
    if (!(raw > -INFINITY) || !(best > -INFINITY)) {
        row.found.token = raw > -INFINITY ? PACELINE_BANNED_ROW : PACELINE_NAN_ROW;
        return;
    }
    row.found.token = first_best(row, best);
    if (a.greedy[seat]) return;
    const float wished = (float)a.temperature[seat], highest = 3.40282347e38f, tiny = 1.17549435e-38f;
    row.scale = {best < highest ? best : highest, wished > tiny ? wished : tiny, a.temperature[seat] != 1.0};
    row.best = row.scale.of(best);
    row.least = least_kept(a, seat, row, keys);
    row.by_mass = a.top_p[seat] < 1;
    if (row.by_mass && row.best == INFINITY) row.least = INFINITY, row.by_mass = false;
    row.key = {(uint32_t)a.seed[seat], (uint32_t)((uint64_t)a.seed[seat] >> 32), (uint32_t)a.output_index[row.number],
               (uint32_t)a.sample_index[seat], 0};
    row.found.sum = noisy_score(row, best, row.found.token);
    row.drawn = true;
}

// Applies the edits of a row, whose blocks then have other maxima.
inline void edit(const paceline_sample &a, SampledRow &row, int32_t *patch_of, float *patches) {
    patch(row.logits, a.edits + a.edit_start[row.number], num_edits(a, row.number), patch_of, patches);
    for (int64_t i = 0; i < row.logits.num_blocks(); ++i)
        if (patch_of[i] >= 0) row.maxima[i] = row.logits.maximum(i);
}

// The least score that top-p keeps, from what the threads of a team have listed; it goes on by mass where that does not tell.
inline void keep_listed(const paceline_sample &a, SampledRow &row, float reach, const SampleRoom &room,
                        int64_t team_size) {
    const NucleusRoom all = room.of_thread(0);
    Shallow found = room.shallow[0];
    for (int64_t thread = 1; thread < team_size; ++thread) {
        const NucleusRoom other = room.of_thread(thread);
        const int64_t count = room.shallow[thread].count;
        memcpy(all.keys + found.count, other.keys, count * sizeof(*all.keys));
        memcpy(all.weights + found.count, other.weights, count * sizeof(*all.weights));
        found = {found.rest + room.shallow[thread].rest, found.count + count};
    }
    float last;
    row.by_mass = !last_of_listed(row.kept(reach), a.top_p[a.seats[row.number]], found, all, last);
    if (!row.by_mass && last > row.least) row.least = last;
}

// Top-p: threads look at their blocks, one of them then finds the threshold.
inline void keep_nucleus(const paceline_sample &a, SampledRow &row, const SampleRoom &room, const Team &team) {
    const int64_t first = team.first(room.blocks), last = team.last(room.blocks);
    const double share = a.top_p[a.seats[row.number]];
    const NucleusRoom own = room.of_thread(team.index);
    Limit limit{deepest, a.size};
    if (room.blocks >= fewest_blocks) limit = likely_limit(row.kept(deepest), share);
    if (limit.count <= a.size / listed_share) {
        room.shallow[team.index] = listed(row.kept(limit.depth), first, last, own);
        team.wait();
        if (team.index == 0) keep_listed(a, row, limit.depth, room, team.size);
        team.wait();
        if (!row.by_mass) return;
    }
    memset(own.histogram, 0, num_buckets * sizeof(int64_t));
    add_masses(row.kept(limit.depth), first, last, own.histogram);
    team.wait();
    if (team.index == 0) {
        for (int64_t i = num_buckets; i < team.size * num_buckets; ++i) own.histogram[i % num_buckets] += own.histogram[i];
        const float least = last_of_nucleus(row.kept(limit.depth), share, own);
        row.least = least > row.least ? least : row.least;
    }
    team.wait();
}

// Tokens of a block whose noise could make them the best get it; `words` are the block's.
inline void draw_from_block(const SampledRow &row, int64_t index, const uint32_t *words, Drawn &found) {
    float room[block_size], scores[block_size], bounds[block_size];
    row.scale.of_block(row.logits.block(index, room), scores);
    for (int64_t i = 0; i < block_size; ++i) bounds[i] = scores[i] + noise_bound(words[i]);
    const Lanes left = max(load(bounds), load(bounds + width));
    const Lanes right = max(load(bounds + 2 * width), load(bounds + 3 * width));
    if (!any_reaches(max(left, right), found.sum)) return;
    for (int64_t i = 0; i < block_size; ++i)
        if (bounds[i] >= found.sum && scores[i] >= row.least)
            found.take(scores[i] + gumbel(words[i]), index * block_size + i);
}

// The best of blocks [first, last) and what is found already. Words of several blocks come first, as each waits for long
// chains of instructions, of which a processor can then work at several.
inline Drawn drawn_from(const SampledRow &row, int64_t first, int64_t last) {
    constexpr int64_t blocks_at_once = 8;
    Drawn found = row.found;
    uint32_t words[blocks_at_once][words_at_once];
    int64_t chosen[blocks_at_once], count = 0;
    for (int64_t index = first; index < last; ++index) {
        const float maximum = row.scale.of(row.maxima[index]);
        if (maximum >= row.least && maximum + largest_noise >= found.sum) chosen[count++] = index;
        if (count < blocks_at_once && index + 1 < last) continue;
        for (int64_t i = 0; i < count; ++i) noise_words(row.key, (uint32_t)(chosen[i] * (block_size / 4)), words[i]);
        for (int64_t i = 0; i < count; ++i) draw_from_block(row, chosen[i], words[i], found);
        count = 0;
    }
    return found;
}

// Rows [first, last), at most `rows_in_work`, by the whole team.
inline void sample_rows(const paceline_sample &a, int64_t first, int64_t last, const SampleRoom &room, const Team &team) {
    const int64_t rows = last - first, blocks = room.blocks;
    for (int64_t i = team.first(rows); i < team.last(rows); ++i)
        room.rows[i] = sampled_row(a, first + i, room.maxima + i * 2 * blocks, blocks);
    team.wait();
    for (int64_t i = 0; i < rows; ++i) {
        const SampledRow &row = room.rows[i];
        const LogitRow given{&a.logits, row.number, a.size};
        for (int64_t index = team.first(blocks); index < team.last(blocks); ++index) {
            row.maxima[index] = row.logits.maximum(index);
            if (row.raw_maxima != nullptr) row.raw_maxima[index] = given.maximum(index);
        }
    }
    team.wait();
    for (int64_t i = team.first(rows); i < team.last(rows); ++i) {
        if (num_edits(a, first + i) > 0)
            edit(a, room.rows[i], room.patch_of + i * blocks, room.patches + i * room.most_patches * block_size);
        settle(a, room.rows[i], room.of_thread(team.index).keys);
    }
    team.wait();
    for (int64_t i = 0; i < rows; ++i)
        if (room.rows[i].by_mass) keep_nucleus(a, room.rows[i], room, team);
    Drawn *partial = room.partial + team.index * rows;
    for (int64_t i = 0; i < rows; ++i) {
        const SampledRow &row = room.rows[i];
        partial[i] = row.drawn ? drawn_from(row, team.first(blocks), team.last(blocks)) : row.found;
    }
    team.wait();
    for (int64_t i = team.first(rows); i < team.last(rows); ++i) {
        Drawn found = room.partial[i];
        for (int64_t thread = 1; thread < team.size; ++thread)
            found.take(room.partial[thread * rows + i].sum, room.partial[thread * rows + i].token);
        a.tokens[a.places == nullptr ? first + i : a.places[first + i]] = found.token;
    }
}

inline void run_sample(const void *arguments, const Team &team) {
    const paceline_sample &a = *(const paceline_sample *)arguments;
    Dealer dealer{(uintptr_t)team.scratch};
    SampleRoom room = deal(a, dealer, team.size);
    if (a.rows < 2 * team.size) return sample_rows(a, 0, a.rows, room, team);
    room.rows += team.index;
    room.partial += team.index;
    room.maxima += team.index * 2 * room.blocks;
    room.patch_of += team.index * room.blocks;
    room.patches += team.index * room.most_patches * block_size;
    room.histograms += team.index * num_buckets;
    room.shallow += team.index;
    room.keys += team.index * room.blocks * block_size;
    room.weights += team.index * room.blocks * block_size;
    const Team alone{0, 1, team.scratch, nullptr};
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); ++row) sample_rows(a, row, row + 1, room, alone);
}

inline size_t sample_scratch(const void *arguments, int64_t team_size) {
    Dealer dealer{0};
    deal(*(const paceline_sample *)arguments, dealer, team_size);
    return dealer.next;
}
