// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastds {

// Asks the system for huge pages in memory that is about to be written. Memory fresh from the system costs a page fault per
// 4 KB otherwise; where the system has none to give, nothing changes.
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
