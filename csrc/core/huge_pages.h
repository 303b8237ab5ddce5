// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastds {

// Advises the operating system to back memory with huge pages before it is written. Without them, each 4 KB of new memory costs
// a page fault. The call has no effect if no huge pages are available.
inline void use_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr intptr_t kHuge = 2 << 20;
    const intptr_t first = reinterpret_cast<intptr_t>(memory);
    const intptr_t begin = (first + kHuge - 1) / kHuge * kHuge, end = (first + bytes) / kHuge * kHuge;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace fastds
