// What a level is: the kernels compiled for one instruction set.
#pragma once

#include "paceline_native.h"
#include "team.h"

namespace paceline {

struct Kernel {
    void (*run)(const void *arguments, const Team &team);
    size_t (*scratch)(const void *arguments, int64_t team_size);
};

struct Level {
    const char *name;
    Kernel kernels[PACELINE_NUM_CODES];
};

}  // namespace paceline
