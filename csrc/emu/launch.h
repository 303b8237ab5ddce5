// SPDX-License-Identifier: Apache-2.0
// Definitions of core/launch.h for the emulator.
#pragma once
#include "emu/cuda.h"

namespace fastds {
namespace {

struct DeviceGuard {
    explicit DeviceGuard(int) {}
};

template <class Kernel>
void allow_shared_bytes(Kernel, int) {}

template <class Kernel>
int get_compiled_capability(Kernel) {
    return 80;
}

inline int count_multiprocessors(int) { return 2; }  // so few that tests cover blocks that process several tiles
inline int get_max_shared_bytes(int) { return 227 << 10; }

}  // namespace
}  // namespace fastds

#define FASTDS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::fastds::emu::emulator.launch(#kernel, grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); })

#define FASTDS_SHARED(type, name, ...)                                  \
    using name##_shared [[maybe_unused]] = type __VA_ARGS__;            \
    static char name##_site;                                           \
    name##_shared& name = *static_cast<name##_shared*>(::fastds::emu::emulator.shared(&name##_site, sizeof(name##_shared)))
#define FASTDS_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::fastds::emu::emulator.dynamic_shared())
