// What lies between the passes of a step: where rows lie, how drafts grow, how much of a draft stands.
//
// These ops are one thread's: they take less time than telling the others. paceline/runner/rows.py is the same rule.
#pragma once

inline bool is_stop_id(const paceline_stops &a, int64_t request, int64_t token) {
    for (int64_t i = a.start[request]; i < a.start[request + 1]; ++i)
        if (a.tokens[i] == token) return true;
    return false;
}

struct RowSpan {
    int64_t first, end;  // slots
};

// Nodes from this number on are not fed.
inline int64_t node_limit(const paceline_prepare_rows &a, int64_t request) {
    const int64_t limit = a.limit[request];
    return a.masks && limit > 0 ? limit - a.first_output : limit;
}

// The slots of a request that a stage feeds: known tokens from `start` on, then nodes of its draft.
inline RowSpan span_of(const paceline_prepare_rows &a, int64_t request) {
    const int64_t context = a.context[request];
    const int64_t known = a.start == nullptr ? context : a.last ? larger(a.start[request], context - 1) : a.start[request];
    const int64_t first = a.start == nullptr ? context + a.first_node : known;
    if (a.ended != nullptr && a.ended[request]) return {first, first};
    if (a.num_nodes == 0) return {first, larger(first, context)};
    const int64_t last = smaller(a.first_node + a.num_nodes, node_limit(a, request));
    const int64_t end = context + (a.start == nullptr ? last : larger(last, 0));
    return {first, larger(first, end)};
}

inline int64_t cell_of(const paceline_row_group &group, int64_t request, int64_t slot) {
    const int64_t page = group.page_table[request * group.page_table_stride + slot / group.page_size];
    return page * group.page_size + slot % group.page_size;
}

inline int64_t mask_token(const paceline_prepare_rows &a, int64_t request, int64_t node) {
    if (!a.repeats_last || node > 0) return a.mask_token;
    return a.tokens[a.seats[request] * a.tokens_stride + a.context[request] - 1];
}

// `end`: of the request's slots.
inline void prepare_row(const paceline_prepare_rows &a, int64_t request, int64_t slot, int64_t end, int64_t row) {
    const paceline_draft &draft = *a.draft;
    const int64_t context = a.context[request], seat = a.seats[request];
    const bool masked = a.masks && slot >= context;
    const int64_t node = request * draft.width + slot - context;
    int64_t position = slot, visible = slot + 1;
    int64_t *bits = a.tree_bits + row * draft.words;
    if (slot < context || masked) {
        a.token_ids[row] = masked ? mask_token(a, request, slot - context) : a.tokens[seat * a.tokens_stride + slot];
        if (masked && a.sees_all) visible = end;
        for (int64_t i = 0; i < draft.words; ++i) bits[i] = 0;
    } else {
        a.token_ids[row] = draft.tokens[node];
        if (draft.depths != nullptr) {
            position = context + draft.depths[node] - 1;
            visible = context;
        }
        for (int64_t i = 0; i < draft.words; ++i) bits[i] = draft.bits[node * draft.words + i];
    }
    a.positions[row] = larger(0, position + a.position_shift);
    if (a.angle_rows != nullptr) a.angle_rows[row] = a.positions[row] - a.angle_base[request];
    if (a.mask_rows != nullptr) a.mask_rows[row] = masked ? row : -1;
    a.visible[row] = (int32_t)visible;
    for (int64_t number = 0; number < a.num_groups; ++number) {
        const paceline_row_group &group = a.groups[number];
        group.cells[row] = cell_of(group, request, slot);
        if (group.first_visible == nullptr) continue;
        const int64_t least = smaller(slot, a.first_slot);
        group.first_visible[row] = (int32_t)(group.window > 0 ? larger(least, position - group.window + 1) : least);
    }
    if (a.before != nullptr)
        a.before->cells[row] = cell_of(*a.before, request, larger(0, smaller(slot, context) - 1));
}

// Which output token the row at a slot from the last known token on decides, counted from the next one.
inline int64_t decided(const paceline_prepare_rows &a, int64_t request, int64_t slot) {
    const int64_t node = slot - a.context[request];
    if (node < 0) return 0;
    if (a.masks) return a.first_output + node;
    return a.draft->depths == nullptr ? node + 1 : a.draft->depths[request * a.draft->width + node];
}

inline void prepare_sample(const paceline_prepare_rows &a, int64_t request, int64_t slot, int64_t row, int64_t number) {
    const int64_t depth = decided(a, request, slot);
    a.logit_rows[number] = row;
    a.sample_seats[number] = a.seats[request];
    a.output_index[number] = a.first_index[request] + depth;
    a.places[number] = request * a.places_stride + (a.masks ? depth : slot - a.context[request] + 1);
}

inline void run_prepare_rows(const void *arguments, const Team &team) {
    const paceline_prepare_rows &a = *(const paceline_prepare_rows *)arguments;
    if (team.index != 0) return;
    int64_t row = 0, number = 0;
    for (int64_t request = 0; request < a.requests; ++request) {
        a.row_start[request] = (int32_t)row;
        a.sample_start[request] = (int32_t)number;
        const RowSpan span = span_of(a, request);
        for (int64_t slot = span.first; slot < span.end; ++slot, ++row) {
            prepare_row(a, request, slot, span.end, row);
            if (!a.sampled[request] || slot < a.context[request] - 1 || decided(a, request, slot) < 0) continue;
            prepare_sample(a, request, slot, row, number++);
        }
    }
    a.row_start[a.requests] = (int32_t)row;
    a.sample_start[a.requests] = (int32_t)number;
    for (int64_t i = 0; i < a.num_row_fields; ++i) *a.row_fields[i] = row;
    for (int64_t i = 0; i < a.num_sample_fields; ++i) *a.sample_fields[i] = number;
}

// Of requests whose earlier rows are not there anything will do: nobody reads their nodes.
inline void run_inherit_rows(const void *arguments, const Team &team) {
    const paceline_inherit_rows &a = *(const paceline_inherit_rows *)arguments;
    if (team.index != 0) return;
    for (int64_t request = 0; request < a.requests; ++request) {
        const int64_t first = a.sample_start[request], count = a.sample_start[request + 1] - first;
        int64_t node = a.first_node;
        for (int64_t row = a.row_start[request]; row < a.row_start[request + 1]; ++row, ++node) {
            const int32_t *parents = a.draft->parents;
            const int64_t parent = parents == nullptr ? node - 1 : parents[request * a.draft->width + node];
            const int64_t place = larger(0, parent - a.first_sample);
            a.parents[row] = place < count ? a.logit_rows[first + place] : 0;
        }
    }
}

// A chain goes on as long as its tokens are good, end nothing, and it may be deeper.
inline void run_grow_chain(const void *arguments, const Team &team) {
    const paceline_grow_chain &a = *(const paceline_grow_chain *)arguments;
    if (team.index != 0) return;
    const paceline_draft &draft = *a.draft;
    for (int64_t request = 0; request < a.requests; ++request) {
        if (a.node == 0) draft.counts[request] = 0;
        const bool grows = a.node == 0 ? a.depth[request] > 0 : a.growing[request] != 0;
        const int64_t token = grows ? draft.tokens[request * draft.width + a.node] : 0;
        if (grows && token == PACELINE_NAN_ROW) a.broken[request] = 1;
        const bool good = grows && token >= 0;
        if (good) draft.counts[request] = (int32_t)a.node + 1;
        a.growing[request] = good && a.node + 1 < a.depth[request] && !is_stop_id(a.stops, request, token);
        a.limit[request] = a.growing[request] ? (int32_t)a.node + 1 : 0;
    }
}

// The node behind `node` that has the token; of several the first. -1 if none has.
inline int64_t child_of(const paceline_draft &draft, int64_t request, int64_t node, int64_t token) {
    const int64_t first = request * draft.width, count = draft.counts[request];
    if (draft.parents == nullptr) return node + 1 < count && draft.tokens[first + node + 1] == token ? node + 1 : -1;
    for (int64_t i = node + 1; i < count; ++i)
        if (draft.parents[first + i] == node && draft.tokens[first + i] == token) return i;
    return -1;
}

inline void move_path(const paceline_accept &a, int64_t request, const int32_t *path, int64_t length) {
    for (int64_t i = 0; i < length; ++i) {
        if (path[i] == i) continue;
        for (int64_t number = 0; number < a.num_groups; ++number) {
            const paceline_row_group &group = a.groups[number];
            int64_t *move = group.cells + 2 * *a.num_moves;
            move[0] = cell_of(group, request, a.context[request] + path[i]);
            move[1] = cell_of(group, request, a.context[request] + i);
        }
        ++*a.num_moves;
    }
}

inline void accept_request(const paceline_accept &a, int64_t round, int64_t request) {
    const paceline_draft &draft = *a.draft;
    const int64_t place = round * a.requests + request, length = a.length;
    int64_t *tokens = a.out_tokens + place * (length + 1);
    int32_t *path = a.out_path + place * length;
    a.out_counts[place] = a.out_accepted[place] = a.out_nodes[place] = 0;
    tokens[0] = 0;
    if (!a.sampled[request]) return;
    const int64_t *samples = a.samples + request * (draft.width + 1);
    const int64_t nodes = draft.width == 0 ? 0 : draft.counts[request];
    a.out_nodes[place] = (int32_t)nodes;
    int64_t node = -1, accepted = 0, count = 0;
    int32_t *known = a.tokens + a.seats[request] * a.tokens_stride + a.context[request];
    bool ended = false;
    for (;;) {
        const int64_t token = samples[node + 1];
        tokens[count] = token;
        if (token < 0) {  // the row could not be sampled: nothing follows what stands
            ended = true;
            break;
        }
        if (a.context[request] + count < a.tokens_stride) known[count] = (int32_t)token;
        ++count;
        ended = ended || is_stop_id(a.stops, request, token);
        const int64_t child = nodes == 0 ? -1 : child_of(draft, request, node, token);
        if (child < 0) break;
        path[accepted++] = (int32_t)child;
        node = child;
    }
    accepted = larger(0, count - 1);  // the last token's K/V are not there yet
    a.out_counts[place] = (int32_t)count;
    a.out_accepted[place] = (int32_t)accepted;
    if (a.num_moves != nullptr) move_path(a, request, path, accepted);
    if (a.draft_start != nullptr) {
        // Nodes whose K/V the drafter keeps.
        const int64_t fed = draft.parents == nullptr && !a.feeds_again ? larger(0, nodes - 1) : 0;
        const int64_t kept = a.depth[request] > 0 ? smaller(accepted, fed) : count;
        a.draft_start[request] = a.context[request] + (int32_t)kept;
    }
    a.target_start[request] = a.context[request] + (int32_t)accepted;
    a.context[request] += (int32_t)count;
    a.first_index[request] += count;
    a.ended[request] = ended || count == 0;
}

// An ended request takes no further part in this call.
inline void run_accept(const void *arguments, const Team &team) {
    const paceline_accept &a = *(const paceline_accept *)arguments;
    if (team.index != 0) return;
    if (a.num_moves != nullptr) *a.num_moves = 0;
    int64_t left = 0;
    for (int64_t request = 0; request < a.requests; ++request) {
        accept_request(a, *a.round, request);
        if (a.ended[request]) a.sampled[request] = 0;
        left += a.sampled[request];
    }
    *a.all_ended = left == 0;
    ++*a.round;
}

inline void run_move_cells(const void *arguments, const Team &team) {
    const paceline_move_cells &a = *(const paceline_move_cells *)arguments;
    for (int64_t pool = team.first(a.num_pools); pool < team.last(a.num_pools); ++pool) {
        const paceline_cells &cells = a.pools[pool];
        const int64_t bytes = cells.cell_bytes, page_size = cells.page_size;
        for (int64_t i = 0; i < *a.num_moves; ++i) {
            const int64_t from = cells.moves[2 * i], to = cells.moves[2 * i + 1];
            for (int64_t head = 0; head < cells.kv_heads; ++head) {
                const int64_t source = (from / page_size * cells.kv_heads + head) * page_size + from % page_size;
                const int64_t target = (to / page_size * cells.kv_heads + head) * page_size + to % page_size;
                memcpy((char *)cells.data + target * bytes, (const char *)cells.data + source * bytes, (size_t)bytes);
            }
        }
    }
}
