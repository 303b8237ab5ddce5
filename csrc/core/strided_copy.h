// SPDX-License-Identifier: Apache-2.0
// Copies and casts of tensors between memory layouts, for plans of calls (core/call_plans.h).
#pragma once
#include <stdint.h>

#include <cstring>
#include <vector>

#include "core/arguments.h"
#include "core/tensor_ops.h"

namespace fastds::plans {

// Sizes and strides of the elements of a source and a target with the same shape. Strides are in elements.
struct Layouts {
    const std::vector<int64_t>&shape, &from_strides, &to_strides;

    // Returns the number of elements if both tensors fill the same memory layout without gaps, else 0.
    int64_t count_dense() const {
        int64_t count = 1, last = 0;
        for (size_t k = 0; k < shape.size(); ++k) {
            if (shape[k] > 1 && from_strides[k] != to_strides[k]) return 0;
            count *= shape[k];
            last += (shape[k] - 1) * from_strides[k];
        }
        return last + 1 == count ? count : 0;
    }

    // Calls function(from, to, count, from step, to step) for each row along the last dimension, with the positions of its first
    // elements, or once for all elements of dense tensors.
    template <class Function>
    void for_rows(const Function& function) const {
        if (const int64_t count = count_dense()) return function(int64_t{0}, int64_t{0}, count, int64_t{1}, int64_t{1});
        const size_t last = shape.size() - 1;
        std::vector<int64_t> index(shape.size(), 0);
        int64_t rows = 1, from = 0, to = 0;
        for (size_t k = 0; k < last; ++k) rows *= shape[k];
        for (int64_t row = 0; row < rows; ++row) {
            function(from, to, shape[last], from_strides[last], to_strides[last]);
            for (size_t k = last; k-- > 0;) {
                from += from_strides[k];
                to += to_strides[k];
                if (++index[k] < shape[k]) break;
                from -= shape[k] * from_strides[k];
                to -= shape[k] * to_strides[k];
                index[k] = 0;
            }
        }
    }
};

template <int Bytes>
void copy_row(const char* from, char* to, int64_t count, int64_t from_step, int64_t to_step) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * to_step * Bytes, from + i * from_step * Bytes, Bytes);
}

// Copies elements of `bytes` bytes.
inline void copy_strided(intptr_t from, intptr_t to, int bytes, const std::vector<int64_t>& shape,
                         const std::vector<int64_t>& from_strides, const std::vector<int64_t>& to_strides) {
    Layouts{shape, from_strides, to_strides}.for_rows(
        [&](int64_t source, int64_t target, int64_t count, int64_t from_step, int64_t to_step) {
            const char* read = static_cast<const char*>(to_pointer(from)) + source * bytes;
            char* write = static_cast<char*>(to_pointer(to)) + target * bytes;
            if (from_step == 1 && to_step == 1) {
                std::memcpy(write, read, count * bytes);
            } else if (bytes == 4) {
                copy_row<4>(read, write, count, from_step, to_step);
            } else if (bytes == 2) {
                copy_row<2>(read, write, count, from_step, to_step);
            } else {
                for (int64_t i = 0; i < count; ++i)
                    std::memcpy(write + i * to_step * bytes, read + i * from_step * bytes, bytes);
            }
        });
}

// Casts elements from float32, bfloat16 or float16 to another of these types. Returns false if a value is NaN.
inline bool cast_strided(intptr_t from, intptr_t to, int from_dtype, int to_dtype, const std::vector<int64_t>& shape,
                         const std::vector<int64_t>& from_strides, const std::vector<int64_t>& to_strides) {
    const DType source_dtype = fastds::to_dtype(from_dtype), target_dtype = fastds::to_dtype(to_dtype);
    FASTDS_CHECK(source_dtype != f64 && target_dtype != f64, "cast_strided: float64 is not supported");
    const int from_bytes = source_dtype == f32 ? 4 : 2, to_bytes = target_dtype == f32 ? 4 : 2;
    bool valid = true;
    Layouts{shape, from_strides, to_strides}.for_rows(
        [&](int64_t source, int64_t target, int64_t count, int64_t from_step, int64_t to_step) {
            const Cast call{source_dtype, target_dtype, count, static_cast<const char*>(to_pointer(from)) + source * from_bytes,
                            static_cast<char*>(to_pointer(to)) + target * to_bytes, from_step, to_step};
            valid &= FASTDS_DISPATCH(cast_elements, call);
        });
    return valid;
}

}  // namespace fastds::plans
