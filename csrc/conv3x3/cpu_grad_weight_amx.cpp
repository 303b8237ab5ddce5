// SPDX-License-Identifier: Apache-2.0
// Gradients of the filters and of the bias with AMX tiles, which sum products of bfloat16 directly:
//
//     grad_weight[o, c, tap] = sum over positions p of grad[p][o] * x[p + tap][c]
//
// The positions are those of amx.h. One multiplication takes a run of 32 positions, called a step. G[step][o][p] holds the
// gradients of an output at consecutive positions, with zeros at positions without output. X[c / 16][p / 2][c] holds pairs of
// consecutive positions. X is stored twice, for pairs that start at even and at odd positions, so that the pairs of a tap can
// start at any position.
//
// With few channels, ranges of rows have private accumulators. With many channels, the sums are too large for private
// accumulators, and all threads process stretches of rows together. The order of a sum does not depend on the number of
// threads.
#include "conv3x3/amx.h"
#include "conv3x3/grad_weight.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {

#if defined(__AVX512BF16__)
namespace {

constexpr int64_t kBlockBytes = 1 << 20;  // bytes of X and G of a block
constexpr int64_t kPart = 32;             // steps that are summed before the next ones, so that the data they read stay in the L2 cache

struct Layout {
    int64_t inputs, outputs;  // rounded up to whole AMX tiles
    Rows rows;
    int64_t block_rows, steps, pairs;      // of a block
    int64_t v, x_plane, x, g;              // bfloat16 elements: of the pixels, of a plane of X, of X, of G
    int64_t sum_plane, accumulator, bias;  // floats: sums[accumulator][tap][output][input], bias[accumulator][output]
    bool shared;                           // all threads share X and G
    int64_t accumulators, blocks;          // blocks: number of blocks that are staged at once
    int64_t staged, block, floats;         // staged: where the blocks begin; block: floats of one block
    // Offsets in floats of the parts of a block after V, X and G. row: one row of gradients. zeros: zeros that replace pixels
    // outside the image. parts: sums of the block for the bias. runs: the Runs of the block.
    int64_t row, zeros, parts, runs;

    static int64_t most_positions(int64_t inputs, int64_t outputs) {
        const int64_t most = kBlockBytes / ((3 * inputs + outputs) * static_cast<int64_t>(sizeof(BFloat16)));
        return most < 256 ? 256 : min_of(most, 4096);
    }

    explicit Layout(const Conv3x3GradWeight& call)
        : inputs(round_up(call.sources.channels(), kTileColumns)), outputs(round_up(call.gradients.channels(), kTileRows)),
          rows(call.geometry, most_positions(inputs, outputs)) {
        const int64_t item = sizeof(float), tiles = call.geometry.tiles(), most = most_positions(inputs, outputs) / rows.row;
        sum_plane = outputs * inputs + 16;
        accumulator = 9 * sum_plane;
        shared = accumulator * item > kAccumulatorBytes;
        accumulators = shared ? 1 : min_of(count_accumulators(tiles, accumulator * item, 4 * kTileDepth),
                                           rows.count > 0 ? rows.count : 1);
        block_rows = min_of(most > 1 ? most : 1, count_parts(rows.count, accumulators));
        steps = count_parts(block_rows * rows.row, kTileDepth);
        pairs = (steps + 1) * kTileDepth / 2 + rows.row + 1;
        v = round_up((2 * pairs + 1) * call.sources.channels(), kTileDepth);
        x_plane = pairs * kTileDepth;
        x = 2 * inputs / kTileColumns * x_plane;
        g = steps * outputs * kTileDepth;
        row = round_up((v + x + g) / 2, 16);
        zeros = row + round_up(rows.row * call.gradients.channels() / 2 + 1, 16);
        parts = round_up(zeros + get_max_channels(call.sources) / 2 + 1, 16);
        runs = parts + outputs;
        block = round_up(runs + static_cast<int64_t>(sizeof(Runs)) / item + steps, 16);
        blocks = shared ? min_of(get_stretch_bytes(accumulator * item) / (block * item) + 1, count_parts(rows.count, block_rows)) : 1;
        bias = accumulators * accumulator;
        staged = round_up(bias + accumulators * outputs, 16);
        floats = staged + (shared ? blocks : call.threads) * block;
    }
};

// Pointers into the memory of a block. x: pairs that start at even positions, then pairs that start at odd positions.
struct Staged {
    BFloat16 *v, *x, *g, *row, *zeros;
    float* bias;
    Runs* runs;

    Staged(const Layout& at, float* block)
        : v(reinterpret_cast<BFloat16*>(block)), x(v + at.v), g(x + at.x), row(reinterpret_cast<BFloat16*>(block + at.row)),
          zeros(reinterpret_cast<BFloat16*>(block + at.zeros)), bias(block + at.parts),
          runs(reinterpret_cast<Runs*>(block + at.runs)) {}

    void clear(const Layout& at) const {
        __builtin_memset(zeros, 0, (at.parts - at.zeros) * sizeof(float));
    }
};

// Interleaved elements of a and b: elements 2i and 2i + 1 of the result are elements i of a and of b.
struct Pairs {
    __m512i low, high;
};
inline Pairs interleave(__m512i a, __m512i b) {
    const __m512i step = _mm512_set1_epi32(0x00200000);  // selects element i of a and element i of b (index 32 + i)
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_add_epi16(step, _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001), numbers));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    return {_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)};
}

// Copies the inputs of the given rows and of up to two more rows into X, followed by zeros.
void stage_inputs(const Conv3x3GradWeight& call, const Layout& at, Range rows, const Staged& to) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t loaded = min_of(rows.end + 2, at.rows.count) - rows.begin, channels = call.sources.channels();
    RowPosition place = get_row(g, at.rows, rows.begin);
    for (int64_t r = 0; r < loaded; r++, advance_row(g, at.rows, place)) {
        copy_row<false>(g, call.sources, 0.f, place.b, place.y - g.pad_h, place.x - g.pad_w, at.rows.row, to.zeros,
                        to.v + r * at.rows.row * channels, channels);
    }
    BFloat16* end = to.v + loaded * at.rows.row * channels;
    __builtin_memset(end, 0, (to.v + at.v - end) * sizeof(*end));
    for (int64_t pair = 0; pair < at.pairs; pair++) {
        const BFloat16* from = to.v + 2 * pair * channels;
        for (int64_t c = 0; c < at.inputs; c += kTileDepth) {
            const __mmask32 here = static_cast<__mmask32>((1ull << min_of(kTileDepth, channels - c)) - 1);
            const auto pixel = [&](int64_t i) { return _mm512_maskz_loadu_epi16(here, from + i * channels + c); };
            const __m512i first = pixel(0), second = pixel(1), third = pixel(2);
            const Pairs even = interleave(first, second), odd = interleave(second, third);
            BFloat16* out = to.x + c / kTileColumns * at.x_plane + pair * kTileDepth;
            _mm512_storeu_si512(out, even.low);
            _mm512_storeu_si512(out + at.x / 2, odd.low);
            if (c + kTileColumns >= at.inputs) break;
            _mm512_storeu_si512(out + at.x_plane, even.high);
            _mm512_storeu_si512(out + at.x / 2 + at.x_plane, odd.high);
        }
    }
}

// Copies the gradients of the given rows into G.
void stage_gradients(const Conv3x3GradWeight& call, const Layout& at, Range rows, const Staged& to) {
    const Runs runs = *to.runs = find_runs(call.geometry, at.rows, rows, kTileDepth, reinterpret_cast<int32_t*>(to.runs + 1));
    __builtin_memset(to.g, 0, runs.count * at.outputs * kTileDepth * sizeof(*to.g));
    for_runs(call.geometry, at.rows, runs, Range{0, runs.count}, [&](int64_t step, int64_t i, const Tile& pixel, int64_t n) {
        BFloat16* out = to.g + step * at.outputs * kTileDepth + i;
        for (int s = 0; s < call.gradients.count; out += call.gradients.view[s++].channels * kTileDepth) {
            const Conv3x3View& view = call.gradients.view[s];
            const int64_t place = view.offset(pixel.b, pixel.y, pixel.x);
            const BFloat16* from = static_cast<const BFloat16*>(view.data) + place;
            if (view.sign != nullptr)
                copy_pixels<true>(from, static_cast<const BFloat16*>(view.sign) + place, view.w, n, view.channels,
                                  call.negative_slope, to.row, view.channels);
            transpose_rows(reinterpret_cast<const uint16_t*>(view.sign != nullptr ? to.row : from),
                 view.sign != nullptr ? view.channels : view.w, n, view.channels, reinterpret_cast<uint16_t*>(out), kTileDepth);
        }
    });
}

// Adds the sums of a block's gradients to bias.
void add_bias(const Layout& at, const Staged& staged, float* bias) {
    for (int64_t o = 0; o < at.outputs; o++) {
        V sum = {};
        for (int64_t step = 0; step < staged.runs->count; step++) {
            const BFloat16* line = staged.g + (step * at.outputs + o) * kTileDepth;
            sum += load_vec<kL>(line) + load_vec<kL>(line + kL);
        }
        bias[o] += _mm512_reduce_add_ps((__m512)sum);
    }
}

void stage(const Conv3x3GradWeight& call, const Layout& at, Range rows, const Staged& to, float* bias) {
    stage_inputs(call, at, rows, to);
    stage_gradients(call, at, rows, to);
    if (call.grad_bias != nullptr) add_bias(at, to, bias);
}

// Computes sums (+)= G X for Rows x Columns tiles, the given steps and all taps. If `fresh` is true, the sums are set instead
// of added to. `begin` holds the first position of each step.
template <int Rows, int Columns>
void add_taps(const Layout& at, const BFloat16* g, const BFloat16* x, const int32_t* begin, Range steps, bool fresh, float* sums) {
    using Sums = TileSums<Rows, Columns>;
    const int64_t g_step = at.outputs * kTileDepth;
    for (int64_t tap = 0; tap < 9; tap++, sums += at.sum_plane) {
        const int64_t shift = tap / 3 * at.rows.row + tap % 3;
        const BFloat16* a = g + steps.begin * g_step;
        Sums::begin(sums, at.inputs, fresh);
        for (int64_t step = steps.begin; step < steps.end; step++, a += g_step) {
            const int64_t first = begin[step] + shift;
            const BFloat16* b = x + first % 2 * (at.x / 2) + first / 2 * kTileDepth;
            Sums::add(a, kTileRowBytes, kTileRows * kTileRowBytes, b, kTileRowBytes, at.x_plane * sizeof(*b));
        }
        Sums::end(sums, at.inputs);
    }
}

// Adds the products of a block for the outputs [output, output + 32) and the inputs [input, input + 32).
void add_part(const Layout& at, int64_t output, int64_t input, const Staged& staged, Range steps, bool fresh, float* sums) {
    const bool two = at.outputs - output > kTileRows, pair = at.inputs - input > kTileColumns;
    const auto add = two ? (pair ? add_taps<2, 2> : add_taps<2, 1>) : (pair ? add_taps<1, 2> : add_taps<1, 1>);
    add(at, staged.g + output * kTileDepth, staged.x + input / kTileColumns * at.x_plane, staged.runs->begin, steps, fresh,
        sums + output * at.inputs + input);
}

void run_accumulator(const Conv3x3GradWeight& call, const Layout& at, int64_t accumulator, const Staged& staged, float* work) {
    const Range rows = get_part(at.rows.count, at.accumulators, accumulator);
    for (int64_t first = rows.begin; first < rows.end; first += at.block_rows) {
        stage(call, at, Range{first, min_of(first + at.block_rows, rows.end)}, staged, work + at.bias + accumulator * at.outputs);
        const int64_t steps = staged.runs->count;
        for (int64_t step = 0; step == 0 || step < steps; step += kPart)
            for (int64_t o = 0; o < at.outputs; o += 2 * kTileRows)
                for (int64_t c = 0; c < at.inputs; c += 2 * kTileColumns)
                    add_part(at, o, c, staged, Range{step, min_of(step + kPart, steps)}, first == rows.begin && step == 0,
                             work + accumulator * at.accumulator);
    }
}

void run_accumulators(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            const Range accumulators = get_part(at.accumulators, call.threads, thread);
            if (accumulators.begin == accumulators.end) continue;
            const Staged staged(at, work + at.staged + thread * at.block);
            staged.clear(at);
            const TileScope use(true);
            for (int64_t accumulator = accumulators.begin; accumulator < accumulators.end; accumulator++)
                run_accumulator(call, at, accumulator, staged, work);
        }
    });
}

void run_stretches(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    const int64_t rows = count_parts(at.outputs, 2 * kTileRows), tasks = rows * count_parts(at.inputs, 2 * kTileColumns);
    const auto staged = [&](int64_t i) { return Staged(at, work + at.staged + i * at.block); };
    for (int64_t i = 0; i < at.blocks; i++) staged(i).clear(at);
    for (int64_t first = 0; first < at.rows.count; first += at.blocks * at.block_rows) {
        const int64_t last = min_of(first + at.blocks * at.block_rows, at.rows.count);
        const int64_t blocks = count_parts(last - first, at.block_rows);
        parallel_for(blocks, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                const Staged to = staged(i);
                const int64_t row = first + i * at.block_rows;
                __builtin_memset(to.bias, 0, at.outputs * sizeof(float));
                stage(call, at, Range{row, min_of(row + at.block_rows, last)}, to, to.bias);
            }
        });
        for (int64_t i = 0; i < blocks; i++)
            for (int64_t o = 0; o < at.outputs; o++) work[at.bias + o] += staged(i).bias[o];
        parallel_for(tasks, call.threads, [&](int64_t begin, int64_t end) {
            const TileScope use(true);
            for (int64_t task = begin; task < end; task++)
                for (int64_t i = 0; i < blocks; i++)
                    add_part(at, task % rows * 2 * kTileRows, task / rows * 2 * kTileColumns, staged(i), Range{0, staged(i).runs->count},
                             first == 0 && i == 0, work);
        });
    }
}

// Adds the accumulators and writes the filters of one output and up to 16 inputs to the contiguous grad_weight (O, C, 3, 3).
// `sums` points to the first sum in the first accumulator.
template <class T>
void finish_filters(const Conv3x3GradWeight& call, const Layout& at, const float* sums, int64_t output, int64_t input) {
    const int64_t inputs = call.sources.channels();
    V taps[kL] = {};
    for (int tap = 0; tap < 9; tap++)
        for (int64_t accumulator = 0; accumulator < at.accumulators; accumulator++)
            taps[tap] += load_vec<kL>(sums + accumulator * at.accumulator + tap * at.sum_plane);
    transpose_registers(taps);
    T* out = static_cast<T*>(call.grad_weight) + (output * inputs + input) * 9;
    for (int64_t i = 0; i < min_of(kL, inputs - input); i++) store_first<kL>(out + i * 9, taps[i], 9);
}

template <class T>
void finish(const Conv3x3GradWeight& call, const Layout& at, const float* work) {
    const ColumnMap map{call.gradients.channels(), call.shuffle};
    parallel_for(map.columns, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t column = begin; column < end; column++)
            for (int64_t c = 0; c < call.sources.channels(); c += kL)
                finish_filters<T>(call, at, work + column * at.inputs + c, map.output(column), c);
    });
    finish_bias<T>(call, work + at.bias, at.accumulators, at.outputs);
}

}  // namespace

int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_amx_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    __builtin_memset(work + at.bias, 0, at.accumulators * at.outputs * sizeof(float));
    if (at.shared)
        run_stretches(call, at, work);
    else
        run_accumulators(call, at, work);
    switch (call.dtype) {
        case f32: return finish<float>(call, at, work);
        case bf16: return finish<BFloat16>(call, at, work);
        default: return;  // the binding rejects other types
    }
}
#else  // never called: the binding rejects calls with amx
int64_t conv3x3_amx_grad_weight_bytes(const Conv3x3GradWeight&) { return 0; }
void conv3x3_amx_grad_weight(const Conv3x3GradWeight&, float*) {}
#endif

}  // namespace FASTDS_ISA
}  // namespace fastds
