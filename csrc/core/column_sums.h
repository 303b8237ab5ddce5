// SPDX-License-Identifier: Apache-2.0
// Sums over the rows of a matrix: of a map in channels_last over all pixels, the gradient of a bias.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace fastds {

// to[column] = sum over the rows of from[row][column], dense, of float32, bfloat16 or float16.
struct ColumnSums {
    DType dtype;
    int64_t rows, columns;
    const void* from;
    float* to;
    int threads;
};

// Bytes of workspace, and the function that needs it. The numbers do not depend on threads.
FASTDS_PER_ISA(int64_t column_sums_bytes(const ColumnSums& call))
FASTDS_PER_ISA(void column_sums(const ColumnSums& call, char* workspace))

}  // namespace fastds
