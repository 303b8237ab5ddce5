// SPDX-License-Identifier: Apache-2.0
// Defines the Python module _fastds. setup.py generates ops.h, which includes the bind.h of each op and defines the macro
// FASTDS_OPS, which applies its argument to the name of each op.
#include <pybind11/pybind11.h>

#include <cstring>

#include "core/arguments.h"
#include "core/call_plans.h"
#include "core/common.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/team_simulation.h"
#include "core/tensor_ops.h"
#include "ops.h"

namespace py = pybind11;

namespace fastds {
namespace {

py::dict build_info() {
    py::list built, usable;
    for (Isa candidate : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        const bool in_build = candidate == Isa::baseline || (candidate == Isa::avx2 && FASTDS_BUILD_AVX2) ||
                              (candidate == Isa::avx512 && FASTDS_BUILD_AVX512);
        if (in_build) built.append(isa_name(candidate));
        if (isa_usable(candidate)) usable.append(isa_name(candidate));
    }
    py::dict info;
    info["source_hash"] = build_source_hash;
    info["compiler"] = build_compiler;
    info["debug"] = build_debug;
    info["isa_built"] = built;
    info["isa_usable"] = usable;
    info["isa"] = isa_name(isa());
    info["cuda"] = static_cast<bool>(FASTDS_BUILD_CUDA);
    info["cuda_archs"] = build_cuda_archs;
    return info;
}

// Batched transpose: to[b][column][row] = from[b][row][column].
void transpose(intptr_t from, intptr_t to, int64_t batch, int64_t rows, int64_t columns, int item, int threads) {
    FASTDS_CHECK(item == 2 || item == 4, "transpose: expected elements of 2 or 4 bytes");
    const Transpose call{to_pointer(from), to_pointer(to), batch, rows, columns, item, threads};
    py::gil_scoped_release release;
    FASTDS_DISPATCH(transpose_matrices, call);
}

// Compares two memory regions byte by byte.
bool same_bytes(intptr_t a, intptr_t b, int64_t bytes, int threads) {
    constexpr int64_t kMinThreadedBytes = 256 << 10;  // bytes; smaller regions are compared by one thread
    const char *one = static_cast<const char*>(to_pointer(a)), *other = static_cast<const char*>(to_pointer(b));
    if (bytes < kMinThreadedBytes) return std::memcmp(one, other, bytes) == 0;
    py::gil_scoped_release release;
    int different = 0;
    once::parallel_for(bytes, threads, [&](int64_t begin, int64_t end) {
        if (std::memcmp(one + begin, other + begin, end - begin) != 0) __atomic_store_n(&different, 1, __ATOMIC_RELAXED);
    });
    return different == 0;
}

// to[column] = sum over rows of from[row][column]. Returns the required workspace in bytes. If the given workspace is smaller,
// nothing else is done.
int64_t sum_columns(int dtype, int64_t rows, int64_t columns, intptr_t from, intptr_t to, int threads, intptr_t workspace,
                    int64_t bytes) {
    FASTDS_CHECK(dtype != f64, "column_sums: no kernel for float64");
    FASTDS_CHECK(rows > 0 && columns > 0, "column_sums: the matrix is empty");
    const ColumnSums call{to_dtype(dtype), rows, columns, to_pointer(from), static_cast<float*>(to_pointer(to)), threads};
    py::gil_scoped_release release;
    const int64_t needed = FASTDS_DISPATCH(column_sums_bytes, call);
    if (needed <= bytes) FASTDS_DISPATCH(column_sums, call, static_cast<char*>(to_pointer(workspace)));
    return needed;
}

// Writes the gradients of `count` inputs of an activation: those of its outputs y where y > 0, and slope times those elsewhere.
void backpropagate_activation(int64_t count, float slope, intptr_t grad_y, intptr_t y, intptr_t grad_x) {
    const auto* grads = static_cast<const float*>(to_pointer(grad_y));
    const auto* values = static_cast<const float*>(to_pointer(y));
    auto* out = static_cast<float*>(to_pointer(grad_x));
    for (int64_t i = 0; i < count; i++) out[i] = values[i] > 0 ? grads[i] : slope * grads[i];
}

template <class T>
void add_all(int64_t count, const void* from, void* to) {
    const T* addends = static_cast<const T*>(from);
    T* sums = static_cast<T*>(to);
    for (int64_t i = 0; i < count; i++) sums[i] = once::store<T>(once::load(sums[i]) + once::load(addends[i]));
}

// to[i] += from[i] for `count` elements of float32, bfloat16 or float16.
void add_elements(int dtype, int64_t count, intptr_t from, intptr_t to) {
    FASTDS_CHECK(dtype != f64, "add_elements: no kernel for float64");
    if (to_dtype(dtype) == f32) return add_all<float>(count, to_pointer(from), to_pointer(to));
    if (to_dtype(dtype) == bf16) return add_all<once::BFloat16>(count, to_pointer(from), to_pointer(to));
    add_all<once::Half>(count, to_pointer(from), to_pointer(to));
}

}  // namespace
}  // namespace fastds

PYBIND11_MODULE(_fastds, m) {
    m.doc() = "Native kernels of fastds. The functions take raw addresses and do not depend on torch.";
    m.def("build_info", &fastds::build_info);
    m.def("isa", [] { return fastds::isa_name(fastds::isa()); });
    m.def("set_isa", &fastds::set_isa);
    m.def("set_team_mode", &fastds::set_team_mode);
    m.def("simulate_teams", &fastds::simulate_teams);
    m.def("begin_scope", &fastds::begin_scope);
    m.def("end_scope", &fastds::end_scope);
    m.def("scope_threads", &fastds::scope_threads);
    m.def("set_thread_functions", [](intptr_t openmp, intptr_t mkl) {
        fastds::set_thread_functions(reinterpret_cast<void (*)(int)>(openmp), reinterpret_cast<int (*)(int)>(mkl));
    });
    m.def("use_huge_pages", [](intptr_t address, int64_t bytes) { fastds::once::use_huge_pages(fastds::to_pointer(address), bytes); });
    fastds::bind_function(m, "same_bytes", &fastds::same_bytes, "");
    m.def("transpose", &fastds::transpose);
    m.def("column_sums", &fastds::sum_columns);
    m.def("backpropagate_activation", &fastds::backpropagate_activation);
    m.def("add_elements", &fastds::add_elements);
    fastds::plans::register_plans(m);
#define FASTDS_REGISTER(op) fastds::register_##op(m);
    FASTDS_OPS(FASTDS_REGISTER)
}
