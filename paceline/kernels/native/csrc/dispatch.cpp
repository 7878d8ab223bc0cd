// The C interface: which levels there are, which this processor can run, and the running of ops.
#include <algorithm>
#include <atomic>
#include <new>

#include "level.h"

namespace paceline {

#define PACELINE_DECLARE(name) extern const Level level_##name
PACELINE_DECLARE(generic);
PACELINE_DECLARE(avx2);
PACELINE_DECLARE(avx512);
PACELINE_DECLARE(avx512_bf16);
PACELINE_DECLARE(neon);

namespace {

struct Choice {
    const Level *level;
    bool supported;
};

#if defined(__x86_64__)
// Every processor with AVX2 and FMA has F16C too, a name that not every compiler can ask for.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Choice choices[] = {
#ifdef PACELINE_HAS_generic
    {&level_generic, true},
#endif
#ifdef PACELINE_HAS_neon
    {&level_neon, true},
#endif
#ifdef PACELINE_HAS_avx2
    {&level_avx2, has_avx2()},
#endif
#ifdef PACELINE_HAS_avx512
    {&level_avx512, has_avx512()},
#endif
#ifdef PACELINE_HAS_avx512_bf16
    {&level_avx512_bf16,
     has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")},
#endif
};
constexpr int64_t num_choices = sizeof(choices) / sizeof(choices[0]);

struct Program {
    const Level &level;
    const paceline_op *ops;
    int64_t count;
    const int32_t *interrupt;
    mutable std::atomic<int64_t> end;  // the op before which all threads stop
};

bool interrupted(const int32_t *flag) { return flag != nullptr && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0; }

size_t scratch_of(const void *context, int64_t team_size) {
    const Program &program = *static_cast<const Program *>(context);
    size_t most = 0;
    for (int64_t i = 0; i < program.count; ++i) {
        const paceline_op &op = program.ops[i];
        most = std::max(most, program.level.kernels[op.code].scratch(op.arguments, team_size));
    }
    return most;
}

// Whether the op before number `i`, which all threads are behind, ended the last round: every request has ended. K/V that
// the round accepted are moved all the same, since they stay cached. Only ops that end a round write the flag, and none of
// them starts one, so that nobody can write it before all have read it.
bool ended_before(const paceline_op *ops, int64_t i) {
    if (ops[i].code == PACELINE_MOVE_CELLS) return false;
    int64_t last = i - 1;
    if (last > 0 && ops[last].code == PACELINE_MOVE_CELLS) --last;
    return ops[last].code == PACELINE_ACCEPT && *static_cast<const paceline_accept *>(ops[last].arguments)->all_ended;
}

void run_program(const void *context, const Team &team) {
    const Program &program = *static_cast<const Program *>(context);
    for (int64_t i = 0; i < program.count; ++i) {
        if (i > 0) {
            // One thread looks, so that all stop before the same op: it writes before it waits, and they read behind that.
            if (team.index == 0 && interrupted(program.interrupt)) program.end.store(i, std::memory_order_relaxed);
            team.wait();
            if (ended_before(program.ops, i) || program.end.load(std::memory_order_relaxed) <= i) return;
        }
        program.level.kernels[program.ops[i].code].run(program.ops[i].arguments, team);
    }
}

bool supported(int64_t level) { return level >= 0 && level < num_choices && choices[level].supported; }

}  // namespace
}  // namespace paceline

using namespace paceline;

int64_t paceline_interface_version(void) { return PACELINE_INTERFACE_VERSION; }

const char *paceline_level_name(int64_t level) {
    return level >= 0 && level < num_choices ? choices[level].level->name : nullptr;
}

int64_t paceline_level_supported(int64_t level) { return supported(level); }

int64_t paceline_run(int64_t level, const paceline_op *ops, int64_t count, int64_t num_threads,
                     const int32_t *interrupt) {
    if (!supported(level)) return PACELINE_NO_SUCH_LEVEL;
    for (int64_t i = 0; i < count; ++i)
        if (ops[i].code < 0 || ops[i].code >= PACELINE_NUM_CODES) return PACELINE_NO_SUCH_CODE;
    if (interrupted(interrupt)) return PACELINE_INTERRUPTED;
    const Program program{*choices[level].level, ops, count, interrupt, {count}};
    try {
        run_region(run_program, &program, std::max<int64_t>(1, num_threads), scratch_of);
    } catch (const std::bad_alloc &) {
        return PACELINE_NO_MEMORY;
    }
    return program.end.load(std::memory_order_relaxed) < count ? PACELINE_INTERRUPTED : PACELINE_OK;
}
