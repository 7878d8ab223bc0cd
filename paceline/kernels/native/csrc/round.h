// What lies between the passes of a round of drafting and verifying: where rows lie, and how far a draft stands.
#pragma once

inline void place_rows(const paceline_place &a, int64_t request) {
    const int64_t start = a.context[request] + a.first;
    for (int64_t i = 0; i < a.width; ++i) {
        const int64_t row = request * a.width + i, slot = start + i;
        if (a.tokens != nullptr) a.token_ids[row] = a.tokens[i][request];
        a.positions[row] = slot;
        a.visible[row] = (int32_t)(slot + 1);
        for (int64_t number = 0; number < a.num_groups; ++number) {
            const paceline_place_group &group = a.groups[number];
            const int64_t page = group.page_table[request * group.page_table_stride + slot / group.page_size];
            group.cells[row] = page * group.page_size + slot % group.page_size;
            if (group.window > 0) group.first_visible[row] = (int32_t)larger(0, slot - group.window + 1);
        }
    }
    const int64_t count = a.width - a.sampled;
    for (int64_t i = 0; i < count; ++i) a.output_index[request * count + i] = a.first_index[request] + a.shift + i;
}

inline void run_place(const void *arguments, const Team &team) {
    const paceline_place &a = *(const paceline_place *)arguments;
    for (int64_t request = team.first(a.requests); request < team.last(a.requests); ++request) place_rows(a, request);
}

// What is no token ends a request too: nothing that follows it will stand.
inline bool ends(const paceline_enders &a, int64_t request, int64_t token) {
    if (token < 0) return true;
    for (int64_t i = a.start[request]; i < a.start[request + 1]; ++i)
        if (a.tokens[i] == token) return true;
    return false;
}

inline void look_for_ends(const paceline_enders &a, int64_t request, const int64_t *tokens, int64_t count) {
    for (int64_t i = 0; i < count && !a.ended[request]; ++i) a.ended[request] = ends(a, request, tokens[i]);
}

inline void stop_if_all_ended(const paceline_enders &a, int64_t requests) {
    int64_t count = 0;
    for (int64_t request = 0; request < requests; ++request) count += a.ended[request];
    *a.all_ended = count == requests;
}

inline void run_end_pass(const void *arguments, const Team &team) {
    const paceline_end_pass &a = *(const paceline_end_pass *)arguments;
    if (team.index != 0) return;
    for (int64_t request = 0; request < a.requests; ++request)
        look_for_ends(a.enders, request, a.tokens + request, 1);
    stop_if_all_ended(a.enders, a.requests);
    ++*a.passes;
}

inline void advance_request(const paceline_advance &a, int64_t round, int64_t request) {
    const int64_t *sampled = a.sampled + request * (a.depth + 1);
    const int64_t place = round * a.requests + request;
    int64_t *tokens = a.tokens + place * (a.depth + 1), *drafts = a.drafts + place * a.depth;
    for (int64_t i = 0; i <= a.depth; ++i) tokens[i] = sampled[i];
    for (int64_t i = 0; i < a.depth; ++i) drafts[i] = a.drafted[i * a.drafted_stride + request];
    int64_t count = 0;
    while (count < a.depth && sampled[count] >= 0 && sampled[count] == drafts[count]) ++count;
    look_for_ends(a.enders, request, sampled, count + 1);
    if (sampled[count] >= 0) ++count;  // else the row could not be sampled, and nothing follows what stands
    a.counts[place] = count;
    a.context[request] += (int32_t)count;
    a.first_index[request] += count;
    if (count > 1) a.before[request] = sampled[count - 2];
    if (count == 1) a.before[request] = a.last[request];
    if (count > 0) a.last[request] = sampled[count - 1];
}

// One thread's: it takes less time than telling the others.
inline void run_advance(const void *arguments, const Team &team) {
    const paceline_advance &a = *(const paceline_advance *)arguments;
    if (team.index != 0) return;
    for (int64_t request = 0; request < a.requests; ++request) advance_request(a, *a.round, request);
    stop_if_all_ended(a.enders, a.requests);
    ++*a.round;
}
