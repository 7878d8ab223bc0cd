// The kinds of linears: how a packed weight meets an activation. A kind has
//   Activation  what a row of x becomes before the products, `scales` and `sums` beside it
//   Sum         what a tile sums into, spilled between chunks of the inputs
//   grouped     whether sums of integers are scaled group by group
//   step        inputs whose weights lie together, `step_bytes` of them for 16 outputs
#pragma once

struct Fp32Kind {
    static constexpr bool grouped = false;
    using Activation = float;
    using Sum = Lanes;
    static constexpr int64_t step = 1, step_bytes = 64;
    using Weight = Lanes;
    static Weight weight(const char *p) { return load((const float *)p); }
    static Lanes activation(const float *x) { return broadcast(*x); }
    static Lanes accumulate(Lanes sum, Lanes x, Weight w) { return fma(x, w, sum); }
};

struct Fp16Kind : Fp32Kind {
    static constexpr int64_t step_bytes = 32;
    static Weight weight(const char *p) { return load((const Fp16 *)p); }
};

struct Bf16Kind {
    static constexpr bool grouped = false;
    using Activation = Bf16;
    using Sum = Lanes;
    static constexpr int64_t step = 2, step_bytes = 64;
#ifdef PACELINE_DOT_BF16
    using Weight = Quads;
    static Weight weight(const char *p) { return stream_quads(p); }
    static Quads activation(const Bf16 *x) { return broadcast_quad(x); }
    static Lanes accumulate(Lanes sum, Quads x, Weight w) { return dot_bf16(sum, x, w); }
#else
    struct Weight {
        Lanes low, high;
    };
    static Weight widened(Quads both) { return {low_halves(both), high_halves(both)}; }
    static Weight weight(const char *p) { return widened(stream_quads(p)); }
    static Weight activation(const Bf16 *x) { return widened(broadcast_quad(x)); }
    static Lanes accumulate(Lanes sum, Weight x, Weight w) { return fma(x.high, w.high, fma(x.low, w.low, sum)); }
#endif
};

struct Int8Kind {
    static constexpr bool grouped = false;
    using Activation = int8_t;
    using Sum = Ints;
    static constexpr int64_t step = 4, step_bytes = 64;
    using Weight = Quads;
    static Weight weight(const char *p) { return stream_quads(p); }
    static Quads activation(const int8_t *x) { return broadcast_quad(x); }
    static Ints accumulate(Ints sum, Quads x, Weight w) { return dot_bytes(sum, x, w); }
};

struct Int4Kind {
    static constexpr bool grouped = true;
    using Activation = int8_t;
    using Sum = Lanes;
    static constexpr int64_t step = 8, step_bytes = 64;
};

inline Lanes zero_of(const Lanes *) { return broadcast(0.0f); }
inline Ints zero_of(const Ints *) { return broadcast((int32_t)0); }
template <class Sum>
inline Sum zero() {
    return zero_of((const Sum *)nullptr);
}
