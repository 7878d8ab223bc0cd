// Log-probabilities of tokens under rows of logits, their ranks, and each row's likeliest tokens.
//
// The sum over a row is one of integers, in units of 2^-40 of the likeliest token's probability: it is the same in any
// order, so a row's numbers depend neither on other rows, nor on threads, nor on the level.
#pragma once

struct LogprobRoom {
    float *maxima;   // [blocks]
    uint32_t *keys;  // [blocks][block_size]
};

inline LogprobRoom deal(const paceline_logprobs &a, Dealer &dealer, int64_t index, int64_t team_size) {
    const int64_t blocks = LogitRow{&a.logits, 0, a.size}.num_blocks();
    LogprobRoom room{};
    for (int64_t thread = 0; thread < team_size; ++thread) {
        const LogprobRoom own = {dealer.take<float>(blocks),
                                 dealer.take<uint32_t>(a.width > 0 ? blocks * block_size : 0)};
        if (thread == index) room = own;
    }
    return room;
}

// The logarithm of the sum of the exponentials of a row whose best logit is `best`; NaN if that is not finite.
inline double log_sum(const LogitRow &logits, const float *maxima, float best) {
    if (!(best - best == 0)) return NAN;
    int64_t total = 0;
    float room[block_size];
    for (int64_t index = 0; index < logits.num_blocks(); ++index) {
        if (best - maxima[index] > deepest) continue;
        const float *x = logits.block(index, room);
        double depths[block_size];
        int64_t masses[block_size];
        for (int64_t i = 0; i < block_size; ++i) {
            const double depth = (double)best - (double)x[i];
            depths[i] = depth < (double)deepest ? depth : (double)deepest;
        }
        for (int64_t i = 0; i < block_size; ++i) masses[i] = mass_of(depths[i]);
        for (int64_t i = 0; i < block_size; ++i) total += masses[i];
    }
    return (double)best + ::log((double)total * 0x1p-40);
}

inline int64_t num_better(const LogitRow &logits, const float *maxima, float than) {
    int64_t found = 0;
    float room[block_size];
    for (int64_t index = 0; index < logits.num_blocks(); ++index) {
        if (!(maxima[index] > than)) continue;
        const float *x = logits.block(index, room);
        int32_t here = 0;
        for (int64_t i = 0; i < block_size; ++i) here += x[i] > than;
        found += here;
    }
    return found;
}

// The `count` best tokens in the order of their numbers; of those that tie for the last places, the lowest.
inline void best_tokens(const LogitRow &logits, const float *maxima, int64_t count, uint32_t *keys, int32_t *tokens,
                        float *values) {
    const float last = kth_largest(logits, maxima, count, keys);
    int64_t ties = count - num_better(logits, maxima, last), found = 0;
    float room[block_size];
    for (int64_t index = 0; index < logits.num_blocks() && found < count; ++index) {
        if (maxima[index] < last) continue;
        const float *x = logits.block(index, room);
        const int64_t here = smaller(block_size, logits.size - index * block_size);
        for (int64_t i = 0; i < here && found < count; ++i) {
            if (x[i] < last || (x[i] == last && ties-- <= 0)) continue;
            tokens[found] = (int32_t)(index * block_size + i);
            values[found++] = x[i];
        }
    }
}

// A row with a NaN tells nothing of its tokens: as many as are wanted from the first on.
inline void first_tokens(int64_t count, int32_t *tokens, float *values) {
    for (int64_t i = 0; i < count; ++i) {
        tokens[i] = (int32_t)i;
        values[i] = 0;
    }
}

inline void run_logprobs(const void *arguments, const Team &team) {
    const paceline_logprobs &a = *(const paceline_logprobs *)arguments;
    Dealer dealer{(uintptr_t)team.scratch};
    const LogprobRoom room = deal(a, dealer, team.index, team.size);
    for (int64_t i = team.first(a.rows); i < team.last(a.rows); ++i) {
        const LogitRow logits{&a.logits, a.index[i], a.size};
        for (int64_t index = 0; index < logits.num_blocks(); ++index) room.maxima[index] = logits.maximum(index);
        const float best = largest_maximum(room.maxima, logits.num_blocks());
        float block[block_size];
        const float own = logits.block(a.tokens[i] / block_size, block)[a.tokens[i] % block_size];
        int32_t *tokens = a.top_tokens + i * a.width;
        float *values = a.top_logits + i * a.width;
        a.log_sums[i] = log_sum(logits, room.maxima, best);
        a.own_logits[i] = own;
        if (best != best) {
            a.ranks[i] = 1;
            first_tokens(a.top[i], tokens, values);
        } else {
            a.ranks[i] = 1 + num_better(logits, room.maxima, own);
            if (a.top[i] > 0) best_tokens(logits, room.maxima, a.top[i], room.keys, tokens, values);
        }
    }
}

inline size_t logprobs_scratch(const void *arguments, int64_t team_size) {
    Dealer dealer{0};
    deal(*(const paceline_logprobs *)arguments, dealer, 0, team_size);
    return dealer.next;
}
