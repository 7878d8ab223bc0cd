// One level: compiled once per instruction set, with PACELINE_LEVEL its name.
//
// Everything is in an unnamed namespace, and nothing of the C++ library that makes code is used: of two equal inline
// functions the linker keeps one, and that could be the one whose instructions this processor lacks.
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "level.h"

namespace paceline {
namespace {

#include "lanes.h"

#include "scratch.h"

#include "linear.h"

#include "norm.h"

#include "rotary.h"

#include "gate.h"

#include "read.h"

#include "heads.h"

#include "attention.h"

#include "philox.h"

#include "logits.h"

#include "selection.h"

#include "masses.h"

#include "nucleus.h"

#include "shallow.h"

#include "sample.h"

#include "gather.h"

#include "logprobs.h"

#include "trees.h"

#include "step.h"

}  // namespace

#define PACELINE_NAMED(name) level_##name
#define PACELINE_OBJECT(name) PACELINE_NAMED(name)
#define PACELINE_QUOTED(name) #name
#define PACELINE_STRING(name) PACELINE_QUOTED(name)

extern const Level PACELINE_OBJECT(PACELINE_LEVEL);
const Level PACELINE_OBJECT(PACELINE_LEVEL) = {
    PACELINE_STRING(PACELINE_LEVEL),
    {
        {run_linear, linear_scratch},
        {run_rms_norm, no_scratch},
        {run_layer_norm, no_scratch},
        {run_rotary, no_scratch},
        {run_gate, no_scratch},
        {run_read, read_scratch},
        {run_heads, heads_scratch},
        {run_attention, attention_scratch},
        {run_sample, sample_scratch},
        {run_gather, no_scratch},
        {run_logprobs, logprobs_scratch},
        {run_prepare_rows, no_scratch},
        {run_grow_chain, no_scratch},
        {run_grow_tree, no_scratch},
        {run_accept, no_scratch},
        {run_move_cells, no_scratch},
        {run_scatter, no_scratch},
        {run_expand, no_scratch},
        {run_inherit_rows, no_scratch},
        {run_prune_tree, no_scratch},
    },
};

}  // namespace paceline
