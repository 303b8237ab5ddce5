// SPDX-License-Identifier: Apache-2.0
// conv1x1 on the CPU as a matrix product, whose rows are pixels and whose columns are outputs. Inputs are read in place if
// their dtype and layout permit (Layout::direct). Other inputs are copied to memory of the thread, one chunk of pixels at a
// time.
#include "conv1x1/amx.h"
#include "conv1x1/few_outputs.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kFewPlanes = 128;                // maximum number of channels of contiguous pixels that are read in place
constexpr int64_t kLargePlane = 16 << 10;          // in pixels
constexpr int64_t kSingleThreadPacked = 32 << 10;  // weights that one thread packs alone
constexpr int64_t kMinChannels = 8;                // channels for which AMX tiles (depth 32) are not worthwhile
constexpr int64_t kFarChannels = 512;              // distance of pixels from which on they share sets of the L1 cache

// A chunk of pixels of a source and its packed weights b. Pixel i starts at a + i * row and has `steps` steps with a stride of
// `step` elements. A step is the number of channels that one instruction multiplies (core/gemm.h).
template <class Step>
struct Panel {
    const typename Step::Stored *a, *b;
    int64_t row, step, steps;
};

inline int64_t get_max_channels(const Conv1x1& call) {
    const int64_t one = call.source[0].channels, other = call.sources > 1 ? call.source[1].channels : 0;
    return one > other ? one : other;
}

// Returns whether planes of floats are read in place. A read is slow after a write to an address with the same lowest 12 bits
// (4K aliasing). This is rare if the planes are few or small, or if all of them start near the same position of a 4 KB page.
inline bool can_read_planes(const Conv1x1Map& map) {
    constexpr int64_t page = 4096 / sizeof(float);
    const int64_t off = map.c % page, apart = min_of(off, page - off);
    return map.channels <= kFewPlanes && (map.channels <= kL || map.c < kLargePlane || apart * map.channels <= page);
}

// Layout of the memory of a call.
template <class T>
struct Layout {
    using Step = typename StepOf<T>::type;
    using S = typename Step::Stored;

    Blocking blocking;               // of the weights
    int64_t most;                    // pixels that a thread processes at once
    int64_t chunk, chunks, threads;  // chunk: pixels; chunks: of an image
    bool direct[2];                  // whether a source is read in place
    int64_t row[2];                  // distance between rows of a copied source
    int64_t depth;                   // depth of an AMX product in elements

    explicit Layout(const Conv1x1& call) {
        int64_t channels = 0;
        for (int s = 0; s < call.sources; s++) channels += call.source[s].channels;
        // The choice of AMX does not depend on the number of pixels, so that the results do not depend on it either.
        const bool tiles = Step::terms > 1 && call.tiles && channels > kMinChannels;
        blocking = {tiles};
        most = tiles ? 128 : 48;
        depth = call.sources == 1 && channels < kTileDepth ? round_up(channels, 2) : kTileDepth;
        for (int s = 0; s < call.sources; s++) {
            const Conv1x1Map& map = call.source[s];
            const bool planes = map.c != 1;
            const bool whole = map.channels % (tiles ? depth : Step::terms) == 0;
            const bool readable = planes ? Step::terms == 1 && can_read_planes(map) : whole;
            direct[s] = sizeof(T) == sizeof(S) && readable;
            if (planes && !tiles && !direct[s]) most = 192;  // longer chunks for sequential access to planes
            row[s] = round_up(map.channels + 1, kL);
            if (tiles) {
                direct[s] = direct[s] && map.p < kFarChannels && call.pixels >= kTileRows;
                row[s] = (count_parts(map.channels, kTileDepth) | 1) * kTileDepth;  // an odd number of cache lines
            }
        }
        const int64_t all = call.batch * call.pixels;
        threads = all * channels * call.outputs < get_thread_threshold(tiles) ? 1 : call.threads;
        chunk = min_of(most, round_up(count_parts(all, threads), tiles ? kTileRows : 12));
        chunks = count_parts(call.pixels, chunk);
    }

    int64_t padded(int64_t channels) const { return round_up(channels, blocking.term_multiple<Step>()); }

    // Packed weights and bias, which all threads read. `rows` receives converted weights if packing cannot read the weights in
    // place.
    struct SharedBuffers {
        S *packed[2], *rows;
        float* bias;
    };
    SharedBuffers take_shared_buffers(const Conv1x1& call, Workspace& space) const {
        SharedBuffers parts{};
        for (int s = 0; s < call.sources; s++)
            parts.packed[s] = space.take<S>(packed_size<Step>(call.outputs, call.source[s].channels, blocking));
        parts.rows = space.take<S>(call.outputs * padded(get_max_channels(call)));
        parts.bias = space.take<float>(round_up(call.outputs, kL));
        return parts;
    }

    // Memory of one thread.
    struct ThreadBuffers {
        S* staged[2];
        uint16_t* work;
    };
    ThreadBuffers take_thread_buffers(const Conv1x1& call, Workspace& space) const {
        ThreadBuffers parts{};
        for (int s = 0; s < call.sources; s++)
            if (!direct[s] || blocking.tiles) parts.staged[s] = space.take<S>(most * row[s]);
        parts.work = space.take<uint16_t>(most * get_max_channels(call));
        return parts;
    }

    int64_t count_thread_bytes(const Conv1x1& call) const {
        Workspace space{nullptr};
        take_thread_buffers(call, space);
        return space.bytes();
    }
    int64_t bytes(const Conv1x1& call) const {
        Workspace space{nullptr};
        take_shared_buffers(call, space);
        return space.bytes() + call.threads * count_thread_bytes(call);
    }
};

// Converts the weights of the given outputs to S, one row of `row` elements per output, with zeros after the last channel.
template <class S, class W>
const S* convert_weight_rows(const W* weight, int64_t stride, int64_t channels, Range outputs, int64_t row, S* to) {
    const auto rest = [](int64_t count) { return static_cast<int>(count < 0 ? 0 : min_of(kL, count)); };
    for (int64_t o = outputs.begin; o < outputs.end; o++)
        for (int64_t c = 0; c < row; c += kL)
            store_lanes(to + o * row + c, load_lanes(weight + o * stride + c, rest(channels - c)), rest(row - c));
    return to;
}

// Packs the weights as columns of the product. This is a transpose of 4-byte elements, each of which holds one step: one float
// or two bfloat16 values.
template <class T, class W>
void pack_weights(const Conv1x1& call, const Layout<T>& at, const typename Layout<T>::SharedBuffers& shared) {
    using Step = typename Layout<T>::Step;
    using S = typename Step::Stored;
    const W* weight = static_cast<const W*>(call.weight);
    const int64_t most = at.blocking.vectors(), blocks = column_blocks<float>(call.outputs, most).blocks;
    for (int s = 0; s < call.sources; s++, weight += call.source[s - 1].channels) {
        const int64_t channels = call.source[s].channels, padded = at.padded(channels), steps = padded / Step::terms;
        const bool alone = channels * call.outputs < kSingleThreadPacked;
        const auto pack_block = [&](auto width, int64_t column) {
            constexpr int64_t lanes = decltype(width)::value * kL;
            const Range outputs{column, min_of(column + lanes, call.outputs)};
            const S* rows = reinterpret_cast<const S*>(weight);
            int64_t row = call.stride_o / Step::terms, taken = channels / Step::terms;
            if (sizeof(W) != sizeof(S) || channels % Step::terms != 0 || call.stride_o % Step::terms != 0) {
                rows = convert_weight_rows(weight, call.stride_o, channels, outputs, padded, shared.rows);
                row = taken = steps;
            }
            uint32_t* to = reinterpret_cast<uint32_t*>(shared.packed[s] + column * padded);
            const int64_t written = outputs.end == column + lanes ? taken : 0;
            __builtin_memset(to + written * lanes, 0, (steps - written) * lanes * sizeof(uint32_t));
            transpose_rows(reinterpret_cast<const uint32_t*>(rows) + column * row, row, outputs.end - column, taken, to, lanes);
        };
        parallel_for(blocks, alone ? 1 : call.threads, [&](int64_t begin, int64_t end) {
            for_column_blocks<float>(call.outputs, {begin, end}, pack_block, most);
        });
    }
}

template <class W>
void pack_bias(const Conv1x1& call, float* to) {
    const W* bias = static_cast<const W*>(call.bias);
    for (int64_t o = 0; o < round_up(call.outputs, kL); o++) to[o] = bias != nullptr && o < call.outputs ? load(bias[o]) : 0.f;
}

// Computes the sums of MR pixels of the panels, from pixel i on, for one block of columns. The results are stored in rows
// with a stride of `row` elements.
template <class Step, int MR, int NV, class T>
__attribute__((noinline)) void compute_sums(const Panel<Step>* panels, int count, const float* bias, int64_t i,
                                            int64_t column, T* to,
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

// Writes rows of `vectors` vectors of sums to y, from position `at` on, after adding the residual and applying the activation.
// Whole vectors may be written up to position `end`, because the next row overwrites the elements after a row.
template <class T>
void finish(const Conv1x1& call, const float* from, int64_t rows, int64_t vectors, int64_t at, int64_t column, int64_t end) {
    T* const y = static_cast<T*>(call.y);
    const T* const residual = static_cast<const T*>(call.residual);
    for (int64_t i = 0; i < rows; i++, at += call.outputs)
        for (int64_t j = 0; j < vectors; j++, from += kL) {
            const int64_t to = at + j * kL;
            const int count = static_cast<int>(min_of(kL, call.outputs - column - j * kL));
            V v = load_vec<kL>(from);
            if (residual != nullptr) v += load_partial(residual + to, count);
            v = activate(v, call.act, call.negative_slope);
            count == kL || to + kL <= end ? store_vec<kL>(y + to, v) : store_lanes(y + to, v, count);
        }
}

// Computes a chunk of pixels of an image. The last block of pixels may overlap the block before, so that some pixels are
// computed twice.
template <class T>
void run_chunk(const Conv1x1& call, bool tiles, const Panel<typename Layout<T>::Step>* panels, const float* bias, int64_t first,
               int64_t count) {
    using Step = typename Layout<T>::Step;
#if defined(__AVX512BF16__)
    if constexpr (Step::terms > 1)
        if (tiles) return multiply_on_tiles(call, panels, bias, first, count);
#endif
    // If there is a single block of columns, it covers whole rows of y, and the element after a row belongs to the next row.
    const int64_t end = column_blocks<float>(call.outputs).blocks == 1 ? (first + count) * call.outputs : 0;
    const bool stores_sums = call.act == act_none && call.residual == nullptr;
    for_column_blocks<float>(call.outputs, [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
        const auto block = [&](auto rows, int64_t i) {
            constexpr int R = decltype(rows)::value;
            const int64_t at = (first + i) * call.outputs + column;
            if (stores_sums && (column + NV * kL <= call.outputs || at + (R - 1) * call.outputs + NV * kL <= end)) {
                compute_sums<Step, R, NV>(panels, call.sources, bias, i, column, static_cast<T*>(call.y) + at, call.outputs);
            } else {
                alignas(64) float out[R * NV * kL];
                compute_sums<Step, R, NV>(panels, call.sources, bias, i, column, out, NV * kL);
                finish<T>(call, out, R, NV, at, column, end);
            }
        };
        if (count < MR)
            for (int64_t i = 0; i < count; i++) block(Width<1>{}, i);
        else
            for (int64_t i = 0; i < count; i += MR) block(Width<MR>{}, min_of(i, count - MR));
    });
}

// Returns the given pixels of source s in image b as a panel, in place or copied to `buffers`.
template <class T>
Panel<typename Layout<T>::Step> make_panel(const Conv1x1& call, const Layout<T>& at, int s, int64_t b, Range pixels,
                                         const typename Layout<T>::S* packed, const typename Layout<T>::ThreadBuffers& buffers) {
    using Step = typename Layout<T>::Step;
    using S = typename Step::Stored;
    const Conv1x1Map& map = call.source[s];
    const int64_t steps = at.padded(map.channels) / Step::terms, count = pixels.end - pixels.begin;
    if (at.direct[s] && (!at.blocking.tiles || count >= kTileRows))
        return {get_pixel<S>(map, b, pixels.begin), packed, map.p, map.c * Step::terms, steps};
#if defined(__AVX512BF16__)
    if constexpr (Step::terms > 1)
        if (at.blocking.tiles) {
            stage_tiles(map, b, pixels.begin, count, buffers.staged[s], at.row[s]);
            return {buffers.staged[s], packed, at.row[s], Step::terms, steps};
        }
#endif
    stage<S, T>(map, b, pixels.begin, count, buffers.staged[s], at.row[s], buffers.work);
    return {buffers.staged[s], packed, at.row[s], Step::terms, steps};
}

template <class T>
void run_product(const Conv1x1& call, char* workspace) {
    const Layout<T> at(call);
    Workspace space{workspace};
    const auto shared = at.take_shared_buffers(call, space);
    if (call.weight_dtype == f32) {
        pack_weights<T, float>(call, at, shared);
        pack_bias<float>(call, shared.bias);
    } else {
        pack_weights<T, T>(call, at, shared);
        pack_bias<T>(call, shared.bias);
    }
    const int64_t each = at.count_thread_bytes(call);
    parallel_for(at.threads, static_cast<int>(at.threads), [&](int64_t begin, int64_t end) {
        const TileScope tiles(at.blocking.tiles, at.depth);
        for (int64_t thread = begin; thread < end; thread++) {
            Workspace mine{space.next + thread * each};
            const auto buffers = at.take_thread_buffers(call, mine);
            const Range tasks = get_part(call.batch * at.chunks, at.threads, thread);
            for (int64_t task = tasks.begin; task < tasks.end; task++) {
                const int64_t b = task / at.chunks;
                const Range pixels = get_part(call.pixels, at.chunks, task % at.chunks);
                Panel<typename Layout<T>::Step> panels[2];
                for (int s = 0; s < call.sources; s++) panels[s] = make_panel(call, at, s, b, pixels, shared.packed[s], buffers);
                const int64_t first = b * call.pixels + pixels.begin;
                run_chunk<T>(call, at.blocking.tiles, panels, shared.bias, first, pixels.end - pixels.begin);
            }
        }
    });
}

template <class T>
int64_t bytes(const Conv1x1& call) {
    return has_few_outputs(call, StepOf<T>::type::terms) ? FewOutputs<T>::bytes(call) : Layout<T>(call).bytes(call);
}

template <class T>
void run(const Conv1x1& call, char* workspace) {
    const bool few = has_few_outputs(call, StepOf<T>::type::terms);
    few ? FewOutputs<T>(call, workspace).run() : run_product<T>(call, workspace);
}

}  // namespace

int64_t conv1x1_bytes(const Conv1x1& given) {
    const Conv1x1 call = merge_images(given, given.source[0], given.source[given.sources - 1]);
    if (call.dtype == f32) return bytes<float>(call);
    return call.dtype == bf16 ? bytes<BFloat16>(call) : bytes<Half>(call);
}

void conv1x1(const Conv1x1& given, char* workspace) {
    const Conv1x1 call = merge_images(given, given.source[0], given.source[given.sources - 1]);
    if (call.dtype == f32) return run<float>(call, workspace);
    call.dtype == bf16 ? run<BFloat16>(call, workspace) : run<Half>(call, workspace);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
