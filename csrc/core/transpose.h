// SPDX-License-Identifier: Apache-2.0
// Batched matrix transpose, which converts feature maps between the memory formats channels_last and contiguous.
#pragma once
#include <stdint.h>

#include "core/isa.h"

namespace fastds {

// Arguments of transpose_matrices(): to[b][column][row] = from[b][row][column]. Both are contiguous with elements of `item`
// bytes, 2 or 4.
struct Transpose {
    const void* from;
    void* to;
    int64_t batch, rows, columns;
    int item, threads;
};

FASTDS_PER_ISA(void transpose_matrices(const Transpose& call))

}  // namespace fastds
