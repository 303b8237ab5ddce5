// SPDX-License-Identifier: Apache-2.0
// Weight gradient of conv1x1: a product summed over the pixels, one chunk of pixels at a time. The columns, which fill vectors,
// are the channels of the gradient or of the source, whichever leaves fewer lanes unused. With AMX tiles, rows need contiguous
// pixels and columns need contiguous channels. If source and gradient have different layouts, this requirement determines which
// of them gives the rows.
#include "conv1x1/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kSummedPixels = 128;  // pixels that are summed in registers
constexpr int64_t kTilePixels = 256;    // pixels that are summed in AMX tiles
// Minimum number of pixels per private accumulator; this constant and kMaxAccumulators determine the order of the sums.
constexpr int64_t kAccumulatorPixels = 512;
constexpr int64_t kMaxAccumulators = 16;
constexpr int64_t kTaskRows = 24;       // a multiple of the tile rows; with AMX two tiles

// A chunk of pixels as an operand of the sum: the values of a channel in one step start at data + step * of_pixel + channel *
// of_channel. A step is one pixel of floats or two pixels of bfloat16 (stage_pairs).
template <class S>
struct Chunk {
    const S* data;
    int64_t of_pixel, of_channel;
};

#if defined(__AVX512BF16__)
// Copies pixels in pairs, with the two values of a channel next to each other. If `count` is odd, zeros complete the last pair.
// `work` is passed to get_contiguous_channels().
inline Chunk<BFloat16> stage_pairs(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, BFloat16* to, int64_t row,
                                   uint16_t* work) {
    auto [from, pixel] = get_contiguous_channels<uint16_t>(map, b, first, count, work);
    uint32_t* next = reinterpret_cast<uint32_t*>(to);
    for (int64_t i = 0; i < count; i += 2, from += 2 * pixel, next += row)
        for (int64_t c = 0; c < map.channels; c += kSquare) {
            const int64_t rest = map.channels - c, n = min_of(kSquare, rest);
            const auto upcast = [&](const uint16_t* at) { return __builtin_convertvector(load_row(at, n), Vec<uint32_t,
                                                                                         kSquare>); };
            Vec<uint32_t, kSquare> pairs = upcast(from + c);
            if (i + 1 < count) pairs |= upcast(from + pixel + c) << 16;
            store_vec<kSquare>(next + c, pairs);
        }
    return {to, 2 * row, 2};
}
#endif

// Layout of the memory of a call: sums[row][column], with rows of whole vectors.
struct GradLayout {
    const bool tiles;
    const int64_t most, task_rows;  // pixels summed in registers; a task computes multiples of task_rows rows
    const bool transposed;          // the rows are channels of the source
    const Conv1x1Map &rows, &columns;
    const int64_t chunks, accumulators, parts;  // chunks of an image; private accumulators for ranges of pixels; parts of the rows
    const int64_t rows_row, columns_row;        // distances between rows of copied chunks in elements, with room for pairs

    explicit GradLayout(const Conv1x1GradWeight& call)
        : tiles(call.tiles && call.dtype == bf16), most(tiles ? kTilePixels : kSummedPixels),
          task_rows(tiles ? 2 * kTileRows : kTaskRows),
          transposed(tiles && (call.source.c == 1) != (call.gradient.c == 1)
                     ? call.gradient.c == 1
                     : 10 * lanes_taken(call.source, call.gradient) < 9 * lanes_taken(call.gradient, call.source)),
          rows(transposed ? call.source : call.gradient), columns(transposed ? call.gradient : call.source),
          chunks(count_parts(call.pixels, most)),
          accumulators(min_of(min_of(kMaxAccumulators, 1 + call.batch * call.pixels / (2 * kAccumulatorPixels)),
                              call.batch * chunks)),
          parts(min_of(count_parts(2 * call.threads, accumulators), count_parts(rows.channels, task_rows))),
          rows_row(round_up(rows.channels, kL)), columns_row(round_up(columns.channels, kL)) {}

    static int64_t lanes_taken(const Conv1x1Map& rows, const Conv1x1Map& columns) {
        return rows.channels * round_up(columns.channels, kL);
    }
    int64_t sums() const { return round_up(rows.channels, tiles ? kTileRows : 1) * columns_row; }  // elements of one accumulator
    Range get_rows(int64_t part) const {
        const Range blocks = get_part(count_parts(rows.channels, task_rows), parts, part);
        return {blocks.begin * task_rows, min_of(blocks.end * task_rows, rows.channels)};
    }

    // Memory of one thread for a chunk.
    struct ThreadBuffers {
        float *rows, *columns;
        uint16_t* work;
    };
    ThreadBuffers take_thread_buffers(Workspace& space) const {
        const int64_t widest = rows_row > columns_row ? rows_row : columns_row;
        return {space.take<float>(most * rows_row), space.take<float>(most * columns_row), space.take<uint16_t>(most * widest)};
    }
    int64_t count_thread_bytes() const {
        Workspace space{nullptr};
        take_thread_buffers(space);
        return space.bytes();
    }
};

// direct: a float32 input is read in place.
template <class T, class S>
Chunk<S> make_chunk(const Conv1x1Map& map, bool direct, int64_t b, int64_t first, int64_t count, float* to, int64_t row,
                  uint16_t* work) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(S) == 2) return stage_pairs(map, b, first, count, reinterpret_cast<S*>(to), row, work);
#endif
    if constexpr (sizeof(S) == sizeof(float)) {
        if (direct) return {get_pixel<float>(map, b, first), map.p, map.c};
        stage<float, T>(map, b, first, count, to, row, work);
        return {to, row, 1};
    }
}

// Computes sums[row][column] += sum over pixels of rows[pixel][row] * columns[pixel][column] for MR rows and NV vectors of
// columns.
template <class Step, int MR, int NV, class S>
__attribute__((noinline)) void add_tile(const Chunk<S>& rows, const Chunk<S>& columns, int64_t steps, int64_t row, int64_t column,
                                        float* sums, int64_t sums_row) {
    V acc[MR][NV];
    clear<float, MR, NV>(acc);
    multiply<Step, MR, NV>(acc, rows.data + row * rows.of_channel, rows.of_channel, rows.of_pixel,
                           columns.data + column * Step::terms, columns.of_pixel, steps);
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) {
            float* at = sums + (row + r) * sums_row + column + j * kL;
            store_vec<kL>(at, V(load_vec<kL>(at) + acc[r][j]));
        }
}

#if defined(__AVX512BF16__)
// Distance between the channels of copied rows in elements. It is an odd number of cache lines, which spreads the channels over
// the sets of the cache.
constexpr int64_t kPixelRow = kTilePixels + kTileDepth;

// Copies a chunk of pixels so that the pixels of a channel are contiguous: element (channel, pixel) is at to + channel *
// kPixelRow + pixel. Zeros follow the last pixel up to whole tiles.
inline void stage_lines(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, BFloat16* to) {
    const uint16_t* from = get_pixel<uint16_t>(map, b, first);
    uint16_t* lines = reinterpret_cast<uint16_t*>(to);
    if (map.c == 1) transpose_rows(from, map.p, count, map.channels, lines, kPixelRow);
    for (int64_t c = 0; c < map.channels; c++, lines += kPixelRow) {
        if (map.c != 1) __builtin_memcpy(lines, from + c * map.c, count * sizeof(*lines));
        __builtin_memset(lines + count, 0, (round_up(count, kTileDepth) - count) * sizeof(*lines));
    }
}

inline void add_chunk_on_tiles(const BFloat16* lines, int64_t rows, const BFloat16* pairs, int64_t columns, int64_t pixels,
                               bool fresh, float* sums, int64_t row) {
    for (int64_t column = 0; column < columns; column += 2 * kTileColumns)
        for (int64_t r = 0; r < rows; r += 2 * kTileRows) {
            const bool below = r + kTileRows < rows, right = column + kTileColumns < columns;
            const auto add = below ? (right ? add_pairs<2, 2> : add_pairs<2, 1>) : (right ? add_pairs<1, 2> : add_pairs<1, 1>);
            add(lines + r * kPixelRow, kPixelRow, pairs + 2 * column, row, pixels, fresh, sums + r * row + column, row);
        }
}

// Like add_rows, with AMX tiles.
inline void add_rows_on_tiles(const Conv1x1GradWeight& call, const GradLayout& at, Range chunks, const Conv1x1Map& map,
                              const GradLayout::ThreadBuffers& buffers, float* sums) {
    BFloat16 *lines = reinterpret_cast<BFloat16*>(buffers.rows), *pairs = reinterpret_cast<BFloat16*>(buffers.columns);
    for (int64_t chunk = chunks.begin; chunk < chunks.end; chunk++) {
        const int64_t b = chunk / at.chunks;
        const Range pixels = get_part(call.pixels, at.chunks, chunk % at.chunks);
        const int64_t count = pixels.end - pixels.begin, whole = round_up(count, kTileDepth);
        stage_lines(map, b, pixels.begin, count, lines);
        stage_pairs(at.columns, b, pixels.begin, count, pairs, at.columns_row, buffers.work);
        const int64_t staged = round_up(count, 2);
        __builtin_memset(pairs + staged * at.columns_row, 0, (whole - staged) * at.columns_row * sizeof(*pairs));
        add_chunk_on_tiles(lines, map.channels, pairs, at.columns.channels, whole, chunk == chunks.begin, sums, at.columns_row);
    }
}
#endif

template <class T>
Conv1x1Map select_channels(Conv1x1Map map, Range channels) {
    map.data = static_cast<const T*>(map.data) + channels.begin * map.c;
    map.channels = channels.end - channels.begin;
    return map;
}

// Computes the rows `of_sums` of one accumulator from the pixels of `chunks`.
template <class T>
void add_rows(const Conv1x1GradWeight& call, const GradLayout& at, Range chunks, Range of_sums, char* workspace, float* sums) {
    using Step = typename StepOf<T>::type;
    using S = typename Step::Stored;
    Workspace space{workspace};
    const GradLayout::ThreadBuffers buffers = at.take_thread_buffers(space);
    const Conv1x1Map map = select_channels<T>(at.rows, of_sums);
    const int64_t end = map.channels;
    const bool floats = sizeof(T) == sizeof(float);
    sums += of_sums.begin * at.columns_row;
#if defined(__AVX512BF16__)
    if constexpr (Step::terms > 1)
        if (at.tiles) return add_rows_on_tiles(call, at, chunks, map, buffers, sums);
#endif
    __builtin_memset(sums, 0, end * at.columns_row * sizeof(float));
    for (int64_t chunk = chunks.begin; chunk < chunks.end; chunk++) {
        const int64_t b = chunk / at.chunks;
        const Range pixels = get_part(call.pixels, at.chunks, chunk % at.chunks);
        const int64_t first = pixels.begin, length = pixels.end - first, steps = count_parts(length, Step::terms);
        // The last vector of a pixel may include elements after the pixel; their sums are not used. After the last pixel of an
        // image, such elements may not exist.
        const bool readable = at.columns.c == 1 && (at.columns.channels % kL == 0 || pixels.end < call.pixels);
        const auto rows = make_chunk<T, S>(map, floats, b, first, length, buffers.rows, at.rows_row, buffers.work);
        const auto columns = make_chunk<T, S>(at.columns, floats && readable, b, first, length, buffers.columns,
                                              at.columns_row, buffers.work);
        for_column_blocks<float>(at.columns.channels, [&](auto width, int64_t column) {
            constexpr int NV = decltype(width)::value, MR = tile_rows(NV);
            int64_t row = 0;
            for (; row + MR <= end; row += MR) add_tile<Step, MR, NV>(rows, columns, steps, row, column, sums, at.columns_row);
            for (; row + 4 <= end; row += 4) add_tile<Step, 4, NV>(rows, columns, steps, row, column, sums, at.columns_row);
            for (; row + 2 <= end; row += 2) add_tile<Step, 2, NV>(rows, columns, steps, row, column, sums, at.columns_row);
            if (row < end) add_tile<Step, 1, NV>(rows, columns, steps, row, column, sums, at.columns_row);
        });
    }
}

// Adds the accumulators of one row and stores the totals at the start of the row as values of type W.
template <class W>
void sum_accumulators(const GradLayout& at, float* row) {
    for (int64_t c = 0; c < at.columns_row; c += kL) {
        V total = load_vec<kL>(row + c);
        for (int64_t accumulator = 1; accumulator < at.accumulators; accumulator++)
            total += load_vec<kL>(row + accumulator * at.sums() + c);
        store_vec<kL>(reinterpret_cast<W*>(row) + c, total);
    }
}

template <class W>
void store_sums(const Conv1x1GradWeight& call, const GradLayout& at, float* sums) {
    using Bits = std::conditional_t<sizeof(W) == sizeof(uint32_t), uint32_t, uint16_t>;
    Bits* to = static_cast<Bits*>(call.grad_weight);
    const int64_t count = at.rows.channels, columns = at.columns.channels;
    parallel_for(count, at.sums() * at.accumulators < kMinThreadedProducts ? 1 : call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; r++) {
            float* row = sums + r * at.columns_row;
            sum_accumulators<W>(at, row);
            if (!at.transposed) __builtin_memcpy(to + r * call.stride_o, row, columns * sizeof(W));
        }
    });
    const int64_t row = at.columns_row * static_cast<int64_t>(sizeof(float) / sizeof(W));
    if (at.transposed) transpose_rows(reinterpret_cast<const Bits*>(sums), row, count, columns, to, call.stride_o);
}

template <class T>
void run_grad_weight(const Conv1x1GradWeight& call, char* workspace) {
    const GradLayout at(call);
    const int64_t size = at.sums(), thread_bytes = at.count_thread_bytes();
    Workspace space{workspace};
    float* sums = space.take<float>(at.accumulators * size);
    const bool alone = call.batch * call.pixels * size < get_thread_threshold(at.tiles);
    const int64_t tasks = at.accumulators * at.parts, threads = alone ? 1 : min_of(call.threads, tasks);
    parallel_for(threads, static_cast<int>(threads), [&](int64_t begin, int64_t end) {
        const TileScope tiles(at.tiles);
        for (int64_t thread = begin; thread < end; thread++) {
            const Range mine = get_part(tasks, threads, thread);
            for (int64_t task = mine.begin; task < mine.end; task++) {
                const int64_t accumulator = task / at.parts;
                const Range chunks = get_part(call.batch * at.chunks, at.accumulators, accumulator);
                add_rows<T>(call, at, chunks, at.get_rows(task % at.parts), space.next + thread * thread_bytes,
                            sums + accumulator * size);
            }
        }
    });
    if (call.weight_dtype == f32)
        store_sums<float>(call, at, sums);
    else
        store_sums<T>(call, at, sums);
}

}  // namespace

int64_t conv1x1_grad_weight_bytes(const Conv1x1GradWeight& given) {
    const Conv1x1GradWeight call = merge_images(given, given.gradient, given.source);
    const GradLayout at(call);
    return round_up(at.accumulators * at.sums() * static_cast<int64_t>(sizeof(float)), 64) + call.threads * at.count_thread_bytes();
}

void conv1x1_grad_weight(const Conv1x1GradWeight& given, char* workspace) {
    const Conv1x1GradWeight call = merge_images(given, given.gradient, given.source);
    if (call.dtype == f32) return run_grad_weight<float>(call, workspace);
    call.dtype == bf16 ? run_grad_weight<BFloat16>(call, workspace) : run_grad_weight<Half>(call, workspace);
}

}  // namespace FASTDS_ISA
}  // namespace fastds
