// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle on the CPU, parallel over rows of coarse pixels. Memory bandwidth limits its speed. Where whole vectors are
// read, bias, activation and gradients are computed in the same step as the permutation in registers (cpu_permute.h). Otherwise
// their results for some pixels are first stored in memory order in a buffer in the L1 cache, which is then permuted
// (cpu_fused.h).
#include "core/parallel.h"
#include "pixel_shuffle/cpu_fused.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Returns the number of coarse pixels of a row that are computed together. It is large enough that the overhead of a
// permutation call does not matter.
int64_t count_pixels_together(const PixelShuffleParams& p) {
    constexpr int64_t elements = 2048;
    const int64_t most = elements / (p.C * p.r * p.r), fitting = most > 1 ? most : 1;
    const int64_t parts = (p.W + fitting - 1) / fitting;
    return (p.W + parts - 1) / parts;
}

// Returns the number of values per channel array (bias or sums). With a single channel, the values are repeated to fill whole
// vectors (cpu_permute.h).
template <class T>
int64_t channel_values(const PixelShuffleParams& p) {
    return p.C == 1 ? p.r * kWhole<bits_t<T>> : p.C * p.r * p.r;
}

template <class T>
void forward_in_registers(const ShuffleLayout<T>& layout, const PixelShuffleForward& t, int threads) {
    using A = compute_t<T>;
    using U = bits_t<T>;
    parallel_for(layout.p.B * layout.p.H, threads, [=](int64_t begin, int64_t end) {
        const PixelShuffleParams& p = layout.p;
        const Buffer<A> biases(channel_values<T>(p));
        for (int64_t k = 0; k < channel_values<T>(p); k++)
            biases[k] = static_cast<const A*>(t.bias)[p.C == 1 ? k % (p.r * p.r) : k];
        for (int64_t row = begin; row < end; row++) {
            const ActivatedSource<T> coarse{static_cast<const T*>(t.x) + layout.coarse(row), biases, layout.act};
            U* fine = static_cast<U*>(t.y) + layout.fine(row);
            dispatch_factor(p.r, [&](auto r) {
                to_fine<decltype(r)::value>(p.C, layout.streamed, coarse, p.W, fine, layout.row_stride);
            });
        }
        if (layout.streamed) end_stream();
    });
}

template <class T>
void forward_rows(const ShuffleLayout<T>& layout, const PixelShuffleForward& t, int threads) {
    using A = compute_t<T>;
    using U = bits_t<T>;
    parallel_for(layout.p.B * layout.p.H, threads, [=](int64_t begin, int64_t end) {
        const ShuffleLayout<T> local = layout;  // a local copy stays in registers; a reference would be reloaded after each store
        const PixelShuffleParams& p = local.p;
        const int64_t together = count_pixels_together(p), run = p.r * p.C, pixel = p.r * run;
        const ToFine<U> to_fine(p, local.streamed, together);
        const Buffer<T> computed(together * pixel);
        const ZeroedBuffer<A> biases(t.bias ? together * pixel : 0);
        for (int64_t w = 0; t.bias && w < together; w++) __builtin_memcpy(biases + w * pixel, t.bias, pixel * sizeof(A));
        const A* bias = t.bias ? static_cast<A*>(biases) : nullptr;
        for (int64_t row = begin; row < end; row++)
            for (int64_t w = 0; w < p.W; w += together) {
                const int64_t count = p.W - w < together ? p.W - w : together;
                const T* coarse = static_cast<const T*>(t.x) + local.coarse(row) + w * pixel;
                T* fine = static_cast<T*>(t.y) + local.fine(row) + w * run;
                if (bias || to_fine.needs_room()) {
                    compute_activation<false>(local, coarse, bias, count * pixel, static_cast<T*>(computed));
                    coarse = computed;
                }
                to_fine((const U*)coarse, count, (U*)fine, local.row_stride);
            }
        if (local.streamed) end_stream();
    });
}

// The backward pass of one thread.
template <class T>
class Backward {
    using A = compute_t<T>;
    using U = bits_t<T>;

  public:
    Backward(const ShuffleLayout<T>& layout, const PixelShuffleBackward& tensors)
        : layout_(layout),
          t_(tensors),
          together_(count_pixels_together(layout.p)),
          run_(layout.p.r * layout.p.C),
          fine_row_(together_ * run_),
          moved_(tensors.grad_x && !tensors.y && !tensors.grad_bias && !ToCoarse<U>::needs_room(layout.p)),
          computed_(moved_ ? 0 : layout.p.r * fine_row_),
          totals_(layout.p.r * fine_row_ + kLanes<A>),
          to_coarse_(layout.p, layout.streamed, together_, moved_ ? layout.row_stride : fine_row_) {}

    // Processes the rows [begin, end) of coarse pixels. `sums`, unless null, receives the gradient of the bias.
    void rows(int64_t begin, int64_t end, A* sums) const {
        const PixelShuffleParams& p = layout_.p;
        if (sums != nullptr) __builtin_memset(totals_, 0, (p.r * fine_row_ + kLanes<A>) * sizeof(A));
        for (int64_t row = begin; row < end; row++)
            for (int64_t w = 0; w < p.W; w += together_)
                pixels(row, w, p.W - w < together_ ? p.W - w : together_, sums != nullptr);
        if (sums == nullptr) return;
        __builtin_memset(sums, 0, p.r * run_ * sizeof(A));
        for (int64_t i = 0; i < p.r; i++)
            for (int64_t w = 0; w < together_; w++)
                for (int64_t k = 0; k < run_; k++) sums[i * run_ + k] += totals_[i * fine_row_ + w * run_ + k];
    }

  private:
    void pixels(int64_t row, int64_t w, int64_t count, bool summed) const {
        const T *grad_y = static_cast<const T*>(t_.grad_y), *y = static_cast<const T*>(t_.y);
        T* coarse = static_cast<T*>(t_.grad_x) + layout_.coarse(row) + w * layout_.p.r * run_;
        if (moved_) return to_coarse_((const U*)(grad_y + layout_.fine(row) + w * run_), count, (U*)coarse);
        for (int64_t i = 0; i < layout_.p.r; i++) {
            const int64_t at = layout_.fine(row) + i * layout_.row_stride + w * run_, part = i * fine_row_;
            compute_gradient<T>(layout_, grad_y + at, y ? y + at : nullptr, count * run_, summed ? totals_ + part : nullptr,
                                  computed_ + part);
        }
        if (t_.grad_x != nullptr) to_coarse_((const U*)static_cast<T*>(computed_), count, (U*)coarse);
    }

    const ShuffleLayout<T> layout_;
    const PixelShuffleBackward t_;
    const int64_t together_, run_, fine_row_;
    const bool moved_;  // only permute: there is nothing to compute
    const Buffer<T> computed_;
    const Buffer<A> totals_;
    const ToCoarse<U> to_coarse_;
};

template <class T>
void backward_rows(const ShuffleLayout<T>& layout, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const int64_t rows = layout.p.B * layout.p.H, parts = pixel_shuffle_cpu_partials(layout.p);
    parallel_for(parts, threads, [=](int64_t begin, int64_t end) {
        const Backward<T> pass(layout, t);
        const int64_t channels = layout.p.C * layout.p.r * layout.p.r;
        for (int64_t part = begin; part < end; part++) {
            A* sums = t.grad_bias == nullptr ? nullptr : static_cast<A*>(t.partials) + part * channels;
            pass.rows(rows * part / parts, rows * (part + 1) / parts, sums);
        }
        if (layout.streamed) end_stream();
    });
}

template <class T>
void backward_in_registers(const ShuffleLayout<T>& layout, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    using U = bits_t<T>;
    const int64_t rows = layout.p.B * layout.p.H, parts = pixel_shuffle_cpu_partials(layout.p);
    parallel_for(parts, threads, [=](int64_t begin, int64_t end) {
        const PixelShuffleParams& p = layout.p;
        const int64_t channels = p.C * p.r * p.r, values = channel_values<T>(p);
        const Buffer<A> totals(values);
        for (int64_t part = begin; part < end; part++) {
            __builtin_memset(totals, 0, values * sizeof(A));
            for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
                // y is null if there is no activation. The slope is then 1, so that the signs of grad_y, which replaces y, have
                // no effect.
                const void* y = t.y != nullptr ? t.y : t.grad_y;
                const int64_t at = layout.fine(row);
                const GradientSource<T> fine{static_cast<const T*>(t.grad_y) + at, static_cast<const T*>(y) + at, totals,
                                             layout.act};
                U* coarse = static_cast<U*>(t.grad_x) + layout.coarse(row);
                dispatch_factor(p.r, [&](auto r) {
                    to_coarse<decltype(r)::value>(p.C, layout.streamed, fine, layout.row_stride, p.W, coarse);
                });
            }
            if (t.grad_bias == nullptr) continue;
            A* sums = static_cast<A*>(t.partials) + part * channels;
            __builtin_memset(sums, 0, channels * sizeof(A));
            for (int64_t k = 0; k < values; k++) sums[p.C == 1 ? k / kWhole<U> * p.r + k % p.r : k] += totals[k];
        }
        if (layout.streamed) end_stream();
    });
}

int64_t count_elements(const PixelShuffleParams& p) { return p.B * p.C * p.r * p.r * p.H * p.W; }

template <class T>
void backward(const ShuffleLayout<T>& layout, const PixelShuffleBackward& t, int threads) {
    using A = compute_t<T>;
    const int64_t C = layout.p.C, sub_pixels = layout.p.r * layout.p.r, channels = C * sub_pixels;
    if (t.grad_bias != nullptr) __builtin_memset(t.grad_bias, 0, channels * sizeof(A));
    if (count_elements(layout.p) == 0) return;
    const bool computed = t.y != nullptr || t.grad_bias != nullptr;
    if (t.planes)
        backward_planes(layout, t, threads);
    else if (computed && t.grad_x != nullptr && computes_in_registers<bits_t<T>>(layout.p))
        backward_in_registers(layout, t, threads);
    else
        backward_rows(layout, t, threads);
    if (t.grad_bias == nullptr) return;
    const A* partials = static_cast<const A*>(t.partials);
    A* grad_bias = static_cast<A*>(t.grad_bias);
    const int64_t parts = pixel_shuffle_cpu_partials(layout.p);
    for (int64_t part = 0; part < parts; part++)
        for (int64_t e = 0; e < sub_pixels; e++, partials += C)
            for (int64_t c = 0; c < C; c++) grad_bias[c * sub_pixels + e] += partials[c];
}

// Minimum number of elements for more than one thread. Fewer are permuted before another thread has started.
constexpr int64_t kMinThreadedWork = 1 << 13;
int limit_threads(const PixelShuffleParams& p, int threads) { return count_elements(p) < kMinThreadedWork ? 1 : threads; }

}  // namespace

void pixel_shuffle_forward(const PixelShuffleParams& params, const PixelShuffleForward& tensors, int threads) {
    if (count_elements(params) == 0) return;
    threads = limit_threads(params, threads);
    FASTDS_KERNEL_DTYPE_SWITCH(params.dtype, {
        const ShuffleLayout<scalar> layout(params);
        if (tensors.planes)
            forward_planes(layout, tensors, threads);
        else if (tensors.bias != nullptr && computes_in_registers<bits_t<scalar> >(params))
            forward_in_registers(layout, tensors, threads);
        else
            forward_rows(layout, tensors, threads);
    })
}

void pixel_shuffle_backward(const PixelShuffleParams& params, const PixelShuffleBackward& tensors, int threads) {
    FASTDS_KERNEL_DTYPE_SWITCH(params.dtype, backward(ShuffleLayout<scalar>(params), tensors, limit_threads(params, threads)))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
