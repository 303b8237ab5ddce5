// SPDX-License-Identifier: Apache-2.0
// Matrix products with few outputs. If the lanes of a vector were outputs, most lanes would be unused. The lanes are therefore
// pixels, if these are contiguous, or else channels.
#pragma once
#include "conv1x1/inputs.h"
#include "core/activation.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kFewOutputs = 4;

// has_contiguous_channels returns whether the channels of all sources are contiguous; has_contiguous_pixels does so for pixels.
inline bool has_contiguous_channels(const Conv1x1& call) { return call.source[0].c == 1 && (call.sources == 1 || call.source[1].c == 1); }
inline bool has_contiguous_pixels(const Conv1x1& call) {
    return call.pixels > 1 && call.source[0].p == 1 && (call.sources == 1 || call.source[1].p == 1);
}

// Returns whether the kernels of this file are used. `terms` is the number of terms that one step of core/gemm.h sums. Sums
// with channels as lanes are used only if there are many channels per output.
inline bool has_few_outputs(const Conv1x1& call, int terms) {
    int64_t channels = 0;
    for (int s = 0; s < call.sources; s++) channels += call.source[s].channels;
    const bool many = has_contiguous_channels(call) && channels > 8 * call.outputs * terms;
    return call.outputs <= kFewOutputs && (many || has_contiguous_pixels(call));
}

// The pixels of a source from the address `from` on; `pixel` and `channel` are strides. `weights` holds rows of floats, one per
// output, with a stride of `row` elements and zeros after the last channel.
template <class T>
struct FewSource {
    const T* from;
    int64_t channels, pixel, channel;
    const float* weights;
    int64_t row;
};

// Computes sums[i * O + o] = bias[o] + sum over c of weight[o, c] * x[i, c], for pixels x[i] with contiguous channels c. At
// once, as many pixels are processed as fill a vector of sums. `sums` needs room for one more vector.
template <int O, class T>
void sum_across_lanes(const FewSource<T>* sources, int count, const float* bias, int64_t pixels, float* sums) {
    constexpr int P = kL / O;
    for (int64_t i = 0; i < pixels; i += P, sums += P * O) {
        SquareRow acc[kSquare]{};
#pragma GCC unroll 16
        for (int k = 0; k < P * O; k++) acc[k][0] = bias[k % O];
        for (int s = 0; s < count; s++) {
            const FewSource<T>& source = sources[s];
            const T* at[P];
            for (int p = 0; p < P; p++) at[p] = source.from + min_of(i + p, pixels - 1) * source.pixel;
            const auto add = [&](int64_t c, int lanes) __attribute__((always_inline)) {
#pragma GCC unroll 16
                for (int p = 0; p < P; p++) {
                    const V x = load_partial(at[p] + c, lanes);
#pragma GCC unroll 4
                    for (int o = 0; o < O; o++) acc[p * O + o] += x * load_vec<kL>(source.weights + o * source.row + c);
                }
            };
            int64_t c = 0;
            for (; c + kL <= source.channels; c += kL) add(c, kL);
            if (c < source.channels) add(c, static_cast<int>(source.channels - c));
        }
        transpose_registers(acc);
        SquareRow total = acc[0];
#pragma GCC unroll 16
        for (int k = 1; k < kSquare; k++) total += acc[k];
        store_vec<kL>(sums, total);
    }
}

// Computes the sums of sum_across_lanes() for N vectors of contiguous pixels, of which the first `pixels` exist.
template <int O, int N, class T>
void sum_per_lane(const FewSource<T>* sources, int count, const float* bias, int64_t pixels, float* sums) {
    V acc[O][N];
#pragma GCC unroll 4
    for (int o = 0; o < O; o++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) acc[o][j] = V{} + bias[o];
    for (int s = 0; s < count; s++) {
        const FewSource<T>& source = sources[s];
        for (int64_t c = 0; c < source.channels; c++) {
            const T* at = source.from + c * source.channel;
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) {
                const V x = pixels == N * kL ? load_vec<kL>(at + j * kL) : load_lanes(at, static_cast<int>(pixels));
#pragma GCC unroll 4
                for (int o = 0; o < O; o++) acc[o][j] += source.weights[o * source.row + c] * x;
            }
        }
    }
    float rows[O * N * kL];
    for (int o = 0; o < O; o++)
        for (int j = 0; j < N; j++) store_vec<kL>((O == 1 ? sums : rows) + (o * N + j) * kL, acc[o][j]);
    if (O > 1) transpose_rows(reinterpret_cast<const uint32_t*>(rows), N * kL, O, N * kL, reinterpret_cast<uint32_t*>(sums), O);
}

template <class T>
class FewOutputs {
public:
    FewOutputs(const Conv1x1& call, char* workspace) : call_(call) {
        Workspace space{workspace};
        for (int s = 0; s < call.sources; s++) weights_[s] = space.take<float>(call.outputs * row(s));
        call.weight_dtype == f32 ? read_weights<float>() : read_weights<T>();
    }

    static int64_t bytes(const Conv1x1& call) {
        Workspace space{nullptr};
        for (int s = 0; s < call.sources; s++) space.take<float>(call.outputs * round_up(call.source[s].channels, kL));
        return space.bytes();
    }

    void run() const {
        switch (call_.outputs) {
            case 1: return run<1>();
            case 2: return run<2>();
            case 3: return run<3>();
            default: return run<4>();
        }
    }

private:
    static constexpr int64_t kPixels = 512;  // pixels of a task
    static constexpr int kVectors = kL == 16 ? 4 : 2;

    const Conv1x1& call_;
    float* weights_[2];
    float bias_[kFewOutputs];

    int64_t row(int s) const { return round_up(call_.source[s].channels, kL); }

    template <class W>
    void read_weights() {
        const W* weight = static_cast<const W*>(call_.weight);
        for (int s = 0; s < call_.sources; s++, weight += call_.source[s - 1].channels)
            for (int64_t o = 0; o < call_.outputs; o++)
                for (int64_t c = 0; c < row(s); c++)
                    weights_[s][o * row(s) + c] = c < call_.source[s].channels ? load(weight[o * call_.stride_o + c]) : 0.f;
        const W* bias = static_cast<const W*>(call_.bias);
        for (int64_t o = 0; o < call_.outputs; o++) bias_[o] = bias != nullptr ? load(bias[o]) : 0.f;
    }

    template <int O>
    void run() const {
        int64_t channels = 0;
        for (int s = 0; s < call_.sources; s++) channels += call_.source[s].channels;
        const int64_t all = call_.batch * call_.pixels;
        const int threads = all * channels * O < kMinThreadedProducts ? 1 : call_.threads;
        const int64_t chunks = count_parts(call_.pixels, min_of(kPixels, round_up(count_parts(all, threads), kL)));
        parallel_for(call_.batch * chunks, threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++)
                run_pixels<O>(task / chunks, get_part(call_.pixels, chunks, task % chunks));
        });
    }

    // Computes a range of pixels of image b.
    template <int O>
    void run_pixels(int64_t b, Range pixels) const {
        alignas(64) float sums[(kPixels + kVectors * kL) * O];
        const int64_t count = pixels.end - pixels.begin;
        FewSource<T> sources[2];
        for (int s = 0; s < call_.sources; s++) {
            const Conv1x1Map& map = call_.source[s];
            sources[s] = {get_pixel<T>(map, b, pixels.begin), map.channels, map.p, map.c, weights_[s], row(s)};
        }
        if (has_contiguous_pixels(call_))
            for (int64_t i = 0; i < count;) i += compute_next_pixels<O>(sources, count - i, sums + i * O);
        else
            sum_across_lanes<O, T>(sources, call_.sources, bias_, count, sums);
        finish(sums, (b * call_.pixels + pixels.begin) * O, count * O);
    }

    // Computes some of the next `left` pixels, advances the sources and returns the number of computed pixels.
    template <int O>
    int64_t compute_next_pixels(FewSource<T>* sources, int64_t left, float* sums) const {
        const int64_t many = kVectors * kL, count = left >= many ? many : min_of(left, kL);
        if (count == many)
            sum_per_lane<O, kVectors, T>(sources, call_.sources, bias_, count, sums);
        else
            sum_per_lane<O, 1, T>(sources, call_.sources, bias_, count, sums);
        for (int s = 0; s < call_.sources; s++) sources[s].from += count;
        return count;
    }

    // Writes y from position `at` on, after adding the residual and applying the activation.
    void finish(const float* sums, int64_t at, int64_t count) const {
        T* const y = static_cast<T*>(call_.y);
        const T* const residual = static_cast<const T*>(call_.residual);
        for (int64_t i = 0; i < count; i += kL) {
            const int lanes = static_cast<int>(min_of(kL, count - i));
            V v = load_vec<kL>(sums + i);
            if (residual != nullptr) v += load_partial(residual + at + i, lanes);
            v = activate(v, call_.act, call_.negative_slope);
            lanes == kL ? store_vec<kL>(y + at + i, v) : store_lanes(y + at + i, v, lanes);
        }
    }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
