// Activations of feed-forward networks, times a second half where there is one.
#pragma once

// x / (1 + e^-y): silu for y = x, and GELU's tanh form for y = 2 u, as (1 + tanh u) / 2 = 1 / (1 + e^-2u).
inline Lanes gated_by(Lanes x, Lanes y) { return x / (broadcast(1.0f) + exp(broadcast(0.0f) - y)); }

struct Silu {
    static Lanes of(Lanes x) { return gated_by(x, x); }
};

struct GeluTanh {
    static Lanes of(Lanes x) {
        const Lanes cube = x * x * x;
        return gated_by(x, broadcast(1.5957691216057308f) * fma(broadcast(0.044715f), cube, x));
    }
};

// erfc(x) for x >= 0 within a few units in the last place, after Press et al., "Numerical Recipes" (erfcc).
inline Lanes erfc(Lanes x) {
    const Lanes t = broadcast(1.0f) / fma(broadcast(0.5f), x, broadcast(1.0f));
    Lanes p = broadcast(0.17087277f);
    constexpr float rest[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                              0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    for (const float next : rest) p = fma(p, t, broadcast(next));
    return t * exp(p - x * x);
}

// x times the normal distribution's share below x; what lies above it is small where x is large.
struct Gelu {
    static Lanes of(Lanes x) {
        const Lanes zero = broadcast(0.0f);
        const Lanes size = min(broadcast(20.0f), max(x, zero - x));  // beyond, nothing is left, not even of infinity
        const Lanes beyond = broadcast(0.5f) * erfc(size * broadcast(0.70710678118654752f));
        return max(zero, x) - size * beyond;
    }
};

struct Relu {
    static Lanes of(Lanes x) { return max(broadcast(0.0f), x); }
};

template <class Activation>
void gate(const paceline_gate &a, const Team &team) {
    const int64_t blocks = rounded_up(a.size, width) / width, count = a.rows * blocks;
    for (int64_t index = team.first(count); index < team.last(count); ++index) {
        const int64_t row = index / blocks, i = index % blocks * width, left = a.size - i;
        Lanes y = Activation::of(load_as(a.gate.dtype, address(a.gate, row, i), left));
        if (a.up.data != nullptr) y = y * load_as(a.up.dtype, address(a.up, row, i), left);
        store_as(a.out.dtype, address(a.out, row, i), y, left);
    }
}

inline void run_gate(const void *arguments, const Team &team) {
    const paceline_gate &a = *(const paceline_gate *)arguments;
    switch (a.activation) {
        case PACELINE_SILU: return gate<Silu>(a, team);
        case PACELINE_GELU: return gate<Gelu>(a, team);
        case PACELINE_GELU_TANH: return gate<GeluTanh>(a, team);
        case PACELINE_RELU: return gate<Relu>(a, team);
    }
}
