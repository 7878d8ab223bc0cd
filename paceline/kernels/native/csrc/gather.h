// Rows of a table by index, or the rows themselves, scaled, written or added; rows to a table by index; columns by index.
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

inline void run_scatter(const void *arguments, const Team &team) {
    const paceline_scatter &a = *(const paceline_scatter *)arguments;
    for (int64_t row = team.first(a.rows); row < team.last(a.rows); ++row) {
        if (a.index[row] < 0) continue;
        for (int64_t i = 0; i < a.size; i += width)
            store_as(a.out.dtype, address(a.out, a.index[row], i),
                     load_as(a.x.dtype, address(a.x, row, i), a.size - i), a.size - i);
    }
}

// Threads share the columns: of few rows, too, each has as much to do.
inline void run_expand(const void *arguments, const Team &team) {
    const paceline_expand &a = *(const paceline_expand *)arguments;
    for (int64_t row = 0; row < a.rows; ++row) {
        const float *x = (const float *)address(a.x, row, 0);
        float *out = (float *)address(a.out, row, 0);
        for (int64_t i = team.first(a.size); i < team.last(a.size); ++i)
            out[i] = a.columns[i] < 0 ? -INFINITY : x[a.columns[i]];
    }
}
