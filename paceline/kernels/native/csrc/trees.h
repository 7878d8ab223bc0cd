// Draft trees that grow level by level, and are pruned; paceline/runner/trees.py is the same in numpy.
#pragma once

// The best candidate that is left: of equals the first. Those that are taken are NaN, for any number may be a score.
inline int64_t best_of(const double *scores, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 0; i < count; ++i)
        if (scores[i] > scores[best] || scores[best] != scores[best]) best = i;
    return best;
}

// Of a node whose parent has its own.
inline void set_bits(const paceline_draft &draft, int64_t request, int64_t node, int64_t parent) {
    const int64_t first = request * draft.width;
    int64_t *bits = draft.bits + (first + node) * draft.words;
    for (int64_t i = 0; i < draft.words; ++i) bits[i] = parent < 0 ? 0 : draft.bits[(first + parent) * draft.words + i];
    bits[node / 64] |= (int64_t)((uint64_t)1 << node % 64);
}

inline void add_node(const paceline_draft &draft, int64_t request, int64_t parent, int64_t token, double score) {
    const int64_t number = draft.counts[request]++, first = request * draft.width, node = first + number;
    draft.tokens[node] = token;
    draft.parents[node] = (int32_t)parent;
    draft.depths[node] = parent < 0 ? 1 : draft.depths[first + parent] + 1;
    draft.scores[node] = score;
    set_bits(draft, request, number, parent);
}

// Of the level whose nodes have this depth, which is the last one; the last known token is one by itself.
inline int64_t level_size(const paceline_draft &draft, int64_t request, int64_t depth) {
    if (depth == 0) return 1;
    const int64_t count = draft.counts[request];
    int64_t found = 0;
    while (found < count && draft.depths[request * draft.width + count - 1 - found] == depth) ++found;
    return found;
}

// Where the best token of a candidate lies.
inline int64_t top_of(const paceline_grow_tree &a, int64_t row, int64_t candidate) {
    return row * a.most + (a.shared ? candidate % a.most : candidate);
}

// `width` nodes of the next level, whose paths are the likeliest.
inline void grow_level(const paceline_grow_tree &a, int64_t request) {
    const paceline_draft &draft = *a.draft;
    const int64_t row = a.sample_start[request], rows = a.sample_start[request + 1] - row;
    // A level has fewer nodes than `width` where its parents have fewer children: there are no more tokens.
    const int64_t parents = a.shared && rows > 0 ? level_size(draft, request, a.level) : rows;
    const int64_t candidates = parents * a.most, first = request * draft.width;
    const int64_t first_parent = a.level == 0 ? -1 : draft.counts[request] - parents;
    for (int64_t i = 0; i < candidates; ++i) {
        const int64_t parent = i / a.most;
        const double before = a.level == 0 ? 0.0 : draft.scores[first + first_parent + parent];
        const double own = (double)a.top_logits[top_of(a, row, i)] - a.log_sums[row + (a.shared ? 0 : parent)];
        if (own != own) {
            a.broken[request] = 1;
            return;
        }
        a.room[i] = before + own;
    }
    for (int64_t i = 0; i < smaller(a.width, candidates); ++i) {
        const int64_t best = best_of(a.room, candidates);
        add_node(draft, request, first_parent + best / a.most, a.top_tokens[top_of(a, row, best)], a.room[best]);
        a.room[best] = NAN;
    }
}

inline void run_grow_tree(const void *arguments, const Team &team) {
    const paceline_grow_tree &a = *(const paceline_grow_tree *)arguments;
    if (team.index != 0) return;
    for (int64_t request = 0; request < a.requests; ++request) {
        if (a.level == 0) a.draft->counts[request] = 0;
        const bool grows = a.level < a.depth[request] && !a.broken[request];
        if (grows) grow_level(a, request);
        a.limit[request] = grows && a.level + 1 < a.depth[request] && !a.broken[request] ? a.draft->counts[request] : 0;
    }
}

inline bool stays(const paceline_prune_tree &a, int64_t request, int64_t node) {
    const double *scores = a.draft->scores + request * a.draft->width;
    int64_t better = 0;
    for (int64_t i = 0; i < a.draft->counts[request]; ++i)
        better += scores[i] > scores[node] || (scores[i] == scores[node] && i < node);
    return better < a.num_nodes;
}

// Takes node `from` as node `number`, which is not behind it.
inline void renumber(const paceline_draft &draft, int64_t request, int64_t from, int64_t number, const int32_t *numbers) {
    const int64_t first = request * draft.width, source = first + from, node = first + number;
    const int64_t parent = draft.parents[source] < 0 ? -1 : numbers[draft.parents[source]];
    draft.tokens[node] = draft.tokens[source];
    draft.parents[node] = (int32_t)parent;
    draft.depths[node] = draft.depths[source];
    draft.scores[node] = draft.scores[source];
    set_bits(draft, request, number, parent);
}

inline void run_prune_tree(const void *arguments, const Team &team) {
    const paceline_prune_tree &a = *(const paceline_prune_tree *)arguments;
    if (team.index != 0) return;
    for (int64_t request = 0; request < a.requests; ++request) {
        const int64_t count = a.draft->counts[request];
        if (count <= a.num_nodes) continue;
        int32_t kept = 0;
        for (int64_t node = 0; node < count; ++node) a.room[node] = stays(a, request, node) ? kept++ : -1;
        for (int64_t node = 0; node < count; ++node)
            if (a.room[node] >= 0) renumber(*a.draft, request, node, a.room[node], a.room);
        a.draft->counts[request] = kept;
    }
}
