// A parallel region: what its threads know of each other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace paceline {

class Barrier;

struct Team {
    int64_t index, size;
    std::byte *scratch;  // shared by the team, aligned to 64 bytes
    Barrier *barrier;

    // Returns once every thread of the team is here.
    void wait() const;

    // This thread's share of `count` things: [first, last).
    int64_t first(int64_t count) const { return count * index / size; }
    int64_t last(int64_t count) const { return count * (index + 1) / size; }
};

using Region = void (*)(const void *context, const Team &team);

// Bytes of scratch that the context's work needs in a team of this size.
using ScratchOf = size_t (*)(const void *context, int64_t team_size);

// Runs the region on up to `num_threads` threads, this one included. Throws std::bad_alloc without memory for scratch.
void run_region(Region region, const void *context, int64_t num_threads, ScratchOf scratch_of);

}  // namespace paceline
