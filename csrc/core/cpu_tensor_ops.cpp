// SPDX-License-Identifier: Apache-2.0
// Batched matrix transpose, column sums and casts.
#include "core/tensor_ops.h"

#include "core/gemm.h"
#include "core/masked_io.h"
#include "core/parallel.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Batched matrix transpose. Each task transposes one strip of columns over all rows, so that the cache lines that it writes
// stay in the cache until they are full.

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

// Column sums: the rows are divided into up to kMaxParts parts with one accumulator each. Within a part, a few rows that fit
// into the cache are summed for a few vectors of columns at a time.

constexpr int64_t kMaxParts = 16, kPartElements = 16 << 10;  // lower bound for the elements of a part
constexpr int64_t kCachedElements = 8 << 10;

int64_t count_summed_parts(const ColumnSums& call) {
    return min_of(min_of(kMaxParts, call.rows), 1 + call.rows * call.columns / kPartElements);
}

// Computes sums[column] += from[row][column] for `rows` rows.
template <class T>
void add_rows(const T* from, int64_t rows, int64_t columns, float* sums) {
    for_column_blocks<float>(columns, [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value;
        const int last = static_cast<int>(min_of(kL, columns - column - (NV - 1) * kL));
        V acc[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[j] = load_vec<kL>(sums + column + j * kL);
        const T* at = from + column;
        for (int64_t r = 0; r < rows; r++, at += columns) {
#pragma GCC unroll 4
            for (int j = 0; j < NV - 1; j++) acc[j] += load_vec<kL>(at + j * kL);
            acc[NV - 1] += load_partial(at + (NV - 1) * kL, last);
        }
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) store_vec<kL>(sums + column + j * kL, acc[j]);
    });
}

template <class T>
void add_part(const ColumnSums& call, Range rows, float* sums) {
    const int64_t some = 1 + kCachedElements / call.columns;
    __builtin_memset(sums, 0, round_up(call.columns, kL) * sizeof(float));
    for (int64_t r = rows.begin; r < rows.end; r += some)
        add_rows(static_cast<const T*>(call.from) + r * call.columns, min_of(some, rows.end - r), call.columns, sums);
}

// Returns the number of rows that are treated as one long row. It is 1 unless a row is shorter than a vector.
int64_t count_merged_rows(const ColumnSums& call) { return call.columns < kL ? kTileVectors * kL / call.columns : 1; }

ColumnSums merge_rows(ColumnSums call) {
    const int64_t many = count_merged_rows(call);
    call.rows /= many;
    call.columns *= many;
    return call;
}

template <class T>
void run(const ColumnSums& given, float* sums) {
    const ColumnSums call = merge_rows(given);
    const int64_t parts = count_summed_parts(call), row = round_up(call.columns, kL);
    parallel_for(parts, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++) add_part<T>(call, get_part(call.rows, parts, part), sums + part * row);
    });
    for (int64_t part = 1; part < parts; part++)
        for (int64_t c = 0; c < row; c += kL)
            store_vec<kL>(sums + c, V(load_vec<kL>(sums + c) + load_vec<kL>(sums + part * row + c)));
    const int64_t columns = given.columns, done = call.rows * call.columns;
    const T* rest = static_cast<const T*>(given.from) + done;
    for (int64_t c = 0; c < columns; c++) {
        float total = done == 0 ? 0.f : sums[c];
        for (int64_t at = c + columns; at < call.columns && done > 0; at += columns) total += sums[at];
        for (int64_t at = c; at < given.rows * columns - done; at += columns) total += load(rest[at]);
        given.to[c] = total;
    }
}

// Casts.

// Stores a vector without NaN.
template <class T>
void store_rounded(T* to, V v) {
    store_vec<kL>(to, v);
}
void store_rounded(BFloat16* to, V v) {
    const auto bits = (Vec<uint32_t>)v;
    const auto rounded = __builtin_convertvector((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, Vec<uint16_t, kL>);
    __builtin_memcpy(to, &rounded, sizeof(rounded));
}

template <class From, class To>
bool cast_all(const Cast& call) {
    const From* from = static_cast<const From*>(call.from);
    To* to = static_cast<To*>(call.to);
    int64_t i = 0;
    Vec<int32_t> ordered = Vec<int32_t>{} - 1;
    if (call.from_step == 1 && call.to_step == 1)
        for (; i + kL <= call.count; i += kL) {
            const V v = load_vec<kL>(from + i);
            ordered &= (Vec<int32_t>)(v == v);
            store_rounded(to + i, v);
        }
    bool valid = all_lanes(ordered);
    for (; i < call.count; i++) {
        const float value = load(from[i * call.from_step]);
        valid &= value == value;
        to[i * call.to_step] = store<To>(value);
    }
    return valid;
}

template <class From>
bool cast_from(const Cast& call) {
    if (call.to_dtype == f32) return cast_all<From, float>(call);
    return call.to_dtype == bf16 ? cast_all<From, BFloat16>(call) : cast_all<From, Half>(call);
}

}  // namespace

bool cast_elements(const Cast& call) {
    if (call.from_dtype == f32) return cast_from<float>(call);
    return call.from_dtype == bf16 ? cast_from<BFloat16>(call) : cast_from<Half>(call);
}

void transpose_matrices(const Transpose& call) {
    if (call.item == 2)
        transpose_batch<uint16_t>(call);
    else
        transpose_batch<uint32_t>(call);
}

int64_t column_sums_bytes(const ColumnSums& given) {
    const ColumnSums call = merge_rows(given);
    return count_summed_parts(call) * round_up(call.columns, kL) * static_cast<int64_t>(sizeof(float));
}

void column_sums(const ColumnSums& call, char* workspace) {
    float* sums = reinterpret_cast<float*>(workspace);
    if (call.dtype == f32) return run<float>(call, sums);
    call.dtype == bf16 ? run<BFloat16>(call, sums) : run<Half>(call, sums);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
