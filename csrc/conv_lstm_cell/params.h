// SPDX-License-Identifier: Apache-2.0
// conv_lstm_cell: the 3x3 convolution of [x; h] on the Winograd engine with the LSTM's gates in its output stage.
#pragma once
#include "conv3x3/params.h"

namespace fastds {

// call: as csrc/conv3x3/gates.h asks, four gates in the order i, f, g, o; its dtype is that of x, h and the pre-activations.
struct ConvLstmCell {
    Conv3x3Call call;
    Conv3x3View c, new_c;  // float32
    Conv3x3View new_h;
    Conv3x3View pre;  // (B, 4C, H, W) for the backward; data null: not kept
};

FASTDS_PER_ISA(void conv_lstm_cell(const ConvLstmCell& cell, const Conv3x3Plan& plan, float* workspace))

}  // namespace fastds
