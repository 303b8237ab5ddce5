# SPDX-License-Identifier: Apache-2.0
"""What kernels/README.md expects of an H200, in milliseconds, written before any GPU ran the kernels."""

PREDICTED_MS = {
    ("conv3x3", "64 -> 64, 200x200, residual", "forward", "bfloat16", "fastds implicit_gemm"): 0.008,
    ("conv_lstm_cell", "4x24x160x160", "forward", "bfloat16", "fastds triton"): 0.05,
    ("deform_conv2d", "(1,64,200,200) G=8", "forward", "bfloat16", "fastds triton"): 0.04,
    ("deform_conv2d", "(1,64,200,200) G=8", "forward", "bfloat16", "fastds cuda"): 0.034,
    ("deform_conv2d", "(1,64,200,200) G=8", "forward", "float32", "fastds triton"): 0.078,
    ("fczsm", "(1,2,1,200,200)", "forward", "bfloat16", "fastds graph"): 7.0,
    ("inr_query liif", "180x360 x4", "forward", "bfloat16", "fastds triton"): 5.0,
    ("window_attention2d", "4x24x160x160", "forward", "bfloat16", "fastds triton"): 0.135,
}
