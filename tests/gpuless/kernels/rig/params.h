// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fastds {

void transpose_cuda(const void* x, void* y, int dtype, int rows, int columns, bool sync);
void row_sum_cuda(const void* x, float* y, int dtype, int rows, int n, int threads, int shared_bytes);
void read_cuda(const float* x, float* y, int threads, int shift, bool vector);
void shared_overrun_cuda(float* y, int n);
void stale_shared_cuda(float* y, int blocks);
void barrier_cuda(int* y, int threads, int kind);
void collectives_cuda(const int* x, int* y);
void product_cuda(const void* a, const void* b, float* y, bool half, bool leaves);
void atomics_cuda(const float* x, int* integers, float* maximum, double* sum, int blocks, int threads);
void copy_ahead_cuda(const void* x, void* y, int tiles, int missing, int mistake);
void specialized_cuda(const void* x, void* y, int tiles, int mistake);
void named_cuda(const int* x, int* y, int mistake);
void matrices_cuda(const void* a, const void* b, float* y);
void banks_cuda(const float* x, float* y, int stride, int bytes);
void order_cuda(int* counter, int* y, int blocks, int threads);

}  // namespace fastds
