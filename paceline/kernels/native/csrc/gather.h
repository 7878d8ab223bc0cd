// Rows of a table by index, or the rows themselves, scaled, written or added.
#pragma once

inline void run_gather(const void *arguments, const Team &team) {
    const paceline_gather &a = *(const paceline_gather *)arguments;
    const Lanes scale = broadcast((float)a.scale);
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); ++row) {
        // A row that could not be sampled (-1) is followed by some token; nobody reads what comes of it.
        const int64_t source = a.index == nullptr ? row : (a.index[row] < 0 ? 0 : a.index[row]) + a.offset;
        for (int64_t i = 0; i < a.size; i += width) {
            const int64_t count = a.size - i;
            Lanes x = load_as(a.table.dtype, address(a.table, source, i), count) * scale;
            char *out = address(a.out, row, i);
            if (a.add) x = load_as(a.out.dtype, out, count) + x;
            store_as(a.out.dtype, out, x, count);
        }
    }
}
