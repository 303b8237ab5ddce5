// SPDX-License-Identifier: Apache-2.0
// An output stage for recurrent cells: the 3x3 convolution of [x; h] hands the pre-activations of all gates of a channel to a
// functor, in registers; they are never written. For the cpu*.cpp of an op:
//
//     template <class T>
//     struct LstmGates {                       // T: storage of h
//         static constexpr int gates = 4;      // 1, 2 or 4; in the order of the weight's outputs
//         Conv3x3View c, new_c, new_h;         // what else the functor reads and writes, over the cell's channels
//         template <class At>
//         FASTDS_HD void operator()(const At& at, const V (&pre)[gates]) const {
//             const V next = ... at.template load<float>(c) ...;      // lanes that do not exist load as 0
//             at.template store<float>(new_c, next);                  // and are not stored
//             at.template store<T>(new_h, ...);
//         }
//     };
//     conv3x3_run_gates<T>(call, plan, workspace, LstmGates<T>{...});
//
// call: sources are x and h, sinks ONE view with the channels of the cell and the dtype
// T, its data unused; gates as in the functor; bias (gates * channels) in the order (gate, channel). residual: null, or a T
// tensor of gates * channels in the order (gate, channel) that is added to the pre-activations: where the x-part of all steps
// was convolved at once, sources is h alone and residual that part. packed: conv3x3_pack_weight(weight, adjoint = false,
// shuffle = 1, gates) of a weight (gates * channels, C, 3, 3) in the order (gate, channel), C those of the sources in their
// order; the packing interleaves the gates. plan: conv3x3_plan(call, threads), as for a plain call.
//
// The functor runs for every pixel and group of channels once, on any thread: it must not change shared state.
#pragma once
#include "conv3x3/engine.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int kHalf = kL / 2;
FASTDS_HD V join(const Vec<float, kHalf>& first, const Vec<float, kHalf>& second) {
    V v;
    __builtin_memcpy(&v, &first, sizeof(first));
    __builtin_memcpy(reinterpret_cast<char*>(&v) + sizeof(first), &second, sizeof(second));
    return v;
}

// Where the lanes of a functor's vectors belong: Pixels == 1: kL channels of one pixel; Pixels == 2: kL / 2 channels of each of
// two neighbours in a row.
template <int Pixels>
struct CellAt {
    static constexpr int kUnit = kL / Pixels;
    int64_t b, y, x, channel;
    int count;   // channels that exist, from `channel` on
    int pixels;  // that exist

    template <class T>
    FASTDS_HD T* address(const Conv3x3View& view, int pixel) const {
        return static_cast<T*>(view.data) + b * view.b + y * view.h + (x + pixel) * view.w + channel;
    }

    template <class T>
    FASTDS_HD V load(const Conv3x3View& view) const {
        if constexpr (Pixels == 1) {
            return count == kL ? load_vec<kL>(address<T>(view, 0)) : load_lanes(address<T>(view, 0), count);
        } else {
            Vec<float, kHalf> half[2] = {};
            for (int i = 0; i < pixels; i++) {
                const T* p = address<T>(view, i);
                if (count == kHalf)
                    half[i] = load_vec<kHalf>(p);
                else
                    for (int lane = 0; lane < count; lane++) half[i][lane] = fastds::FASTDS_ISA::load(p[lane]);
            }
            return join(half[0], half[1]);
        }
    }

    template <class T>
    FASTDS_HD void store(const Conv3x3View& view, V value) const {
        if constexpr (Pixels == 1) {
            if (count == kL)
                store_vec<kL>(address<T>(view, 0), value);
            else
                store_lanes(address<T>(view, 0), value, count);
        } else {
            store_first<kHalf>(address<T>(view, 0), half_of<0>(value), count);
            if (pixels == 2) store_first<kHalf>(address<T>(view, 1), half_of<1>(value), count);
        }
    }
};

// Hands the pixels of one tile and one group of channels to the functor. y[v]: the group's vectors of columns.
template <class T, int Pixels, int Vectors, class Gates>
FASTDS_HD void apply_gates(const Conv3x3Call& call, const Gates& functor, const Tile& tile, int64_t channel,
                           V (&y)[Vectors][4][4]) {
    constexpr int gates = Gates::gates;
    const int64_t channels = call.sinks.view[0].channels;
    const int rows = static_cast<int>(least(4, call.geometry.Ho - tile.y));
    const int columns = static_cast<int>(least(4, call.geometry.Wo - tile.x));
    const int count = static_cast<int>(least(kL / Pixels, channels - channel));
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c += Pixels) {
            const CellAt<Pixels> at{tile.b, tile.y + r, tile.x + c, channel, count, static_cast<int>(least(Pixels, columns - c))};
            V pre[gates];
            for (int g = 0; g < gates; g++) {
                if constexpr (Pixels == 1)
                    pre[g] = y[g][r][c];
                else if (g % 2 == 0)
                    pre[g] = join(half_of<0>(y[g / 2][r][c]), half_of<0>(y[g / 2][r][c + 1]));
                else
                    pre[g] = join(half_of<1>(y[g / 2][r][c]), half_of<1>(y[g / 2][r][c + 1]));
            }
            if (call.residual.data != nullptr)
                for (int g = 0; g < gates; g++) {
                    Conv3x3View part = call.residual;
                    part.data = static_cast<T*>(part.data) + g * channels;
                    pre[g] += at.template load<T>(part);
                }
            functor(at, pre);
        }
}

template <class T, int Pixels, class Gates>
void finish_gates(const Conv3x3Call& call, const Gates& functor, const Layout& at, const float* bias, int64_t first, int64_t count,
                  const float* scratch, Columns columns) {
    constexpr int kVectors = Gates::gates / Pixels;
    const int64_t channels = call.sinks.view[0].channels, unit = kL / Pixels;
    for (int64_t i = 0; i < count; i++) {
        const Tile tile = tile_at(call.geometry, first + i);
        const float* m = scratch + at.m + i * at.m_row;
        for (int64_t column = columns.begin; column < columns.end; column += kVectors * kL, m += kVectors * kL) {
            const int64_t channel = column / (kVectors * kL) * unit;
            if (channel >= channels) break;
            V y[kVectors][4][4];
            for (int v = 0; v < kVectors; v++) {
                finish_vector(m + v * kL, at.m_plane, y[v]);
                const V bias_here = load_vec<kL>(bias + column + v * kL);
                for (int p = 0; p < 16; p++) y[v][p / 4][p % 4] += bias_here;
            }
            apply_gates<T, Pixels>(call, functor, tile, channel, y);
        }
    }
}

template <class T, class Gates>
void conv3x3_run_gates(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace, const Gates& functor) {
    static_assert(Gates::gates == 1 || Gates::gates == 2 || Gates::gates == 4, "groups of columns must fill whole vectors");
    const float* bias = bias_of_columns(call, plan, workspace);
    const bool halves = Gates::gates > 1 && columns_of(call).unit == kHalf;
    run_engine(call, plan, workspace, [&](const Layout& at, int64_t first, int64_t count, float* scratch, Columns columns) {
        if constexpr (Gates::gates > 1)
            if (halves) return finish_gates<T, 2>(call, functor, at, bias, first, count, scratch, columns);
        finish_gates<T, 1>(call, functor, at, bias, first, count, scratch, columns);
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
