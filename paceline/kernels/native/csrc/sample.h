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
    LogitRow logits;
    float *maxima;       // of its blocks
    float *raw_maxima;   // of the logits before controls changed them; NULL if none did
    Scale scale;
    float least;         // scores below it are not kept
    bool drawn;          // the token is chosen with noise
    NoiseKey key;
    Drawn found;
};

struct SampleRoom {
    NucleusRoom nucleus;  // of this thread alone
    SampledRow *rows;     // those in work, shared by a team
    Drawn *partial;       // [team][rows in work]
    float *maxima;        // [rows in work][2][blocks]
    int64_t blocks;
};

// Threads share rows where there are fewer; else each takes its own, one after the other.
inline int64_t rows_in_work(const paceline_sample &a, int64_t team_size) { return smaller(a.rows, 2 * team_size); }

inline SampleRoom deal(const paceline_sample &a, Dealer &dealer, int64_t index, int64_t team_size) {
    SampleRoom room;
    const int64_t rows = rows_in_work(a, team_size);
    room.blocks = LogitRow{&a.logits, 0, a.size}.num_blocks();
    room.rows = dealer.take<SampledRow>(rows);
    room.partial = dealer.take<Drawn>(rows * team_size);
    room.maxima = dealer.take<float>(rows * 2 * room.blocks);
    for (int64_t thread = 0; thread < team_size; ++thread) {
        const NucleusRoom own = {dealer.take<uint32_t>(room.blocks * block_size),
                                 dealer.take<int64_t>(room.blocks * block_size), dealer.take<int64_t>(num_buckets)};
        if (thread == index) room.nucleus = own;
    }
    return room;
}

inline SampledRow sampled_row(const paceline_sample &a, int64_t row, float *maxima, int64_t blocks) {
    const int64_t edited = a.edit == nullptr ? -1 : a.edit[row];
    SampledRow found{};
    found.logits = edited < 0 ? LogitRow{&a.logits, row, a.size} : LogitRow{&a.edited, edited, a.size};
    found.maxima = maxima;
    found.raw_maxima = edited < 0 ? nullptr : maxima + blocks;
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

// Temperature, min-p, top-k and top-p, in this order: the least score that all of them keep.
inline float least_kept(const paceline_sample &a, int32_t seat, const SampledRow &row, float best_logit,
                        const NucleusRoom &room) {
    const float best = row.scale.of(best_logit);
    float least = -INFINITY;
    if (a.min_p[seat] > 0) least = best + (float)a.min_p_margin[seat];
    if (a.top_k[seat] > 0 && a.top_k[seat] < a.size) {
        const float last = row.scale.of(kth_largest(row.logits, row.maxima, a.top_k[seat], room.keys));
        least = last > least ? last : least;
    }
    if (a.top_p[seat] < 1) {
        const float last = last_of_nucleus(row.logits, row.maxima, row.scale, best, least, a.top_p[seat], room);
        least = last > least ? last : least;
    }
    return least;
}

// What is known of a row once its maxima are: its token, or what the noise is to be added to.
inline void settle(const paceline_sample &a, int64_t index, SampledRow &row, const NucleusRoom &room) {
    const int64_t blocks = row.logits.num_blocks();
    const int32_t seat = a.seats[index];
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
    row.least = least_kept(a, seat, row, best, room);
    row.key = {(uint32_t)a.seed[seat], (uint32_t)((uint64_t)a.seed[seat] >> 32), (uint32_t)a.output_index[index],
               (uint32_t)a.sample_index[seat], 0};
    row.found.sum = noisy_score(row, best, row.found.token);
    row.drawn = true;
}

// Tokens of a block whose noise could make them the best get it.
inline void draw_from_block(const SampledRow &row, int64_t index, Drawn &found) {
    const float maximum = row.scale.of(row.maxima[index]);
    if (maximum < row.least || maximum + largest_noise < found.sum) return;
    float room[block_size], scores[block_size], bounds[block_size];
    uint32_t words[words_at_once];
    row.scale.of_block(row.logits.block(index, room), scores);
    noise_words(row.key, (uint32_t)(index * (block_size / 4)), words);
    int any = 0;
    for (int64_t i = 0; i < block_size; ++i) {
        bounds[i] = scores[i] + noise_bound(words[i]);
        any |= (bounds[i] >= found.sum) & (scores[i] >= row.least);
    }
    if (!any) return;
    for (int64_t i = 0; i < block_size; ++i)
        if (bounds[i] >= found.sum && scores[i] >= row.least)
            found.take(scores[i] + gumbel(words[i]), index * block_size + i);
}

// Rows [first, last), at most `rows_in_work`, by the whole team.
inline void sample_rows(const paceline_sample &a, int64_t first, int64_t last, const SampleRoom &room, const Team &team) {
    const int64_t rows = last - first, blocks = room.blocks, all = rows * blocks;
    for (int64_t row = team.first(rows); row < team.last(rows); ++row)
        room.rows[row] = sampled_row(a, first + row, room.maxima + row * 2 * blocks, blocks);
    team.wait();
    for (int64_t i = team.first(all); i < team.last(all); ++i) {
        const SampledRow &row = room.rows[i / blocks];
        row.maxima[i % blocks] = row.logits.maximum(i % blocks);
        if (row.raw_maxima != nullptr)
            row.raw_maxima[i % blocks] = LogitRow{&a.logits, first + i / blocks, a.size}.maximum(i % blocks);
    }
    team.wait();
    for (int64_t row = team.first(rows); row < team.last(rows); ++row)
        settle(a, first + row, room.rows[row], room.nucleus);
    team.wait();
    Drawn *partial = room.partial + team.index * rows;
    for (int64_t row = 0; row < rows; ++row) partial[row] = room.rows[row].found;
    for (int64_t i = team.first(all); i < team.last(all); ++i)
        if (room.rows[i / blocks].drawn) draw_from_block(room.rows[i / blocks], i % blocks, partial[i / blocks]);
    team.wait();
    for (int64_t row = team.first(rows); row < team.last(rows); ++row) {
        Drawn found = room.partial[row];
        for (int64_t thread = 1; thread < team.size; ++thread)
            found.take(room.partial[thread * rows + row].sum, room.partial[thread * rows + row].token);
        a.tokens[first + row] = found.token;
    }
}

inline void run_sample(const void *arguments, const Team &team) {
    const paceline_sample &a = *(const paceline_sample *)arguments;
    Dealer dealer{(uintptr_t)team.scratch};
    SampleRoom room = deal(a, dealer, team.index, team.size);
    if (a.rows < 2 * team.size) return sample_rows(a, 0, a.rows, room, team);
    room.rows += team.index;
    room.partial += team.index;
    room.maxima += team.index * 2 * room.blocks;
    const Team alone{0, 1, team.scratch, nullptr};
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); ++row) sample_rows(a, row, row + 1, room, alone);
}

inline size_t sample_scratch(const void *arguments, int64_t team_size) {
    Dealer dealer{0};
    deal(*(const paceline_sample *)arguments, dealer, 0, team_size);
    return dealer.next;
}
