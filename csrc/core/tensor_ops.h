// SPDX-License-Identifier: Apache-2.0
// Batched matrix transpose, column sums of matrices, and casts.
#pragma once
#include <stdint.h>

#include "core/dtype.h"
#include "core/isa.h"

namespace fastds {

// Batched matrix transpose, which converts feature maps between the memory formats channels_last and contiguous.

// Arguments of transpose_matrices(): to[b][column][row] = from[b][row][column]. Both are contiguous with elements of `item`
// bytes, 2 or 4.
struct Transpose {
    const void* from;
    void* to;
    int64_t batch, rows, columns;
    int item, threads;
};

FASTDS_PER_ISA(void transpose_matrices(const Transpose& call))

// Column sums of a matrix. They give the gradient of a bias: the sum of a channels_last gradient over all pixels.

// Arguments of column_sums(): to[column] = sum over rows of from[row][column]. `from` is contiguous and has the type float32,
// bfloat16 or float16.
struct ColumnSums {
    DType dtype;
    int64_t rows, columns;
    const void* from;
    float* to;
    int threads;
};

// column_sums_bytes() returns the size in bytes of the workspace for column_sums(). The results do not depend on `threads`.
FASTDS_PER_ISA(int64_t column_sums_bytes(const ColumnSums& call))
FASTDS_PER_ISA(void column_sums(const ColumnSums& call, char* workspace))

// Casts between float32, bfloat16 and float16 with rounding to nearest even, as torch casts: also subnormal numbers, which the
// instructions for bfloat16 would flush to zero.

// Arguments of cast_elements(): to[i * to_step] = from[i * from_step] for i < count.
struct Cast {
    DType from_dtype, to_dtype;
    int64_t count;
    const void* from;
    void* to;
    int64_t from_step, to_step;
};

// Returns false if a value is NaN. The bits that torch gives a NaN depend on its position in the tensor.
FASTDS_PER_ISA(bool cast_elements(const Cast& call))

}  // namespace fastds
