// What a row sees, as a stretch of positions, and where the K/V of a position lie.
#pragma once

// A row sees the positions [first, last). Those below `in_order` are the slots of the same number; from there on they
// are the slots of the set bits, one after the other.
struct Sight {
    int64_t first, in_order, last;
};

inline Sight sight_of(const paceline_visibility &a, int64_t context, int64_t row) {
    const int64_t *bits = a.tree_bits + row * a.words;
    int64_t count = 0;
    bool chain = context == a.visible[row], ended = false;
    for (int64_t word = 0; word < a.words; ++word) {
        const uint64_t set = (uint64_t)bits[word];
        count += __builtin_popcountll(set);
        chain = chain && (set & (set + 1)) == 0 && !(ended && set != 0);
        ended = set != ~(uint64_t)0;
    }
    const int64_t visible = a.visible[row];
    return {a.first_visible == nullptr ? 0 : a.first_visible[row], chain ? visible + count : visible, visible + count};
}

// Places of a request's K/V for one K/V head, in units of one cell's channels.
struct Places {
    const paceline_visibility &seen;
    const paceline_pool &pool;
    int64_t kv_heads, kv_head, request;

    int64_t of_page(int64_t page, int64_t offset) const {
        const int64_t number = seen.page_table[request * seen.page_table_stride + page];
        return place_of(pool, kv_heads, kv_head, number, offset);
    }
    int64_t of_slot(int64_t slot) const { return of_page(slot / pool.page_size, slot % pool.page_size); }

    void of_slots(int64_t first, int64_t last, int64_t *places) const {
        int64_t page = first / pool.page_size, offset = first % pool.page_size;
        while (first < last) {
            const int64_t start = of_page(page, offset), count = smaller(pool.page_size - offset, last - first);
            for (int64_t i = 0; i < count; ++i) places[i] = start + i;
            places += count;
            first += count;
            offset = 0;
            ++page;
        }
    }

    // The row's set bits number [skipped, skipped + count).
    void of_bits(int64_t row, int64_t skipped, int64_t count, int64_t *places) const {
        for (int64_t word = 0; count > 0; ++word) {
            uint64_t set = (uint64_t)seen.tree_bits[row * seen.words + word];
            for (; set != 0 && count > 0; set &= set - 1) {
                if (skipped-- > 0) continue;
                *places++ = of_slot(seen.context[request] + word * 64 + __builtin_ctzll(set));
                --count;
            }
        }
    }

    // Positions [first, last) as the row sees them.
    void of_row(int64_t row, const Sight &sight, int64_t first, int64_t last, int64_t *places) const {
        const int64_t middle = sight.in_order < first ? first : smaller(sight.in_order, last);
        of_slots(first, middle, places);
        if (middle < last) of_bits(row, middle - sight.in_order, last - middle, places + (middle - first));
    }
};
