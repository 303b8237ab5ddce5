// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>

#include <tuple>
#include <utility>
#include <vector>

namespace fastds {

// Returns the number of threads, 1 or 2, that choose_team would select for each of a sequence of loops, and that of torch inside of a
// scope at this time. Loops are given as (duration on two threads in ns, duration on one thread in ns, whether the machine has an
// idle core when the loop starts). For tests.
std::vector<std::pair<int, int>> simulate_teams(const std::vector<std::tuple<int64_t, int64_t, bool>>& loops);

}  // namespace fastds
