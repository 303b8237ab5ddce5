// SPDX-License-Identifier: Apache-2.0
// Constants that setup.py writes beside build.ninja.
#pragma once

namespace fastds {

extern const char* const build_source_hash;  // of csrc and setup.py, see fastds/_source_hash.py
extern const char* const build_compiler;
extern const char* const build_debug;       // FASTDS_DEBUG
extern const char* const build_cuda_archs;  // "80 90", empty without CUDA

}  // namespace fastds
