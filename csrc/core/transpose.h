// SPDX-License-Identifier: Apache-2.0
// Matrices with rows and columns exchanged: the layouts channels_last and contiguous of a map are transposes of each other.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

// to[b][column][row] = from[b][row][column], dense, of numbers of `item` bytes, 2 or 4.
struct Transpose {
    const void* from;
    void* to;
    int64_t batch, rows, columns;
    int item, threads;
};

FASTDS_PER_ISA(void transpose_matrices(const Transpose& call))

}  // namespace fastds
