// SPDX-License-Identifier: Apache-2.0
// Constants that describe the build. setup.py writes their definitions into the build folder, next to build.ninja.
#pragma once

namespace fastds {

extern const char* const build_source_hash;  // hash of csrc/ and setup.py, see fastds/_source_hash.py
extern const char* const build_compiler;
extern const char* const build_debug;       // value of FASTDS_DEBUG
extern const char* const build_cuda_archs;  // for example "80 90"; empty without CUDA

}  // namespace fastds
