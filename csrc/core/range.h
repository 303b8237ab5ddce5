// SPDX-License-Identifier: Apache-2.0
// Counts and how they are divided.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Range {
    int64_t begin, end;
};

// `count` items as parts of at most `most`, as equal as possible.
inline int64_t parts_of(int64_t count, int64_t most) { return (count + most - 1) / most; }
inline Range part_of(int64_t count, int64_t parts, int64_t part) { return {count * part / parts, count * (part + 1) / parts}; }

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
