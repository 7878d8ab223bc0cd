// Memory for what an op keeps between its stages.
#pragma once

// Deals out 64-byte aligned pieces of memory; from address 0 it only counts.
struct Dealer {
    uintptr_t next;
    template <class T>
    T *take(int64_t count) {
        T *piece = (T *)next;
        next += (uintptr_t)rounded_up(count * (int64_t)sizeof(T), 64);
        return piece;
    }
};

inline size_t no_scratch(const void *, int64_t) { return 0; }
