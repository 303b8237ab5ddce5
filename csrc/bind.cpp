// SPDX-License-Identifier: Apache-2.0
// The Python module _fastds. One register line per op.
#include <pybind11/pybind11.h>

#include "core/bind.h"
#include "core/build_info.h"
#include "core/isa.h"
#include "core/pages.h"

namespace py = pybind11;

namespace fastds {

void register_conv3x3(py::module_& m);
void register_conv_gates(py::module_& m);
void register_deform_conv2d(py::module_& m);
void register_gates(py::module_& m);
void register_inr_query(py::module_& m);
void register_null_op(py::module_& m);
void register_pixel_shuffle(py::module_& m);
void register_window_attention2d(py::module_& m);

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

}  // namespace
}  // namespace fastds

PYBIND11_MODULE(_fastds, m) {
    m.doc() = "Native kernels of fastds: raw addresses in, nothing of torch.";
    m.def("build_info", &fastds::build_info);
    m.def("isa", [] { return fastds::isa_name(fastds::isa()); });
    m.def("set_isa", &fastds::set_isa);
    m.def("use_huge_pages", [](intptr_t address, int64_t bytes) { fastds::use_huge_pages(fastds::pointer(address), bytes); });
    fastds::register_conv3x3(m);
    fastds::register_conv_gates(m);
    fastds::register_deform_conv2d(m);
    fastds::register_gates(m);
    fastds::register_inr_query(m);
    fastds::register_null_op(m);
    fastds::register_pixel_shuffle(m);
    fastds::register_window_attention2d(m);
}
