// SPDX-License-Identifier: Apache-2.0
// Convolutions with few outputs. Each output is a plane of floats, to which each input plane is added nine times, once for each
// tap: shifted by the tap and multiplied by the weight. All lanes of the vectors are used even for one output, and inputs with
// contiguous pixels need no transposition.
#include "conv3x3/tiles.h"
#include "core/parallel.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Conversion of rows of a feature map to planes of floats, one per channel, including the padding around the map. A plane is
// one contiguous sequence of rows of `row` elements. The neighbours of element i are at i + dy * row + dx, so that one loop
// over the whole plane replaces loops over rows with remainders. The results in the padding between two rows are discarded.

constexpr int64_t kPlanes = 16;                             // channels that are converted at once
constexpr int kRunVectors = FASTDS_MANY_REGISTERS ? 6 : 3;  // vectors of a plane that are processed at once

// Sizes of the planes of a band of rows.
struct Band {
    int64_t rows;   // rows of outputs
    int64_t row;    // elements of a row
    int64_t plane;  // elements of a plane, including those that the last vector reads beyond the end; an odd number of cache lines

    Band(const Conv3x3Geometry& g, int64_t rows)
        : rows(rows), row(g.Wo + 2), plane(round_up((rows + 2) * row + 2 + kRunVectors * kL, 16) | 16) {}
    int64_t length() const { return rows * row; }
};

inline int64_t get_row_bytes(const Conv3x3Map& map, int64_t width) { return width * map.channels * (map.dtype == f32 ? 4 : 2); }

// Converts n values to float. Writes whole vectors with zeros after the last value.
template <class T>
void convert_to_float(const T* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += kL) store_vec<kL>(to + i, load_partial(from + i, static_cast<int>(min_of(n - i, kL))));
}

// Inverse of transpose_registers. Before the call, the N vectors hold kL columns of N values one after the other. After the
// call, each vector holds one row of kL values.
template <int N>
FASTDS_HD void transpose_registers_inverse(V (&rows)[N]) {
    for (int round = 1; round < N; round *= 2) {
        V next[N];
#pragma GCC unroll 4
        for (int i = 0; i < N / 2; i++) {
            next[i] = every_second<0>(rows[2 * i], rows[2 * i + 1], lanes_of<kL>{});
            next[i + N / 2] = every_second<1>(rows[2 * i], rows[2 * i + 1], lanes_of<kL>{});
        }
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) rows[i] = next[i];
    }
}

// Sets to[c * plane + x] = from[x * count + c] with 1 < count <= N. Whole vectors are read and written, possibly beyond the
// last element.
template <int N>
void deinterleave_pixels(const float* from, int64_t count, int64_t width, float* to, int64_t plane) {
    for (int64_t x = 0; x < width; x += kL) {
        float numbers[N * kL];
        for (int pixel = 0; count < N && pixel < kL; pixel++)
            __builtin_memcpy(numbers + pixel * N, from + (x + pixel) * count, N * sizeof(float));
        const float* next = count == N ? from + x * N : numbers;
        V rows[N];
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) rows[i] = load_vec<kL>(next + i * kL);
        transpose_registers_inverse(rows);
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
            if (i < count) store_vec<kL>(to + i * plane + x, rows[i]);
    }
}

// Sets to[x * count + c] = from[c * plane + x] with 1 < count <= N. Whole vectors are read and written, possibly beyond the
// last element.
template <int N>
void interleave_planes(const float* from, int64_t plane, int64_t count, int64_t width, float* to) {
    for (int64_t x = 0; x < width; x += kL) {
        V rows[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) rows[i] = i < count ? load_vec<kL>(from + i * plane + x) : V{};
        transpose_registers(rows);
        float numbers[N * kL];
        float* next = count == N ? to + x * N : numbers;
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) store_vec<kL>(next + i * kL, rows[i]);
        // Each copy writes beyond its pixel; the copy of the next pixel overwrites the excess.
        for (int pixel = 0; count < N && pixel < kL; pixel++)
            __builtin_memcpy(to + (x + pixel) * count, numbers + pixel * N, N * sizeof(float));
    }
}

inline void interleave_planes(const float* from, int64_t plane, int64_t count, int64_t width, float* to) {
    if (count == 2) return interleave_planes<2>(from, plane, count, width, to);
    if (count <= 4) return interleave_planes<4>(from, plane, count, width, to);
    if (count <= 8) return interleave_planes<8>(from, plane, count, width, to);
    transpose_rows(reinterpret_cast<const uint32_t*>(from), plane, count, width, reinterpret_cast<uint32_t*>(to), count);
}

// Converts a row of `width` pixels with `count` contiguous channels to `count` planes. `work` has at least kPlanes * width
// elements.
template <class T>
void deinterleave_row(const T* from, int64_t pixel, int64_t width, int64_t count, float* work, float* to, int64_t plane) {
    if (pixel == count && 1 < count && count <= 8) {
        convert_to_float(from, width * count, work);
        if (count == 2) return deinterleave_pixels<2>(work, count, width, to, plane);
        return count <= 4 ? deinterleave_pixels<4>(work, count, width, to, plane) : deinterleave_pixels<8>(work, count, width, to, plane);
    }
    if constexpr (sizeof(T) == sizeof(float)) {
        transpose_rows(reinterpret_cast<const uint32_t*>(from), pixel, width, count, reinterpret_cast<uint32_t*>(to), plane);
    } else {
        uint16_t* rows = reinterpret_cast<uint16_t*>(work);
        transpose_rows(reinterpret_cast<const uint16_t*>(from), pixel, width, count, rows, width);
        for (int64_t c = 0; c < count; c++) convert_to_float(reinterpret_cast<const T*>(rows) + c * width, width, to + c * plane);
    }
}

// The padding columns of a row and, for each, the column whose value it takes (-1 for zero).
struct Margin {
    int count = 0;
    int64_t column[4], from[4];

    explicit Margin(const Conv3x3Geometry& g) {
        for (int i = 1; i <= g.pad_w; i++)
            for (int64_t outside = -i; outside < g.W + i; outside += g.W + 2 * i - 1) {
                column[count] = outside;
                from[count++] = apply_padding(outside, g.W, g.mode_w);
            }
    }
    void fill(float* row) const {
        for (int i = 0; i < count; i++) row[column[i]] = from[i] < 0 ? 0.f : row[from[i]];
    }
};

// Converts the channels [channels.begin, channels.end) of image b to planes of the band whose first output row is `first`. For
// `work` see deinterleave_row.
template <class T>
void convert_to_planes(const Conv3x3Geometry& g, const Conv3x3Map& map, Range channels, int64_t b, int64_t first, const Band& band,
             float* work, float* to) {
    const Margin margin(g);
    const int64_t count = channels.end - channels.begin;
    const T* image = static_cast<const T*>(map.data) + b * map.b + channels.begin * map.c;
    for (int64_t r = 0; r < band.rows + 2; r++) {
        const int64_t y = apply_padding(first + r - g.pad_h, g.H, g.mode_h);
        float* row = to + r * band.row;
        if (y < 0) {
            for (int64_t c = 0; c < count; c++) __builtin_memset(row + c * band.plane, 0, band.row * sizeof(float));
            continue;
        }
        const T* source = image + y * map.h;
        if (map.w != 1 && map.c == 1)
            deinterleave_row(source, map.w, g.W, count, work, row + g.pad_w, band.plane);
        else
            for (int64_t c = 0; c < count; c++) convert_to_float(source + c * map.c, g.W, row + g.pad_w + c * band.plane);
        for (int64_t c = 0; c < count; c++) margin.fill(row + g.pad_w + c * band.plane);
    }
    // Clears the elements that the last vector reads beyond the last row of a plane (see clear_excess_tiles in winograd.h).
    float* after_rows = to + (band.rows + 2) * band.row;
    for (int64_t c = 0; c < count; c++) __builtin_memset(after_rows + c * band.plane, 0, (kL + 2) * sizeof(float));
}

inline void convert_to_planes(const Conv3x3Geometry& g, const Conv3x3Map& map, Range channels, int64_t b, int64_t first,
                              const Band& band,
                    float* work, float* to) {
    switch (map.dtype) {
        case f32: return convert_to_planes<float>(g, map, channels, b, first, band, work, to);
        case f16: return convert_to_planes<Half>(g, map, channels, b, first, band, work, to);
        case bf16: return convert_to_planes<BFloat16>(g, map, channels, b, first, band, work, to);
        case f64: break;
    }
}

constexpr int kRunOutputs = 4;             // outputs that are computed at once
constexpr int64_t kBandFloats = 48 << 10;  // floats of a thread's planes, which stay in its caches
constexpr int64_t kBandBytes = 256 << 10;  // bytes of a band of channels_last input, of which kPlanes channels are read at a time
constexpr int64_t kTasksPerThread = 4, kMinRows = 4;

// Layout of the memory of one thread.
struct Layout {
    Band band;
    int64_t bands;                 // bands of an image
    int64_t sums, pixels, floats;  // after the planes of the inputs: planes of the outputs, and one row in pixel order

    explicit Layout(const Conv3x3Planes& call) : band(call.geometry, choose_rows(call)) {
        const Conv3x3Geometry& g = call.geometry;
        bands = count_parts(g.Ho, band.rows);
        sums = kPlanes * band.plane;
        pixels = sums + call.outputs * band.plane;
        floats = pixels + round_up(g.W > g.Wo ? g.W : g.Wo, kL) * (kPlanes > call.outputs ? kPlanes : call.outputs) + 16;
    }

    // Returns the number of rows of a band. The results do not depend on it.
    static int64_t choose_rows(const Conv3x3Planes& call) {
        const Conv3x3Geometry& g = call.geometry;
        int64_t rows = count_parts(g.B * g.Ho, call.threads * kTasksPerThread);
        for (int i = 0; i < call.sources; i++) {
            const Conv3x3Map& map = call.source[i];
            if (map.w != 1) rows = min_of(rows, kBandBytes / get_row_bytes(map, g.W));
        }
        rows = rows > kMinRows ? rows : kMinRows;
        rows = min_of(rows, min_of(g.Ho, kBandFloats / ((kPlanes + call.outputs) * (g.Wo + 2))));
        return rows > 1 ? rows : 1;
    }
};

// Computes sums[o][i] += sum over inputs and taps of filter * plane[i + dy * row + dx], for NV vectors of NO outputs.
template <int NO, int NV>
inline void add_run(const Conv3x3Planes& call, const Band& band, const float* planes, int64_t inputs, const float* filters,
                    float* sums) {
    V acc[NO][NV] = {};
    const int64_t step = call.adjoint ? -1 : 1;
    for (int64_t c = 0; c < inputs; c++) {
        const float* tap = filters + c * call.stride_i + (call.adjoint ? 8 : 0);
        for (int dy = 0; dy < 3; dy++)
#pragma GCC unroll 3
            for (int dx = 0; dx < 3; dx++, tap += step) {
                const float* at = planes + c * band.plane + dy * band.row + dx;
                V v[NV];
#pragma GCC unroll 6
                for (int j = 0; j < NV; j++) v[j] = load_vec<kL>(at + j * kL);
#pragma GCC unroll 4
                for (int o = 0; o < NO; o++) {
                    const V f = broadcast<float, kL>(tap[o * call.stride_o]);
#pragma GCC unroll 6
                    for (int j = 0; j < NV; j++) acc[o][j] += f * v[j];
                }
            }
    }
#pragma GCC unroll 4
    for (int o = 0; o < NO; o++)
#pragma GCC unroll 6
        for (int j = 0; j < NV; j++) {
            float* at = sums + o * band.plane + j * kL;
            store_vec<kL>(at, load_vec<kL>(at) + acc[o][j]);
        }
}

template <int NO>
void add_runs(const Conv3x3Planes& call, const Band& band, const float* planes, int64_t inputs, const float* filters, float* sums) {
    const int64_t run = band.length();
    int64_t i = 0;
    for (; i + (kRunVectors - 1) * kL < run; i += kRunVectors * kL)
        add_run<NO, kRunVectors>(call, band, planes + i, inputs, filters, sums + i);
    if (kRunVectors > 3)
        for (; i + 2 * kL < run; i += 3 * kL) add_run<NO, 3>(call, band, planes + i, inputs, filters, sums + i);
    for (; i < run; i += kL) add_run<NO, 1>(call, band, planes + i, inputs, filters, sums + i);
}

void add_inputs(const Conv3x3Planes& call, const Band& band, const float* planes, int64_t inputs, const float* filters,
                float* sums) {
    for (int64_t o = 0; o < call.outputs; o += kRunOutputs) {
        const float* of_outputs = filters + o * call.stride_o;
        float* at = sums + o * band.plane;
        switch (min_of(call.outputs - o, kRunOutputs)) {
            case 1: add_runs<1>(call, band, planes, inputs, of_outputs, at); break;
            case 2: add_runs<2>(call, band, planes, inputs, of_outputs, at); break;
            case 3: add_runs<3>(call, band, planes, inputs, of_outputs, at); break;
            default: add_runs<4>(call, band, planes, inputs, of_outputs, at);
        }
    }
}

// Writes one row of y from one row of the sums.
template <class T>
void finish_row(const Conv3x3Planes& call, const Band& band, const float* sums, float* pixels, int64_t at) {
    const int64_t width = call.geometry.Wo, numbers = width * call.outputs;
    T* y = static_cast<T*>(call.y) + at;
    const T* residual = call.residual == nullptr ? nullptr : static_cast<const T*>(call.residual) + at;
    if (call.outputs > 1) {
        interleave_planes(sums, band.plane, call.outputs, width, pixels);
        sums = pixels;
    }
    for_vectors(numbers, [&](int64_t i, int count) {
        const V sum = load_partial(sums + i, count);
        const V v = residual == nullptr ? sum : sum + load_partial(residual + i, count);
        const V result = activate(v, call.act, call.negative_slope);
        count == kL ? store_vec<kL>(y + i, result) : store_lanes(y + i, result, count);
    });
}

template <class T>
void run_band(const Conv3x3Planes& call, const Layout& at, int64_t b, int64_t first, float* scratch) {
    const Conv3x3Geometry& g = call.geometry;
    Band band = at.band;
    band.rows = min_of(band.rows, g.Ho - first);
    float *sums = scratch + at.sums, *pixels = scratch + at.pixels;
    for (int64_t o = 0; o < call.outputs; o++) {
        const V bias = broadcast<float, kL>(call.bias == nullptr ? 0.f : call.bias[o]);
        for (int64_t i = 0; i < band.length(); i += kL) store_vec<kL>(sums + o * band.plane + i, bias);
    }
    const float* filters = call.filters;
    for (int s = 0; s < call.sources; s++)
        for (int64_t c = 0; c < call.source[s].channels; c += kPlanes) {
            const Range channels{c, min_of(c + kPlanes, call.source[s].channels)};
            convert_to_planes(g, call.source[s], channels, b, first, band, pixels, scratch);
            add_inputs(call, band, scratch, channels.end - c, filters, sums);
            filters += (channels.end - c) * call.stride_i;
        }
    for (int64_t r = 0; r < band.rows; r++)
        finish_row<T>(call, band, sums + r * band.row, pixels, (b * g.Ho + first + r) * g.Wo * call.outputs);
}

template <class T>
void run(const Conv3x3Planes& call, float* workspace) {
    const Layout at(call);
    const int64_t tasks = call.geometry.B * at.bands;
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            const Range part = get_part(tasks, call.threads, thread);
            for (int64_t task = part.begin; task < part.end; task++)
                run_band<T>(call, at, task / at.bands, task % at.bands * at.band.rows, workspace + thread * at.floats);
        }
    });
}

// Weight gradient with few channels on one side.

constexpr int kFew = FASTDS_MANY_REGISTERS ? 3 : 1;  // channels whose nine sums fit into registers
constexpr int64_t kManyBytes = 256 << 10;            // bytes of a band of `many`, which is read again for each vector of its channels
constexpr int64_t kSummedPixels = 1024;              // pixels that are summed in registers; longer sums lose precision
// Maximum number of private accumulators. It determines the order of the sums and does not depend on the number of threads.
constexpr int64_t kAccumulators = 32;

// Layout of the memory of one accumulator: planes of a band of `few`, a buffer to transpose its rows, and sums[few][tap][many].
struct FewLayout {
    Band band;
    int64_t bands, accumulators, transposed, sums, columns, floats;

    explicit FewLayout(const Conv3x3FewGradWeight& call) : band(call.geometry, choose_rows(call)) {
        const Conv3x3Geometry& g = call.geometry;
        bands = count_parts(g.Ho, band.rows);
        accumulators = min_of(g.B * bands, kAccumulators);
        columns = round_up(call.many.channels, kL);
        transposed = call.few.channels * band.plane;
        sums = round_up(transposed + round_up(g.W, kL) * kPlanes, kL);
        floats = sums + call.few.channels * 9 * columns;
    }

    static int64_t choose_rows(const Conv3x3FewGradWeight& call) {
        const int64_t width = call.geometry.W;
        const int64_t rows = min_of(min_of(kManyBytes / get_row_bytes(call.many, width), kSummedPixels / width), call.geometry.Ho);
        return rows > 1 ? rows : 1;
    }
};

// Computes sums[f][tap][0:kL] += sum over pixels of many[0:kL] * (plane f, shifted by the tap), for NF planes.
template <int NF, class T>
inline void add_pixels(const Conv3x3Map& many, const T* pixels, int count, const Band& band, int64_t width, const float* planes,
                       float* sums, int64_t columns) {
    V acc[NF][9] = {};
    for (int64_t r = 0; r < band.rows; r++)
        for (int64_t x = 0; x < width; x++) {
            const V v = load_partial(pixels + r * many.h + x * many.w, count);
            const float* at = planes + r * band.row + x;
#pragma GCC unroll 3
            for (int f = 0; f < NF; f++)
#pragma GCC unroll 9
                for (int tap = 0; tap < 9; tap++)
                    acc[f][tap] += v * broadcast<float, kL>(at[f * band.plane + tap / 3 * band.row + tap % 3]);
        }
#pragma GCC unroll 3
    for (int f = 0; f < NF; f++)
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; tap++) {
            float* at = sums + (f * 9 + tap) * columns;
            store_vec<kL>(at, load_vec<kL>(at) + acc[f][tap]);
        }
}

template <class T>
void add_few(const Conv3x3FewGradWeight& call, const FewLayout& at, const Band& band, int64_t b, int64_t first, float* work) {
    const T* rows = static_cast<const T*>(call.many.data) + b * call.many.b + first * call.many.h;
    for_vectors(call.many.channels, [&](int64_t m, int count) {
        for (int64_t f = 0; f < call.few.channels; f += kFew) {
            const float* planes = work + f * band.plane;
            float* sums = work + at.sums + f * 9 * at.columns + m;
            const auto add = [&](auto few) {
                add_pixels<decltype(few)::value>(call.many, rows + m, count, band, call.geometry.W, planes, sums, at.columns);
            };
            switch (min_of(call.few.channels - f, kFew)) {
                case 1: add(Width<1>{}); break;
                case 2: add(Width<(kFew < 2 ? kFew : 2)>{}); break;
                default: add(Width<kFew>{});
            }
        }
    });
}

void run_few_accumulator(const Conv3x3FewGradWeight& call, const FewLayout& at, int64_t accumulator, float* work) {
    __builtin_memset(work + at.sums, 0, (at.floats - at.sums) * sizeof(float));
    const Range tasks = get_part(call.geometry.B * at.bands, at.accumulators, accumulator);
    for (int64_t task = tasks.begin; task < tasks.end; task++) {
        const int64_t b = task / at.bands, first = task % at.bands * at.band.rows;
        Band band = at.band;
        band.rows = min_of(band.rows, call.geometry.Ho - first);
        for (int64_t c = 0; c < call.few.channels; c += kPlanes)
            convert_to_planes(call.geometry, call.few, {c, min_of(c + kPlanes, call.few.channels)}, b, first, band,
                              work + at.transposed,
                    work + c * band.plane);
        switch (call.many.dtype) {
            case f32: add_few<float>(call, at, band, b, first, work); break;
            case f16: add_few<Half>(call, at, band, b, first, work); break;
            case bf16: add_few<BFloat16>(call, at, band, b, first, work); break;
            case f64: break;
        }
    }
}

// Adds the accumulators and writes grad_weight.
template <class T>
void finish_few(const Conv3x3FewGradWeight& call, const FewLayout& at, const float* work) {
    const int64_t few = call.few.channels, many = call.many.channels;
    T* filters = static_cast<T*>(call.grad_weight);
    parallel_for(few * 9, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const int64_t f = row / 9, tap = row % 9;
            for (int64_t m = 0; m < many; m += kL) {
                V sum = {};
                for (int64_t accumulator = 0; accumulator < at.accumulators; accumulator++)
                    sum += load_vec<kL>(work + accumulator * at.floats + at.sums + row * at.columns + m);
                T numbers[kL];
                store_vec<kL>(numbers, sum);
                // If `few` is the gradient of the outputs, its planes are shifted relative to the input, so that the taps are
                // reversed.
                for (int64_t i = m; i < min_of(m + kL, many); i++)
                    filters[call.gradients ? (f * many + i) * 9 + 8 - tap : (i * few + f) * 9 + tap] = numbers[i - m];
            }
        }
    });
}

}  // namespace

int64_t conv3x3_few_grad_weight_bytes(const Conv3x3FewGradWeight& call) {
    const FewLayout at(call);
    return at.accumulators * at.floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_few_grad_weight(const Conv3x3FewGradWeight& call, float* workspace) {
    const FewLayout at(call);
    parallel_for(at.accumulators, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t accumulator = begin; accumulator < end; accumulator++)
            run_few_accumulator(call, at, accumulator, workspace + accumulator * at.floats);
    });
    switch (call.dtype) {
        case f32: return finish_few<float>(call, at, workspace);
        case f16: return finish_few<Half>(call, at, workspace);
        case bf16: return finish_few<BFloat16>(call, at, workspace);
        case f64: break;
    }
}

int64_t conv3x3_planes_bytes(const Conv3x3Planes& call) {
    return call.threads * Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_planes(const Conv3x3Planes& call, float* workspace) {
    switch (call.y_dtype) {
        case f32: return run<float>(call, workspace);
        case f16: return run<Half>(call, workspace);
        case bf16: return run<BFloat16>(call, workspace);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
