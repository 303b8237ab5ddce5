// SPDX-License-Identifier: Apache-2.0
// Pixels are the rows of a product, outputs its columns. Maps of float32 whose channels lie side by side, or are few, are read
// where they are; others are brought to that order, a chunk of pixels at a time, in a thread's own memory.
#include "conv1x1/amx.h"
#include "conv1x1/few_outputs.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kFewPlanes = 128;         // of pixels side by side, which are read where they are
constexpr int64_t kPackedAlone = 32 << 10;  // weights that one thread packs

// Pixels of a product that a thread takes at once.
template <class Step>
constexpr int64_t kChunkPixels = kOnTiles<Step> ? 128 : 48;
template <class Step>
constexpr int64_t kLeastPixels = kOnTiles<Step> ? 16 : 12;
// Lines of A that lie so far from each other share sets of the first cache.
constexpr int64_t kFarChannels = 512;

// A chunk of a source: rows of `steps` steps from a on, `step` numbers apart, and the packed weights.
template <class Step>
struct Panel {
    const typename Step::Stored *a, *b;
    int64_t row, step, steps;
};

inline int64_t most_channels(const Conv1x1& call) {
    const int64_t one = call.source[0].channels, other = call.sources > 1 ? call.source[1].channels : 0;
    return one > other ? one : other;
}

// Where the numbers of a call lie.
template <class T, class StepType>
struct Layout {
    using Step = StepType;
    using S = typename Step::Stored;

    int64_t chunk, chunks, threads;  // pixels; of an image
    bool direct[2];                  // whether a source is read where it is
    int64_t row[2];                  // of a source that is not

    explicit Layout(const Conv1x1& call) {
        int64_t channels = 0;
        for (int s = 0; s < call.sources; s++) {
            const Conv1x1Map& map = call.source[s];
            const bool few = Step::terms == 1 && map.channels <= kFewPlanes;
            direct[s] = sizeof(T) == sizeof(S) && (few || (map.c == 1 && map.channels == padded(map.channels)));
            row[s] = round_up(map.channels + 1, kL);
            if (kOnTiles<Step>) {
                direct[s] = direct[s] && map.p < kFarChannels && call.pixels >= kTileRows;
                row[s] = (parts_of(map.channels + 1, kTileDepth) | 1) * kTileDepth;  // an odd number of cache lines
            }
            channels += map.channels;
        }
        const int64_t all = call.batch * call.pixels;
        threads = all * channels * call.outputs < kWorthThreads<Step> ? 1 : call.threads;
        chunk = least(kChunkPixels<Step>, round_up(parts_of(all, threads), kLeastPixels<Step>));
        chunks = parts_of(call.pixels, chunk);
    }

    static int64_t padded(int64_t channels) { return round_up(channels, kWholeChannels<Step>); }

    // Weights and bias, which all threads read; rows: of weights that are converted.
    struct Shared {
        S *packed[2], *rows;
        float* bias;
    };
    Shared shared(const Conv1x1& call, Workspace& space) const {
        Shared parts{};
        for (int s = 0; s < call.sources; s++) parts.packed[s] = space.take<S>(packed_size<Step>(call.outputs, padded(call.source[s].channels)));
        parts.rows = space.take<S>(call.outputs * padded(most_channels(call)));
        parts.bias = space.take<float>(round_up(call.outputs, kL));
        return parts;
    }

    // A thread's own.
    struct Own {
        S* staged[2];
        uint16_t* work;
    };
    Own own(const Conv1x1& call, Workspace& space) const {
        Own parts{};
        for (int s = 0; s < call.sources; s++)
            if (!direct[s] || kOnTiles<Step>) parts.staged[s] = space.take<S>(kChunkPixels<Step> * row[s]);
        parts.work = space.take<uint16_t>(kChunkPixels<Step> * most_channels(call));
        return parts;
    }

    int64_t own_bytes(const Conv1x1& call) const {
        Workspace space{nullptr};
        own(call, space);
        return space.bytes();
    }
    int64_t bytes(const Conv1x1& call) const {
        Workspace space{nullptr};
        shared(call, space);
        return space.bytes() + call.threads * own_bytes(call);
    }
};

// Rows of weights, one an output, as numbers of S: zeros behind the last channel, to whole steps.
template <class S, class W>
const S* rows_of(const W* weight, int64_t stride, int64_t channels, Range outputs, int64_t row, S* to) {
    const auto rest = [](int64_t count) { return static_cast<int>(count < 0 ? 0 : least(kL, count)); };
    for (int64_t o = outputs.begin; o < outputs.end; o++)
        for (int64_t c = 0; c < row; c += kL)
            store_lanes(to + o * row + c, load_lanes(weight + o * stride + c, rest(channels - c)), rest(row - c));
    return to;
}

// As the columns of the product: of 4-byte numbers, each a step.
template <class At, class W>
void pack_weights(const Conv1x1& call, const typename At::Shared& shared) {
    using Step = typename At::Step;
    using S = typename Step::Stored;
    const W* weight = static_cast<const W*>(call.weight);
    const int64_t blocks = packed_blocks<Step>(call.outputs);
    for (int s = 0; s < call.sources; s++, weight += call.source[s - 1].channels) {
        const int64_t channels = call.source[s].channels, padded = At::padded(channels), steps = padded / Step::terms;
        const bool alone = channels * call.outputs < kPackedAlone;
        parallel_for(blocks, alone ? 1 : call.threads, [&](int64_t begin, int64_t end) {
            for_packed_blocks<Step>(call.outputs, {begin, end}, [&](auto width, int64_t column) {
                constexpr int64_t lanes = decltype(width)::value * kL;
                const Range outputs{column, least(column + lanes, call.outputs)};
                const S* rows = reinterpret_cast<const S*>(weight);
                int64_t row = call.stride_o / Step::terms, taken = channels / Step::terms;
                if (sizeof(W) != sizeof(S) || channels % Step::terms != 0 || call.stride_o % Step::terms != 0) {
                    rows = rows_of(weight, call.stride_o, channels, outputs, padded, shared.rows);
                    row = taken = steps;
                }
                uint32_t* to = reinterpret_cast<uint32_t*>(shared.packed[s] + column * padded);
                const bool whole = outputs.end == column + lanes;
                const int64_t written = whole ? taken : 0;
                __builtin_memset(to + written * lanes, 0, (steps - written) * lanes * sizeof(uint32_t));
                turn(reinterpret_cast<const uint32_t*>(rows) + column * row, row, outputs.end - column, taken, to, lanes);
            });
        });
    }
}

template <class W>
void pack_bias(const Conv1x1& call, float* to) {
    const W* bias = static_cast<const W*>(call.bias);
    for (int64_t o = 0; o < round_up(call.outputs, kL); o++) to[o] = bias != nullptr && o < call.outputs ? load(bias[o]) : 0.f;
}

// Sums of MR rows from row i of the panels on and of a block of columns, to rows that are `row` numbers apart.
template <class Step, int MR, int NV, class T>
__attribute__((noinline)) void sums(const Panel<Step>* panels, int count, const float* bias, int64_t i, int64_t column, T* to,
                                    int64_t row) {
    V acc[MR][NV];
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[r][j] = load_vec<kL>(bias + column + j * kL);
    for (int s = 0; s < count; s++) {
        const Panel<Step>& p = panels[s];
        multiply<Step, MR, NV>(acc, p.a + i * p.row, p.row, p.step, p.b + column * p.steps * Step::terms, NV * kL * Step::terms,
                               p.steps);
    }
    store_tile<T, MR, NV>(to, acc, row);
}

// Rows of `vectors` vectors of sums into y, from number `at` of its first row on. Whole vectors may be written up to number
// `end`: what stands behind a row is written over by the next.
template <class T>
void finish(const Conv1x1& call, const float* from, int64_t rows, int64_t vectors, int64_t at, int64_t column, int64_t end) {
    T* const y = static_cast<T*>(call.y);
    const T* const residual = static_cast<const T*>(call.residual);
    for (int64_t i = 0; i < rows; i++, at += call.outputs)
        for (int64_t j = 0; j < vectors; j++, from += kL) {
            const int64_t to = at + j * kL;
            const int count = static_cast<int>(least(kL, call.outputs - column - j * kL));
            V v = load_vec<kL>(from);
            if (residual != nullptr) v += load_some(residual + to, count);
            v = activate(v, call.act, call.negative_slope);
            count == kL || to + kL <= end ? store_vec<kL>(y + to, v) : store_lanes(y + to, v, count);
        }
}

// Pixels of an image. The last rows of a chunk that are no whole tile are taken with some before them once more.
template <class T, class Step>
void run_chunk(const Conv1x1& call, const Panel<Step>* panels, const float* bias, int64_t first, int64_t count) {
    if constexpr (kOnTiles<Step>) return multiply_on_tiles(call, panels, bias, first, count);
    // Behind a row of one block stands the next row alone.
    const int64_t end = column_blocks<float>(call.outputs).blocks == 1 ? (first + count) * call.outputs : 0;
    const bool plain = call.act == act_none && call.residual == nullptr;
    for_column_blocks<float>(call.outputs, [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
        const auto block = [&](auto rows, int64_t i) {
            constexpr int R = decltype(rows)::value;
            const int64_t at = (first + i) * call.outputs + column;
            if (plain && (column + NV * kL <= call.outputs || at + (R - 1) * call.outputs + NV * kL <= end)) {
                sums<Step, R, NV>(panels, call.sources, bias, i, column, static_cast<T*>(call.y) + at, call.outputs);
            } else {
                alignas(64) float out[R * NV * kL];
                sums<Step, R, NV>(panels, call.sources, bias, i, column, out, NV * kL);
                finish<T>(call, out, R, NV, at, column, end);
            }
        };
        if (count < MR)
            for (int64_t i = 0; i < count; i++) block(Width<1>{}, i);
        else
            for (int64_t i = 0; i < count; i += MR) block(Width<MR>{}, least(i, count - MR));
    });
}

// Some pixels of source s in image b, where they are or brought to order.
template <class T, class Step>
Panel<Step> panel_of(const Conv1x1& call, const Layout<T, Step>& at, int s, int64_t b, Range pixels,
                     const typename Step::Stored* packed, const typename Layout<T, Step>::Own& own) {
    using S = typename Step::Stored;
    const Conv1x1Map& map = call.source[s];
    const int64_t padded = at.padded(map.channels), steps = padded / Step::terms, count = pixels.end - pixels.begin;
    if (at.direct[s] && (!kOnTiles<Step> || count >= kTileRows))
        return {pixel_at<S>(map, b, pixels.begin), packed, map.p, map.c * Step::terms, steps};
    stage<S, T>(map, b, pixels.begin, count, own.staged[s], at.row[s], own.work);
    if (kOnTiles<Step> && map.channels < padded)
        for (int64_t i = 0; i < count; i++)
            __builtin_memset(own.staged[s] + i * at.row[s] + map.channels, 0, (padded - map.channels) * sizeof(S));
    return {own.staged[s], packed, at.row[s], Step::terms, steps};
}

template <class T, class Step>
void run_product(const Conv1x1& call, char* workspace) {
    using At = Layout<T, Step>;
    const At at(call);
    Workspace space{workspace};
    const auto shared = at.shared(call, space);
    if (call.weight_dtype == f32) {
        pack_weights<At, float>(call, shared);
        pack_bias<float>(call, shared.bias);
    } else {
        pack_weights<At, T>(call, shared);
        pack_bias<T>(call, shared.bias);
    }
    const int64_t each = at.own_bytes(call);
    parallel_for(at.threads, static_cast<int>(at.threads), [&](int64_t begin, int64_t end) {
        if (kOnTiles<Step>) configure_tiles();
        for (int64_t thread = begin; thread < end; thread++) {
            Workspace mine{space.next + thread * each};
            const auto own = at.own(call, mine);
            const Range tasks = part_of(call.batch * at.chunks, at.threads, thread);
            for (int64_t task = tasks.begin; task < tasks.end; task++) {
                const int64_t b = task / at.chunks;
                const Range pixels = part_of(call.pixels, at.chunks, task % at.chunks);
                Panel<Step> panels[2];
                for (int s = 0; s < call.sources; s++) panels[s] = panel_of(call, at, s, b, pixels, shared.packed[s], own);
                run_chunk<T>(call, panels, shared.bias, b * call.pixels + pixels.begin, pixels.end - pixels.begin);
            }
        }
        if (kOnTiles<Step>) release_tiles();
    });
}

// Tiles are chosen by the channels alone: bits do not depend on the number of pixels.
inline bool on_tiles(const Conv1x1& call) {
    int64_t channels = 0;
    for (int s = 0; s < call.sources; s++) channels += call.source[s].channels;
    return call.tiles && channels > kLeastChannels;
}

template <class T>
int64_t bytes(const Conv1x1& call) {
    if (has_few_outputs(call, StepOf<T>::type::terms)) return FewOutputs<T>::bytes(call);
    return by_step<T>(on_tiles(call), [&](auto step) { return Layout<T, decltype(step)>(call).bytes(call); });
}

template <class T>
void run(const Conv1x1& call, char* workspace) {
    if (has_few_outputs(call, StepOf<T>::type::terms)) return FewOutputs<T>(call, workspace).run();
    by_step<T>(on_tiles(call), [&](auto step) { run_product<T, decltype(step)>(call, workspace); });
}

}  // namespace

int64_t conv1x1_bytes(const Conv1x1& given) {
    const Conv1x1 call = joined(given, given.source[0], given.source[given.sources - 1]);
    if (call.dtype == f32) return bytes<float>(call);
    return call.dtype == bf16 ? bytes<BFloat16>(call) : bytes<Half>(call);
}

void conv1x1(const Conv1x1& given, char* workspace) {
    const Conv1x1 call = joined(given, given.source[0], given.source[given.sources - 1]);
    if (call.dtype == f32) return run<float>(call, workspace);
    call.dtype == bf16 ? run<BFloat16>(call, workspace) : run<Half>(call, workspace);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
