// SPDX-License-Identifier: Apache-2.0
// Batched matrix transpose. Each task transposes one strip of columns over all rows, so that the cache lines that it writes
// stay in the cache until they are full.
#include "core/transpose.h"

#include "core/parallel.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kStripColumns = 64, kMinThreadedElements = 32 << 10;  // elements; smaller batches run on one thread

template <class T>
void transpose_batch(const Transpose& call) {
    const int64_t strips = (call.columns + kStripColumns - 1) / kStripColumns, size = call.rows * call.columns;
    parallel_for(call.batch * strips, call.batch * size < kMinThreadedElements ? 1 : call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            const int64_t image = task / strips * size, first = task % strips * kStripColumns;
            const int64_t columns = first + kStripColumns < call.columns ? kStripColumns : call.columns - first;
            transpose_rows(static_cast<const T*>(call.from) + image + first, call.columns, call.rows, columns,
                 static_cast<T*>(call.to) + image + first * call.rows, call.rows);
        }
    });
}

}  // namespace

void transpose_matrices(const Transpose& call) {
    if (call.item == 2)
        transpose_batch<uint16_t>(call);
    else
        transpose_batch<uint32_t>(call);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
