// SPDX-License-Identifier: Apache-2.0
// Gradient of the filters, and of the bias, by sums of products of bfloat16 on matrix tiles (AMX):
//
//     grad_weight[o, c, tap] = sum over tiles and their 16 outputs q of grad[q][tile, o] * x[q + tap][tile, c]
//
// A multiplication sums 32 tiles of 4 x 4 outputs, a step. G[step][q][o][tile] has the tiles of an output side by side,
// X[step][p][tile / 2][c] those of an input in pairs. Lanes and stretches of tiles as in cpu_grad_weight.cpp: the order of a sum does not know the threads.
#include "conv3x3/lanes_of_tiles.h"
#include "core/amx.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {

#if defined(__AVX512BF16__)
namespace {

constexpr int kSums = 16;  // outputs of a tile

struct Layout {
    int64_t inputs, outputs;                   // rounded up to whole matrix tiles
    bool shared;                               // X and G of all threads
    int64_t lanes, steps;                      // steps: staged at once
    int64_t x_plane, x_step, g_plane, g_step;  // numbers of bfloat16
    int64_t sum_plane, lane, bias;             // floats: sums[lane][tap][output][input], bias[lane][output]
    int64_t x, g, zeros, thread;               // x: where the staged planes begin; g and zeros behind that; thread: floats of one
    int64_t parts, floats;                     // parts: sums of the bias of every step of a stretch

    explicit Layout(const Conv3x3GradWeight& call) {
        const int64_t all = call.geometry.tiles(), item = sizeof(float);
        inputs = round_up(call.sources.channels(), kTileColumns);
        outputs = round_up(call.gradients.channels(), kTileRows);
        sum_plane = outputs * inputs + 16;
        lane = 9 * sum_plane;
        // An odd number of cache lines between planes spreads them over the sets of the caches.
        x_plane = kTileDepth * (inputs + 1);
        g_plane = kTileDepth * (outputs + 1);
        x_step = kPoints * x_plane;
        g_step = kSums * g_plane;
        shared = lane * item > kLaneBytes;
        lanes = shared ? 1 : lanes_of_sums(all, lane * item, 4 * kTileDepth);
        steps = shared ? least(stretch_bytes(lane * item) / (2 * (x_step + g_step)) + 1, parts_of(all, kTileDepth)) : 1;
        bias = lanes * lane;
        x = round_up(bias + lanes * outputs, 16);
        g = steps * x_step / 2;
        zeros = g + steps * g_step / 2;
        const int64_t wide = widest(call.sources), wide_gradients = widest(call.gradients);
        thread = round_up(zeros + (wide > wide_gradients ? wide : wide_gradients) / 2 + 1, 16);
        parts = x + (shared ? 1 : call.threads) * thread;
        floats = parts + (shared ? steps * outputs : 0);
    }
};

// Numbers 2i and 2i + 1 of the result are numbers i of a and of b.
struct Pairs {
    __m512i low, high;
};
inline Pairs interleave(__m512i a, __m512i b) {
    const __m512i step = _mm512_set1_epi32(0x00200000);  // number i of a, number 32 + i of b
    const __m512i low = _mm512_add_epi16(step, _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                                                                  _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    return {_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)};
}

// Where pixel p of a tile lies in a view, or zeros: beyond the last tile and outside of the field.
template <int N>
struct Place {
    int64_t row[N], column[N], b;
    bool exists;
    const BFloat16* at(const void* data, const Conv3x3View& view, int p, const BFloat16* zeros) const {
        const int64_t y = row[p / N], x = column[p % N];
        if (!exists || y < 0 || x < 0) return zeros;
        return static_cast<const BFloat16*>(data) + b * view.b + y * view.h + x * view.w;
    }
};

inline Place<6> input_place(const Conv3x3Geometry& g, int64_t tile) {
    Place<6> place{};
    place.exists = tile < g.tiles();
    if (!place.exists) return place;
    const Tile at = tile_at(g, tile);
    const InputWindow window = input_window(g, at);
    __builtin_memcpy(place.row, window.row, sizeof(place.row));
    __builtin_memcpy(place.column, window.column, sizeof(place.column));
    place.b = at.b;
    return place;
}

inline Place<4> output_place(const Conv3x3Geometry& g, int64_t tile) {
    Place<4> place{};
    place.exists = tile < g.tiles();
    if (!place.exists) return place;
    const Tile at = tile_at(g, tile);
    for (int i = 0; i < 4; i++) {
        place.row[i] = at.y + i < g.Ho ? at.y + i : -1;
        place.column[i] = at.x + i < g.Wo ? at.x + i : -1;
    }
    place.b = at.b;
    return place;
}

// The step of tiles from `first` on into x, one step of X. Tiles from `end` on are zeros.
void stage_inputs(const Conv3x3GradWeight& call, const Layout& at, int64_t first, int64_t end, const BFloat16* zeros, BFloat16* x) {
    for (int64_t pair = 0; pair < kTileDepth / 2; pair++, x += 2 * at.inputs) {
        Place<6> even = input_place(call.geometry, first + 2 * pair), odd = input_place(call.geometry, first + 2 * pair + 1);
        even.exists = even.exists && first + 2 * pair < end;
        odd.exists = odd.exists && first + 2 * pair + 1 < end;
        for (int p = 0; p < kPoints; p++) {
            BFloat16* out = x + p * at.x_plane;
            for (int s = 0; s < call.sources.count; s++) {
                const Conv3x3View& view = call.sources.view[s];
                const BFloat16 *a = even.at(view.data, view, p, zeros), *b = odd.at(view.data, view, p, zeros);
                for (int64_t c = 0; c < view.channels; c += 32) {
                    const int64_t n = least(32, view.channels - c);
                    const __mmask32 mask = static_cast<__mmask32>((1ull << n) - 1);
                    const Pairs both = interleave(_mm512_maskz_loadu_epi16(mask, a + c), _mm512_maskz_loadu_epi16(mask, b + c));
                    _mm512_mask_storeu_epi32(out + 2 * c, static_cast<__mmask16>(mask), both.low);
                    if (n > 16) _mm512_mask_storeu_epi32(out + 2 * c + 32, static_cast<__mmask16>(mask >> 16), both.high);
                }
                out += 2 * view.channels;
            }
        }
    }
}

// The same of gradients into one step of G, and their sums into bias.
template <bool Signed>
void stage_gradients(const Conv3x3GradWeight& call, const Layout& at, int64_t first, int64_t end, const BFloat16* zeros, BFloat16* g,
                     float* bias) {
    Place<4> places[kTileDepth];
    for (int64_t i = 0; i < kTileDepth; i++) {
        places[i] = output_place(call.geometry, first + i);
        places[i].exists = places[i].exists && first + i < end;
    }
    int64_t output = 0;
    for (int s = 0; s < call.gradients.count; output += call.gradients.view[s++].channels) {
        const Conv3x3View& view = call.gradients.view[s];
        for (int64_t channel = 0; channel < view.channels; channel += kL) {
            const int n = static_cast<int>(least(kL, view.channels - channel));
            V sum = {};
            for (int q = 0; q < kSums; q++) {
                const auto value = [&](int i) {
                    const V loaded = load_lanes(places[i].at(view.data, view, q, zeros) + channel, n);
                    if (!Signed) return loaded;
                    const BFloat16* sign = places[i].at(view.sign, view, q, zeros);
                    return activation_gradient(loaded, load_lanes(sign + channel, n), call.negative_slope);
                };
                V rows[kL];
                for (int i = 0; i < kL; i++) {
                    const V even = value(2 * i), odd = value(2 * i + 1);
                    sum += even + odd;
                    const auto bits = [](V v) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)); };
                    rows[i] = (V)_mm512_or_si512(bits(even), _mm512_slli_epi32(bits(odd), 16));
                }
                turn_rows(rows);
                BFloat16* out = g + q * at.g_plane + (output + channel) * kTileDepth;
                for (int i = 0; i < n; i++) __builtin_memcpy(out + i * kTileDepth, &rows[i], sizeof(V));
            }
            float* total = bias + output + channel;
            store_lanes(total, load_lanes(total, n) + sum, n);
        }
    }
}

// sums (+)= G X of Rows x Columns matrix tiles and one step.
template <int Rows, int Columns>
void add_products(const Layout& at, const BFloat16* g, const BFloat16* x, bool fresh, float* sums) {
    using Sums = TileSums<Rows, Columns>;
    const int64_t x_stride = 2 * at.inputs * sizeof(BFloat16);
    Sums::begin(sums, at.inputs, fresh);
    for (int q = 0; q < kSums; q++)
        Sums::add(g + q * at.g_plane, kTileLine, x + (q / 4 * 6 + q % 4) * at.x_plane, x_stride, kTileLine);
    Sums::end(sums, at.inputs);
}

struct Staged {
    BFloat16 *x, *g, *zeros;
    Staged(const Conv3x3GradWeight& call, const Layout& at, float* scratch)
        : x(reinterpret_cast<BFloat16*>(scratch)), g(reinterpret_cast<BFloat16*>(scratch + at.g)),
          zeros(reinterpret_cast<BFloat16*>(scratch + at.zeros)) {
        // Channels beyond the last: no copy touches them.
        if (at.inputs > call.sources.channels()) __builtin_memset(x, 0, at.steps * at.x_step * sizeof(BFloat16));
        if (at.outputs > call.gradients.channels()) __builtin_memset(g, 0, at.steps * at.g_step * sizeof(BFloat16));
        __builtin_memset(zeros, 0, (at.thread - at.zeros) * sizeof(float));
    }
};

// All taps of the outputs [output, output + 32) and the inputs [input, input + 32): G of a step stays in the L1 cache.
void add_taps(const Layout& at, int64_t output, int64_t input, int64_t steps, const Staged& staged, bool fresh, float* sums) {
    const bool two = at.outputs - output > kTileRows;
    const auto add = at.inputs - input > kTileColumns ? (two ? add_products<2, 2> : add_products<1, 2>)
                                                      : (two ? add_products<2, 1> : add_products<1, 1>);
    for (int64_t step = 0; step < steps; step++)
        for (int tap = 0; tap < 9; tap++)
            add(at, staged.g + step * at.g_step + output * kTileDepth,
                staged.x + step * at.x_step + (tap / 3 * 6 + tap % 3) * at.x_plane + 2 * input, fresh && step == 0,
                sums + tap * at.sum_plane + output * at.inputs + input);
}

// A step of tiles from `first` on, those from `end` on as zeros; bias: where their gradients are added.
void stage(const Conv3x3GradWeight& call, const Layout& at, const Staged& to, int64_t step, int64_t first, int64_t end, float* bias) {
    const auto gradients = call.gradients.view[0].sign != nullptr ? stage_gradients<true> : stage_gradients<false>;
    stage_inputs(call, at, first, end, to.zeros, to.x + step * at.x_step);
    gradients(call, at, first, end, to.zeros, to.g + step * at.g_step, bias);
}

void run_lane(const Conv3x3GradWeight& call, const Layout& at, int64_t lane, const Staged& staged, float* work) {
    const Range tiles = part_of(call.geometry.tiles(), at.lanes, lane);
    for (int64_t first = tiles.begin; first < tiles.end; first += kTileDepth) {
        stage(call, at, staged, 0, first, tiles.end, work + at.bias + lane * at.outputs);
        for (int64_t o = 0; o < at.outputs; o += 2 * kTileRows)
            for (int64_t c = 0; c < at.inputs; c += 2 * kTileColumns)
                add_taps(at, o, c, 1, staged, first == tiles.begin, work + lane * at.lane);
    }
}

void run_lanes(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            const Range lanes = part_of(at.lanes, call.threads, thread);
            if (lanes.begin == lanes.end) continue;
            const Staged staged(call, at, work + at.x + thread * at.thread);
            const TileUse use(true);
            for (int64_t lane = lanes.begin; lane < lanes.end; lane++) run_lane(call, at, lane, staged, work);
        }
    });
}

void run_stretches(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    const int64_t all = call.geometry.tiles(), rows = parts_of(at.outputs, 2 * kTileRows);
    const Staged staged(call, at, work + at.x);
    for (int64_t first = 0; first < all; first += at.steps * kTileDepth) {
        const int64_t last = least(first + at.steps * kTileDepth, all), steps = parts_of(last - first, kTileDepth);
        float* parts = work + at.parts;
        parallel_for(steps, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                __builtin_memset(parts + i * at.outputs, 0, at.outputs * sizeof(float));
                stage(call, at, staged, i, first + i * kTileDepth, last, parts + i * at.outputs);
            }
        });
        for (int64_t i = 0; i < steps * at.outputs; i++) work[at.bias + i % at.outputs] += parts[i];
        parallel_for(rows * parts_of(at.inputs, 2 * kTileColumns), call.threads, [&](int64_t begin, int64_t end) {
            const TileUse use(true);
            for (int64_t task = begin; task < end; task++)
                add_taps(at, task % rows * 2 * kTileRows, task / rows * 2 * kTileColumns, steps, staged, first == 0, work);
        });
    }
}

// The filters of one output and up to 16 inputs into grad_weight (O, C, 3, 3), dense. sums: of all lanes.
template <class T>
void finish_filters(const Conv3x3GradWeight& call, const Layout& at, const float* sums, int64_t output, int64_t input) {
    const int64_t inputs = call.sources.channels();
    V taps[kL] = {};
    for (int tap = 0; tap < 9; tap++)
        for (int64_t lane = 0; lane < at.lanes; lane++) taps[tap] += load_vec<kL>(sums + lane * at.lane + tap * at.sum_plane);
    turn_rows(taps);
    T* out = static_cast<T*>(call.grad_weight) + (output * inputs + input) * 9;
    for (int64_t i = 0; i < least(kL, inputs - input); i++) store_first<kL>(out + i * 9, taps[i], 9);
}

template <class T>
void finish(const Conv3x3GradWeight& call, const Layout& at, const float* work) {
    const ColumnMap map{call.gradients.channels(), call.shuffle};
    parallel_for(map.columns, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t column = begin; column < end; column++)
            for (int64_t c = 0; c < call.sources.channels(); c += kL)
                finish_filters<T>(call, at, work + column * at.inputs + c, map.output(column), c);
    });
    finish_bias<T>(call, work + at.bias, at.lanes, at.outputs);
}

}  // namespace

int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_amx_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    __builtin_memset(work + at.bias, 0, at.lanes * at.outputs * sizeof(float));
    if (at.shared)
        run_stretches(call, at, work);
    else
        run_lanes(call, at, work);
    switch (call.dtype) {
        case f32: return finish<float>(call, at, work);
        case bf16: return finish<BFloat16>(call, at, work);
        default: return;  // refused by the binding
    }
}
#else  // refused by the binding
int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight&) { return 0; }
void conv3x3_amx_grad_weight(const Conv3x3GradWeight&, float*) {}
#endif

}  // namespace FASTDS_ISA
}  // namespace fastds
