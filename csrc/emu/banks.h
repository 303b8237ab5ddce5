// SPDX-License-Identifier: Apache-2.0
// Counts bank conflicts of kernels that the emulator runs. The kernels are compiled with -fsanitize=thread but not linked with its
// library: g++ then calls the functions below before each access to memory. This file belongs to a source without that flag.
//
// Shared memory has 32 banks of 4 bytes. A warp accesses at most one word of each bank at a time, and one word for all lanes that
// access it. Accesses of 8 bytes are served for 16 lanes at a time, and those of 16 bytes for 8 lanes. The k-th accesses of the
// lanes of a warp by the same instruction after the same barrier or collective are taken for one access of the warp.
#pragma once
#include <array>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "emu/emulator.h"

namespace fastds {
namespace emu {

// Accesses of all warps to shared memory by one instruction.
struct BankUse {
    bool writes;
    int bytes;           // of a lane
    uint64_t accesses;   // of a warp
    uint64_t wavefronts; // times at which the banks are read or written for them
    uint64_t least;      // the same without conflicts
};

class BankCounter {
  public:
    std::map<std::pair<std::string, uint64_t>, BankUse> uses;  // by kernel and address of the instruction

    void record(const void* address, int bytes, bool writes, const void* instruction) {
        if (busy_) return;
        busy_ = true;
        if (emulator.is_shared(address)) {
            const unsigned thread = emulator.thread(), waits = emulator.waits();
            const auto code = reinterpret_cast<uint64_t>(instruction);
            const unsigned count = counts_[{thread, code, waits}]++;
            Access& access = accesses_[{thread / 32, code, waits, count}];
            access.writes = writes, access.bytes = bytes;
            access.lanes.push_back({thread % 32, reinterpret_cast<uint64_t>(address)});
        }
        busy_ = false;
    }

    void finish_block(const std::string& kernel) {
        busy_ = true;
        for (const auto& entry : accesses_) {
            const Access& access = entry.second;
            BankUse& use = uses[{kernel, std::get<1>(entry.first)}];
            use.writes = access.writes, use.bytes = access.bytes;
            use.accesses++;
            add_wavefronts(access, use);
        }
        accesses_.clear(), counts_.clear();
        busy_ = false;
    }

  private:
    struct Access {
        bool writes = false;
        int bytes = 0;
        std::vector<std::pair<unsigned, uint64_t>> lanes;  // lane and address
    };

    static void add_wavefronts(const Access& access, BankUse& use) {
        const unsigned together = access.bytes <= 4 ? 32 : access.bytes <= 8 ? 16 : 8;
        std::map<unsigned, std::array<std::set<uint64_t>, 32>> words;  // of each group of lanes and bank
        for (const auto& [lane, address] : access.lanes)
            for (uint64_t word = address / 4; word <= (address + access.bytes - 1) / 4; word++)
                words[lane / together][word % 32].insert(word);
        for (const auto& [group, banks] : words) {
            size_t most = 0;
            for (const auto& bank : banks) most = std::max(most, bank.size());
            use.wavefronts += most, use.least++;
        }
    }

    bool busy_ = false;  // during its own accesses to memory
    std::map<std::tuple<unsigned, uint64_t, unsigned>, unsigned> counts_;  // accesses of a thread by an instruction
    std::map<std::tuple<unsigned, uint64_t, unsigned, unsigned>, Access> accesses_;
};

inline BankCounter bank_counter;

}  // namespace emu
}  // namespace fastds

#define FASTDS_EMU_ACCESS(name, bytes, writes)                                                                       \
    extern "C" void __tsan_##name##bytes(void* address) {                                                             \
        fastds::emu::bank_counter.record(address, bytes, writes, __builtin_return_address(0));                       \
    }
#define FASTDS_EMU_ACCESSES(bytes)                  \
    FASTDS_EMU_ACCESS(read, bytes, false)           \
    FASTDS_EMU_ACCESS(unaligned_read, bytes, false) \
    FASTDS_EMU_ACCESS(write, bytes, true)           \
    FASTDS_EMU_ACCESS(unaligned_write, bytes, true)
FASTDS_EMU_ACCESSES(1)
FASTDS_EMU_ACCESSES(2)
FASTDS_EMU_ACCESSES(4)
FASTDS_EMU_ACCESSES(8)
FASTDS_EMU_ACCESSES(16)
#undef FASTDS_EMU_ACCESSES
#undef FASTDS_EMU_ACCESS

// Structs that are no vector are copied word by word.
extern "C" void __tsan_read_range(char* address, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4)
        fastds::emu::bank_counter.record(address + i, 4, false, static_cast<char*>(__builtin_return_address(0)) + i);
}
extern "C" void __tsan_write_range(char* address, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4)
        fastds::emu::bank_counter.record(address + i, 4, true, static_cast<char*>(__builtin_return_address(0)) + i);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}
