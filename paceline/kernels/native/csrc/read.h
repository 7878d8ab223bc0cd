// Memory read once, in order: what a kernel that streams its weights can come near and not beat.
#pragma once

// Of 32 bytes at every level: a processor with wider registers reads memory no faster with them, rather slower.
typedef uint32_t Words __attribute__((vector_size(32)));
constexpr int read_sums = 4;  // that do not wait for each other
constexpr int64_t read_bytes = read_sums * sizeof(Words);

inline size_t read_scratch(const void *, int64_t team_size) { return team_size * sizeof(Words); }

inline void run_read(const void *arguments, const Team &team) {
    const paceline_read &a = *(const paceline_read *)arguments;
    const int64_t chunks = a.size / read_bytes;
    Words sum[read_sums] = {};
    const char *last = (const char *)a.data + team.last(chunks) * read_bytes;
    for (const char *p = (const char *)a.data + team.first(chunks) * read_bytes; p < last; p += read_bytes)
        UNROLLED for (int i = 0; i < read_sums; ++i) {
            Words words;
            memcpy(&words, p + i * sizeof(Words), sizeof(Words));
            sum[i] += words;
        }
    for (int i = 1; i < read_sums; ++i) sum[0] += sum[i];
    memcpy(team.scratch + team.index * sizeof(Words), &sum[0], sizeof(Words));
    team.wait();
    if (team.index != 0) return;
    uint32_t total = 0;
    for (size_t i = 0; i < team.size * sizeof(Words); i += sizeof(total)) total += load_bytes<uint32_t>(team.scratch + i);
    *a.sum = (int32_t)total;
}
