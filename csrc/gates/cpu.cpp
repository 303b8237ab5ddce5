// SPDX-License-Identifier: Apache-2.0
#include "gates/blocks.h"

namespace fastds {
namespace FASTDS_ISA {

void gates_cpu(const GatesParams& params, int threads) {
#if FASTDS_DOUBLE
    if (params.is_double) return run<double>(params, threads);
#endif
    run<float>(params, threads);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
