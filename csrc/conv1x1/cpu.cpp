// SPDX-License-Identifier: Apache-2.0
// Pixels are the rows of a product, outputs its columns. Maps of float32 whose channels lie side by side, or are few, are read
// where they are; others are brought to that order, a chunk of pixels at a time, in a thread's own memory.
#include "conv1x1/params.h"

#include "core/activation.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "core/turn.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kChunkPixels = 48, kLeastPixels = 12;  // of a product that a thread takes at once
constexpr int64_t kFewPlanes = 16;                       // of pixels side by side, which are read where they are
constexpr int64_t kShared = 64 << 10;                    // multiplications: fewer are not worth a second thread
constexpr int64_t kPackedAlone = 32 << 10;               // weights that one thread packs
constexpr int64_t kSummedPixels = 128;                   // of a weight gradient, added up in registers
constexpr int64_t kLanesOfSums = 16;                     // sums that are made apart; the numbers depend on it, not on threads

// How maps of T are multiplied.
template <class T>
struct StepOf {
    using type = FmaStep<float>;
};
#if defined(__AVX512BF16__)
template <>
struct StepOf<BFloat16> {
    using type = Bf16DotStep;
};
#endif

// Parts of a workspace, one after the other, each on a cache line of its own.
struct Workspace {
    char* next;

    template <class S>
    S* take(int64_t count) {
        S* part = reinterpret_cast<S*>(next);
        next += round_up(count * static_cast<int64_t>(sizeof(S)), 64);
        return part;
    }
    int64_t bytes() const { return next - static_cast<char*>(nullptr); }  // of one that begins at null
};

template <class T>
const T* pixel_at(const Conv1x1Map& map, int64_t b, int64_t first) {
    return static_cast<const T*>(map.data) + b * map.b + first * map.p;
}

// Pixels whose channels lie side by side, `pixel` numbers apart.
template <class T>
struct Pixels {
    const T* from;
    int64_t pixel;
};

// `count` pixels of a map of 16-bit numbers from a pixel of image b on, where they are or turned into `work`, which has a number
// for every channel of every pixel.
template <class T>
Pixels<T> beside(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, uint16_t* work) {
    const T* from = pixel_at<T>(map, b, first);
    if (map.c == 1) return {from, map.p};
    turn(reinterpret_cast<const uint16_t*>(from), map.c, map.channels, count, work, map.channels);
    return {reinterpret_cast<const T*>(work), map.channels};
}

// The same of a map of T as rows of S; work: as of beside.
template <class S, class T>
void stage(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, S* to, int64_t row, uint16_t* work) {
    Pixels<T> pixels{pixel_at<T>(map, b, first), map.p};
    if constexpr (sizeof(T) != sizeof(float)) {
        pixels = beside<T>(map, b, first, count, work);
    } else if (map.c != 1) {
        turn(reinterpret_cast<const uint32_t*>(pixels.from), map.c, map.channels, count, reinterpret_cast<uint32_t*>(to), row);
        return;
    }
    const T* from = pixels.from;
    for (int64_t i = 0; i < count; i++, from += pixels.pixel, to += row) {
        if constexpr (sizeof(S) == sizeof(float)) {
            for (int64_t c = 0; c < map.channels; c += kL)
                store_vec<kL>(to + c, load_some(from + c, static_cast<int>(least(kL, map.channels - c))));
        } else {
            const uint16_t* bits = reinterpret_cast<const uint16_t*>(from);
            for (int64_t c = 0; c < map.channels; c += kTurn)  // zeros behind the last
                store_vec<kTurn>(reinterpret_cast<uint16_t*>(to) + c, load_row(bits + c, least(kTurn, map.channels - c)));
        }
    }
}

// ---- the product

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
template <class T>
struct Layout {
    using Step = typename StepOf<T>::type;
    using S = typename Step::Stored;

    int64_t chunk, chunks, threads;  // pixels; of an image
    bool direct[2];                  // whether a source is read where it is
    int64_t row[2];                  // of a source that is not

    explicit Layout(const Conv1x1& call) {
        int64_t channels = 0;
        for (int s = 0; s < call.sources; s++) {
            const Conv1x1Map& map = call.source[s];
            const bool few = Step::terms == 1 && map.channels <= kFewPlanes;
            direct[s] = sizeof(T) == sizeof(S) && (few || (map.c == 1 && map.channels % Step::terms == 0));
            row[s] = round_up(map.channels + 1, kL);
            channels += map.channels;
        }
        const int64_t all = call.batch * call.pixels;
        threads = all * channels * call.outputs < kShared ? 1 : call.threads;
        chunk = least(kChunkPixels, round_up(parts_of(all, threads), kLeastPixels));
        chunks = parts_of(call.pixels, chunk);
    }

    // Weights and bias, which all threads read; rows: of weights that are converted.
    struct Shared {
        S *packed[2], *rows;
        float* bias;
    };
    Shared shared(const Conv1x1& call, Workspace& space) const {
        Shared parts{};
        for (int s = 0; s < call.sources; s++) parts.packed[s] = space.take<S>(packed_size<Step>(call.outputs, call.source[s].channels));
        parts.rows = space.take<S>(call.outputs * round_up(most_channels(call), Step::terms));
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
            if (!direct[s]) parts.staged[s] = space.take<S>(kChunkPixels * row[s]);
        parts.work = space.take<uint16_t>(kChunkPixels * most_channels(call));
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
    for (int64_t o = outputs.begin; o < outputs.end; o++)
        for (int64_t c = 0; c < row; c++) to[o * row + c] = c < channels ? store<S>(load(weight[o * stride + c])) : S{};
    return to;
}

// As the columns of the product: of 4-byte numbers, each a step.
template <class T, class W>
void pack_weights(const Conv1x1& call, const typename Layout<T>::Shared& shared) {
    using Step = typename Layout<T>::Step;
    using S = typename Step::Stored;
    const W* weight = static_cast<const W*>(call.weight);
    const int64_t blocks = column_blocks<float>(call.outputs).blocks;
    for (int s = 0; s < call.sources; s++, weight += call.source[s - 1].channels) {
        const int64_t channels = call.source[s].channels, padded = round_up(channels, Step::terms), steps = padded / Step::terms;
        const bool alone = channels * call.outputs < kPackedAlone;
        parallel_for(blocks, alone ? 1 : call.threads, [&](int64_t begin, int64_t end) {
            for_column_blocks<float>(call.outputs, {begin, end}, [&](auto width, int64_t column) {
                constexpr int64_t lanes = decltype(width)::value * kL;
                const Range outputs{column, least(column + lanes, call.outputs)};
                const S* rows = reinterpret_cast<const S*>(weight);
                int64_t row = call.stride_o / Step::terms;
                if (sizeof(W) != sizeof(S) || Step::terms > 1) {
                    rows = rows_of(weight, call.stride_o, channels, outputs, padded, shared.rows);
                    row = steps;
                }
                uint32_t* to = reinterpret_cast<uint32_t*>(shared.packed[s] + column * padded);
                if (outputs.end < column + lanes) __builtin_memset(to, 0, steps * lanes * sizeof(uint32_t));
                turn(reinterpret_cast<const uint32_t*>(rows) + column * row, row, outputs.end - column, steps, to, lanes);
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
template <class T>
void run_chunk(const Conv1x1& call, const Panel<typename Layout<T>::Step>* panels, const float* bias, int64_t first, int64_t count) {
    using Step = typename Layout<T>::Step;
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

template <class T>
void run(const Conv1x1& call, char* workspace) {
    using Step = typename Layout<T>::Step;
    const Layout<T> at(call);
    Workspace space{workspace};
    const auto shared = at.shared(call, space);
    if (call.weight_dtype == f32) {
        pack_weights<T, float>(call, shared);
        pack_bias<float>(call, shared.bias);
    } else {
        pack_weights<T, T>(call, shared);
        pack_bias<T>(call, shared.bias);
    }
    const int64_t each = at.own_bytes(call);
    parallel_for(at.threads, static_cast<int>(at.threads), [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            Workspace mine{space.next + thread * each};
            const auto own = at.own(call, mine);
            const Range tasks = part_of(call.batch * at.chunks, at.threads, thread);
            for (int64_t task = tasks.begin; task < tasks.end; task++) {
                const int64_t b = task / at.chunks;
                const Range pixels = part_of(call.pixels, at.chunks, task % at.chunks);
                const int64_t count = pixels.end - pixels.begin;
                Panel<Step> panels[2];
                for (int s = 0; s < call.sources; s++) {
                    const Conv1x1Map& map = call.source[s];
                    using S = typename Step::Stored;
                    if (!at.direct[s]) stage<S, T>(map, b, pixels.begin, count, own.staged[s], at.row[s], own.work);
                    const S* read = pixel_at<S>(map, b, pixels.begin);
                    const int64_t steps = parts_of(map.channels, Step::terms);
                    if (at.direct[s])
                        panels[s] = {read, shared.packed[s], map.p, map.c * Step::terms, steps};
                    else
                        panels[s] = {own.staged[s], shared.packed[s], at.row[s], Step::terms, steps};
                }
                run_chunk<T>(call, panels, shared.bias, b * call.pixels + pixels.begin, count);
            }
        }
    });
}

// ---- the gradient of the weight

// A chunk of pixels as the sum over them reads it: number (pixel, channel) at data + pixel * of_pixel + channel * of_channel,
// where a pixel is a step.
template <class S>
struct Chunk {
    const S* data;
    int64_t of_pixel, of_channel;
};

#if defined(__AVX512BF16__)
// Pairs of pixels: the two numbers of a channel side by side. work: as of beside.
inline Chunk<BFloat16> stage_pairs(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, BFloat16* to, int64_t row,
                                   uint16_t* work) {
    auto [from, pixel] = beside<uint16_t>(map, b, first, count, work);
    uint32_t* next = reinterpret_cast<uint32_t*>(to);
    for (int64_t i = 0; i < count; i += 2, from += 2 * pixel, next += row)
        for (int64_t c = 0; c < map.channels; c += kTurn) {
            const int64_t rest = map.channels - c, n = least(kTurn, rest);
            const auto wide = [&](const uint16_t* at) { return __builtin_convertvector(load_row(at, n), Vec<uint32_t, kTurn>); };
            Vec<uint32_t, kTurn> pairs = wide(from + c);
            if (i + 1 < count) pairs |= wide(from + pixel + c) << 16;
            store_vec<kTurn>(next + c, pairs);
        }
    return {to, 2 * row, 2};
}
#endif

// Where the numbers of a call lie: rows of whole vectors, room for pairs.
struct GradLayout {
    int64_t chunks, lanes, gradient_row, source_row;

    explicit GradLayout(const Conv1x1GradWeight& call)
        : chunks(parts_of(call.pixels, kSummedPixels)), lanes(least(kLanesOfSums, call.batch * chunks)),
          gradient_row(round_up(call.gradient.channels, kL)), source_row(round_up(call.source.channels, kL)) {}

    int64_t sums(const Conv1x1GradWeight& call) const { return call.gradient.channels * source_row; }  // of a lane

    // A thread's own chunk.
    struct Own {
        float *gradient, *source;
        uint16_t* work;
    };
    Own own(Workspace& space) const {
        const int64_t most = gradient_row > source_row ? gradient_row : source_row;
        return {space.take<float>(kSummedPixels * gradient_row), space.take<float>(kSummedPixels * source_row),
                space.take<uint16_t>(kSummedPixels * most)};
    }
    int64_t own_bytes() const {
        Workspace space{nullptr};
        own(space);
        return space.bytes();
    }
};

// direct: read where it is, of float32.
template <class T, class S>
Chunk<S> chunk_of(const Conv1x1Map& map, bool direct, int64_t b, int64_t first, int64_t count, float* to, int64_t row,
                  uint16_t* work) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(S) == 2) return stage_pairs(map, b, first, count, reinterpret_cast<S*>(to), row, work);
#endif
    if constexpr (sizeof(S) == sizeof(float)) {
        if (direct) return {pixel_at<float>(map, b, first), map.p, map.c};
        stage<float, T>(map, b, first, count, to, row, work);
        return {to, row, 1};
    }
}

// sums[o][column block] += sum over the pixels of gradient[pixel][o] * source[pixel][column].
template <class Step, int MR, int NV, class S>
__attribute__((noinline)) void add_tile(const Chunk<S>& gradient, const Chunk<S>& source, int64_t steps, int64_t o, int64_t column,
                                        float* sums, int64_t sums_row) {
    V acc[MR][NV];
    clear<float, MR, NV>(acc);
    multiply<Step, MR, NV>(acc, gradient.data + o * gradient.of_channel, gradient.of_channel, gradient.of_pixel,
                           source.data + column * Step::terms, source.of_pixel, steps);
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) {
            float* at = sums + (o + r) * sums_row + column + j * kL;
            store_vec<kL>(at, V(load_vec<kL>(at) + acc[r][j]));
        }
}

template <class T>
void add_lane(const Conv1x1GradWeight& call, const GradLayout& at, Range tasks, char* workspace, float* sums) {
    using Step = typename StepOf<T>::type;
    using S = typename Step::Stored;
    Workspace space{workspace};
    const GradLayout::Own own = at.own(space);
    __builtin_memset(sums, 0, at.sums(call) * sizeof(float));
    const bool floats = sizeof(T) == sizeof(float), whole = call.source.c == 1 && call.source.channels % kL == 0;
    const int64_t outputs = call.gradient.channels;
    for (int64_t task = tasks.begin; task < tasks.end; task++) {
        const int64_t b = task / at.chunks;
        const Range pixels = part_of(call.pixels, at.chunks, task % at.chunks);
        const int64_t first = pixels.begin, count = pixels.end - first, steps = parts_of(count, Step::terms);
        const auto gradient = chunk_of<T, S>(call.gradient, floats, b, first, count, own.gradient, at.gradient_row, own.work);
        const auto source = chunk_of<T, S>(call.source, floats && whole, b, first, count, own.source, at.source_row, own.work);
        for_column_blocks<float>(call.source.channels, [&](auto width, int64_t column) {
            constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
            int64_t o = 0;
            for (; o + MR <= outputs; o += MR) add_tile<Step, MR, NV>(gradient, source, steps, o, column, sums, at.source_row);
            for (; o + 4 <= outputs; o += 4) add_tile<Step, 4, NV>(gradient, source, steps, o, column, sums, at.source_row);
            for (; o < outputs; o++) add_tile<Step, 1, NV>(gradient, source, steps, o, column, sums, at.source_row);
        });
    }
}

template <class W>
void store_sums(const Conv1x1GradWeight& call, const GradLayout& at, const float* sums) {
    W* to = static_cast<W*>(call.grad_weight);
    const int64_t lane_size = at.sums(call), channels = call.source.channels;
    parallel_for(call.gradient.channels, lane_size * at.lanes < kShared ? 1 : call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; o++)
            for (int64_t c = 0; c < channels; c += kL) {
                V total{};
                for (int64_t lane = 0; lane < at.lanes; lane++) total += load_vec<kL>(sums + lane * lane_size + o * at.source_row + c);
                store_lanes(to + o * call.stride_o + c, total, static_cast<int>(least(kL, channels - c)));
            }
    });
}

template <class T>
void run_grad_weight(const Conv1x1GradWeight& call, char* workspace) {
    const GradLayout at(call);
    const int64_t size = at.sums(call), own = at.own_bytes();
    Workspace space{workspace};
    float* sums = space.take<float>(at.lanes * size);
    const bool alone = call.batch * call.pixels * size < kShared;
    const int64_t threads = alone ? 1 : least(call.threads, at.lanes);
    parallel_for(threads, static_cast<int>(threads), [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            const Range lanes = part_of(at.lanes, threads, thread);
            for (int64_t lane = lanes.begin; lane < lanes.end; lane++)
                add_lane<T>(call, at, part_of(call.batch * at.chunks, at.lanes, lane), space.next + thread * own, sums + lane * size);
        }
    });
    if (call.weight_dtype == f32)
        store_sums<float>(call, at, sums);
    else
        store_sums<T>(call, at, sums);
}

}  // namespace

int64_t conv1x1_bytes(const Conv1x1& call) {
    return call.dtype == f32    ? Layout<float>(call).bytes(call)
           : call.dtype == bf16 ? Layout<BFloat16>(call).bytes(call)
                                : Layout<Half>(call).bytes(call);
}

void conv1x1(const Conv1x1& call, char* workspace) {
    if (call.dtype == f32) return run<float>(call, workspace);
    call.dtype == bf16 ? run<BFloat16>(call, workspace) : run<Half>(call, workspace);
}

int64_t conv1x1_grad_weight_bytes(const Conv1x1GradWeight& call) {
    const GradLayout at(call);
    return round_up(at.lanes * at.sums(call) * static_cast<int64_t>(sizeof(float)), 64) + call.threads * at.own_bytes();
}

void conv1x1_grad_weight(const Conv1x1GradWeight& call, char* workspace) {
    if (call.dtype == f32) return run_grad_weight<float>(call, workspace);
    call.dtype == bf16 ? run_grad_weight<BFloat16>(call, workspace) : run_grad_weight<Half>(call, workspace);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
