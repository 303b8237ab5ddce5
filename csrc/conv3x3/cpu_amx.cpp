// SPDX-License-Identifier: Apache-2.0
// The convolution, forward or grad_x, as plain sums of products of bfloat16 on matrix tiles (AMX).
//
// Outputs stand at positions: those of a row one after the other, two more positions without outputs, then the next row; behind
// the last row of an image two such rows. Where the input pixels lie at positions in the same way (V), position p reads
// p + y * row + x for 0 <= x, y < 3, whatever p is: 16 positions in succession and 16 filters are one product of a tap, in which
// nothing is copied. Threads own disjoint rows; the numbers of an output depend on no blocking.
//
// The channels are walked in steps of 32, and 512 positions take one step before the next: the weights of a step stay in the L1 cache
// (a quarter faster than whole sums, though the sums M are read again in every step).
#include "conv3x3/amx.h"
#include "conv3x3/output.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {

#if defined(__AVX512BF16__)
namespace {

constexpr int64_t kGroup = 2 * kTileRows;     // positions of a product
constexpr int64_t kPair = 2 * kTileColumns;   // columns of a product
constexpr int64_t kChunk = 16 * kGroup;       // that take a step before the next
constexpr int64_t kBlockBytes = 512 << 10;    // of V, which shares an L2 cache with filters and sums
constexpr int64_t kBlockPositions = 4096;     // whose places are looked up
constexpr int64_t kBlockRows = 8;             // at least, where images are not higher: each block copies two rows more

// The rows of all images, cut into strips of columns where they are long.
struct Rows {
    int64_t strips, width;  // of an image; outputs of a row of a strip
    int64_t row, high;      // positions of a row; rows of an image
    int64_t count;          // rows of all strips of all images

    Rows(const Conv3x3Geometry& g, const PixelRows& pixels) : high(g.Ho + 2) {
        const int64_t bytes = pixels.pixel * sizeof(BFloat16);
        const int64_t most = least(kBlockBytes / bytes / (kBlockRows + 2), kBlockPositions / kBlockRows) - 2;
        strips = parts_of(g.Wo, most > kTileRows ? most : kTileRows);
        width = parts_of(g.Wo, strips > 0 ? strips : 1);
        row = width + 2;
        count = g.B * strips * high;
    }
};

// A row of a strip, or its pixel: in an image, its first output.
struct Place {
    int64_t b, y, x, width;
};

inline Place row_at(const Conv3x3Geometry& g, const Rows& rows, int64_t index) {
    const int64_t strip = index / rows.high, x = strip % rows.strips * rows.width;
    return {strip / rows.strips, index % rows.high, x, index % rows.high < g.Ho ? least(rows.width, g.Wo - x) : 0};
}

// Where the output of a position lies in a view of its own; all lanes of a vector, or none where it has no output.
struct LinePlace {
    int64_t offset;
    __mmask32 lanes;
};

struct Blocks {
    int64_t count, rows;                       // at most so many rows each
    int64_t m_row, m_group;                    // floats of M from position to position and from group to group
    int64_t v, m, places, zeros, cell, thread_floats;  // where they begin in the workspace of a thread

    Blocks(const Conv3x3Call& call, const Rows& all, const PixelRows& pixels, bool is_cell, int threads) {
        const int64_t columns = call.sinks.channels(), row_bytes = all.row * pixels.pixel * sizeof(BFloat16);
        const int64_t most = least(kBlockBytes / row_bytes - 2, kBlockPositions / all.row);
        const int64_t groups = parts_of(all.count * all.row, kGroup);
        count = least(round_up(parts_of(all.count, most > 1 ? most : 1), threads), least(groups, all.count));
        rows = parts_of(all.count, count > 0 ? count : 1);
        m_row = is_cell ? round_up(columns, kL) : kPair;
        m_group = kGroup * m_row + 16;
        v = 0;
        m = round_up((round_up(rows * all.row, kGroup) + 2 * all.row + 2) * pixels.pixel / 2, 16);
        places = m + kChunk / kGroup * m_group;
        zeros = places + (round_up(rows * all.row, kGroup) + kGroup) * static_cast<int64_t>(sizeof(LinePlace) / sizeof(float));
        cell = round_up(zeros + widest(call.sources) / 2 + 1, 16);
        thread_floats = cell + (is_cell ? kTileRows * columns : 0);
        thread_floats = round_up(thread_floats, 16) + 16;
    }
};

// `count` pixels of `channels` channels, `step` numbers apart, into rows of V. sign: as in Conv3x3View, same steps.
template <bool Signed>
inline void copy_pixels(const BFloat16* from, const BFloat16* sign, int64_t step, int64_t count, int64_t channels, float slope,
                        BFloat16* to, int64_t row) {
    constexpr int lanes = Signed ? kL : 2 * kL;
    for (int64_t channel = 0; channel < channels; channel += lanes) {
        const int64_t rest = least(lanes, channels - channel);
        const __mmask32 mask = rest == 32 ? ~0u : (1u << rest) - 1;
        for (int64_t i = 0; i < count; i++) {
            const BFloat16* at = from + i * step + channel;
            BFloat16* out = to + i * row + channel;
            if constexpr (Signed) {
                const int n = static_cast<int>(rest);
                store_lanes(out, activation_gradient(load_lanes(at, n), load_lanes(sign + i * step + channel, n), slope), n);
            } else if (rest == lanes) {
                _mm512_storeu_si512(out, _mm512_loadu_si512(at));
            } else {
                _mm512_mask_storeu_epi16(out, mask, _mm512_maskz_loadu_epi16(mask, at));
            }
        }
    }
}

// `count` pixels of an image's row from column x on, continued beyond its edges, `pixel` numbers apart.
template <bool Signed>
void copy_row(const Conv3x3Call& call, int64_t b, int64_t y, int64_t x, int64_t count, const BFloat16* zeros, BFloat16* out,
              int64_t pixel) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t row = continued(y, g.H, g.mode_h);
    for (int s = 0; s < call.sources.count; out += call.sources.view[s++].channels) {
        const Conv3x3View& view = call.sources.view[s];
        const int64_t line = b * view.b + row * view.h;
        const bool dense = !Signed && view.w == view.channels && pixel == view.channels;
        // Pixels [i, i + n), which lie side by side from `column` on; -1: zeros.
        const auto copy = [&](int64_t i, int64_t n, int64_t column) {
            const bool outside = row < 0 || column < 0;
            const int64_t at = line + column * view.w;
            const BFloat16* from = outside ? zeros : static_cast<const BFloat16*>(view.data) + at;
            if (dense && !outside) return static_cast<void>(__builtin_memcpy(out + i * pixel, from, n * pixel * sizeof(*out)));
            copy_pixels<Signed>(from, outside || !Signed ? zeros : static_cast<const BFloat16*>(view.sign) + at,
                                outside ? 0 : view.w, n, view.channels, call.negative_slope, out + i * pixel, pixel);
        };
        if (row < 0) {
            copy(0, count, -1);
            continue;
        }
        const int64_t begin = x < 0 ? least(-x, count) : 0, inside = least(g.W - x, count), end = inside > begin ? inside : begin;
        for (int64_t i = 0; i < begin; i++) copy(i, 1, continued(x + i, g.W, g.mode_w));
        if (end > begin) copy(begin, end - begin, x + begin);
        for (int64_t i = end; i < count; i++) copy(i, 1, continued(x + i, g.W, g.mode_w));
    }
}

// Sums of one group of Rows x Columns tiles (1 or 2 each) and one step. at: its first position. after(part): after each tap, with a
// part of kGroup lines.
template <int Rows, int Columns, int Window, class After>
FASTDS_HD void add_step(const BFloat16* at, int64_t pixel, int64_t row, const BFloat16* packed, bool first, float* m, int64_t m_row,
                        const After& after) {
    using Sums = TileSums<Rows, Columns>;
    constexpr int64_t tile = kTileDepth * kTileColumns;
    constexpr int across = 3 / Window;
    Sums::begin(m, m_row, first);
#pragma GCC unroll 3
    for (int y = 0; y < 3; y++, at += row) {
        const BFloat16* a = opaque(at);
#pragma GCC unroll 3
        for (int x = 0; x < across; x++, a = opaque(a + pixel), packed = opaque(packed + Columns * tile)) {
            Sums::add(a, pixel * sizeof(BFloat16), packed, kTileLine, tile * sizeof(BFloat16));
            after(part_of(kGroup, 3 * across, y * across + x));
        }
    }
    Sums::end(m, m_row);
}

// Of a block in memory.
struct Block {
    const BFloat16* v;
    int64_t row, positions;  // numbers of a row; positions with outputs or without
    float* m;
    int64_t m_row, m_group;
};

// Sums of the groups [groups.begin, groups.end), at most kChunk, into m; packed: of one or two vectors of columns. take(g, m, part)
// takes lines of the sums of group g, while the next group is summed: then its stores take no time of their own.
template <int Columns, int Window, class Take>
void sum_products(const Block& block, const PixelRows& pixels, const BFloat16* packed, float* m, Range groups, const Take& take) {
    constexpr int64_t packed_step = 9 / Window * Columns * kTileDepth * kTileColumns;
    const auto nothing = [](Range) {};
    for (int64_t step = 0; step < pixels.steps; step++, packed += packed_step)
        for (int64_t g = groups.begin; g < groups.end; g++) {
            float* sums = m + (g - groups.begin) * block.m_group;
            const BFloat16* at = block.v + g * kGroup * pixels.pixel + pixels.first(step);
            const bool two = block.positions - g * kGroup > kTileRows, taken = g > groups.begin && step + 1 == pixels.steps;
            if (two && taken)
                add_step<2, Columns, Window>(at, pixels.pixel, block.row, packed, step == 0, sums, block.m_row,
                                             [&](Range part) { take(g - 1, sums - block.m_group, part); });
            else if (two)
                add_step<2, Columns, Window>(at, pixels.pixel, block.row, packed, step == 0, sums, block.m_row, nothing);
            else
                add_step<1, Columns, Window>(at, pixels.pixel, block.row, packed, step == 0, sums, block.m_row, nothing);
            if (!two && taken) take(g - 1, sums - block.m_group, Range{0, kGroup});
        }
    take(groups.end - 1, m + (groups.end - 1 - groups.begin) * block.m_group, Range{0, kGroup});
}

template <int Columns, class Take>
void sum_products(const Block& block, const PixelRows& pixels, const BFloat16* packed, float* m, Range groups, const Take& take) {
    if (pixels.window == 1)
        sum_products<Columns, 1>(block, pixels, packed, m, groups, take);
    else
        sum_products<Columns, 3>(block, pixels, packed, m, groups, take);
}

// The outputs in the order of their positions.
class Walk {
public:
    Walk(const Conv3x3Geometry& g, const Rows& rows, int64_t first_row, int64_t position)
        : g_(g), rows_(rows), index_(first_row + position / rows.row), column_(position % rows.row) {
        begin_row();
    }
    bool has_output() const { return column_ < place_.width; }
    // Positions with outputs, or without, from here on in this row.
    int64_t run() const { return (has_output() ? place_.width : rows_.row) - column_; }
    Tile pixel() const { return {place_.b, place_.y, place_.x + column_}; }
    void advance(int64_t by) {
        column_ += by;
        if (column_ < rows_.row) return;
        column_ -= rows_.row;
        index_++;
        begin_row();
    }

private:
    void begin_row() { place_ = row_at(g_, rows_, index_); }
    const Conv3x3Geometry& g_;
    const Rows& rows_;
    int64_t index_, column_;
    Place place_;
};

// Lanes of a vector of columns that fall into one view.
struct Piece {
    const Conv3x3View* view;
    int64_t from;  // of the view's channels, that of lane 0
    int vector;    // of those that are summed together
    __mmask16 lanes;
};

struct Pieces {
    int count = 0;
    Piece piece[2 * kL];

    // Of the vectors [vectors.begin, vectors.end) of columns.
    Pieces(const Conv3x3Views& views, Range vectors, int64_t columns) {
        for (int64_t vector = vectors.begin; vector < vectors.end; vector++) {
            int64_t first = 0;
            for (int s = 0; s < views.count; first += views.view[s++].channels) {
                const int64_t column = vector * kL, begin = first - column, end = first + views.view[s].channels - column;
                const int64_t from = begin > 0 ? begin : 0, to = least(least(kL, columns - column), end);
                if (from >= to || views.view[s].data == nullptr) continue;
                piece[count++] = {&views.view[s], column - first, static_cast<int>(vector - vectors.begin),
                                  static_cast<__mmask16>((1u << to) - (1u << from))};
            }
        }
    }
};

template <class T>
FASTDS_HD T* pixel_of(const Piece& piece, const Tile& pixel) {
    const Conv3x3View& view = *piece.view;
    return static_cast<T*>(view.data) + pixel.b * view.b + pixel.y * view.h + pixel.x * view.w + piece.from;
}

FASTDS_HD V load_piece(const BFloat16* at, __mmask16 lanes) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, at)), 16);
}
FASTDS_HD V load_piece(const float* at, __mmask16 lanes) { return (V)_mm512_maskz_loadu_ps(lanes, at); }
FASTDS_HD void store_piece(BFloat16* to, V value, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
FASTDS_HD void store_piece(float* to, V value, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, (__m512)value); }

// What becomes of the sums of one or two vectors of columns: y = act(sum + bias + residual), stored as T.
template <class T>
struct Outputs {
    const Conv3x3Call& call;
    const float* bias;  // of the first column
    Pieces sinks, residual;
    int64_t first;  // column

    Outputs(const Conv3x3Call& call_, const float* all, Range vectors, int64_t columns)
        : call(call_), bias(all + vectors.begin * kL), sinks(call_.sinks, vectors, columns),
          residual(call_.residual, call_.shuffle > 1 ? Range{0, 0} : vectors, columns), first(vectors.begin * kL) {}

    // Adds the residual of `count` pixels of a row to their sums, `row` floats apart.
    void add_residual(const Tile& pixel, int64_t count, float* sums, int64_t row, int64_t columns) const {
        if (call.shuffle > 1 && call.residual.count > 0) return add_shuffled(pixel, count, sums, row, columns);
        for (int p = 0; p < residual.count; p++) {
            const Piece& piece = residual.piece[p];
            const T* from = pixel_of<T>(piece, pixel);
            float* at = sums + piece.vector * kL;
            for (int64_t i = 0; i < count; i++, from += piece.view->w, at += row)
                store_vec<kL>(at, load_vec<kL>(at) + load_piece(from, piece.lanes));
        }
    }

    // The same where it has the channel order before the shuffle.
    void add_shuffled(const Tile& pixel, int64_t count, float* sums, int64_t row, int64_t columns) const {
        const Conv3x3View& view = call.residual.view[0];
        const int64_t parts = call.shuffle * call.shuffle, per_part = view.channels / parts;
        const T* from = static_cast<const T*>(view.data) + pixel.b * view.b + pixel.y * view.h + pixel.x * view.w;
        for (int64_t i = 0; i < count; i++, from += view.w, sums += row)
            for (int64_t c = 0; c < least(2 * kL, columns - first); c++)
                sums[c] += load(from[(first + c) % per_part * parts + (first + c) / per_part]);
    }

    template <int Act>
    void store_activated(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        for (int p = 0; p < sinks.count; p++) {
            const Piece& piece = sinks.piece[p];
            const V add = load_vec<kL>(bias + piece.vector * kL);
            const float *at = sums + piece.vector * kL, slope = call.negative_slope;
            const int64_t step = piece.view->w;
            T* to = pixel_of<T>(piece, pixel);
            for (int64_t i = 0; i < count; i++, at += row, to += step)
                store_piece(to, activate(load_vec<kL>(at) + add, Act, slope), piece.lanes);
        }
    }
    void store(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        switch (call.act) {
            case act_relu: return store_activated<act_relu>(pixel, count, sums, row);
            case act_leaky_relu: return store_activated<act_leaky_relu>(pixel, count, sums, row);
            default: return store_activated<act_none>(pixel, count, sums, row);
        }
    }
};

// Whether all outputs go to one view, and what is added to them lies in the same way: then they are looked up line by line.
inline bool has_lines(const Conv3x3Call& call) {
    const Conv3x3View &sink = call.sinks.view[0], &add = call.residual.view[0];
    const bool adds = call.residual.count > 0 && add.data != nullptr;
    return call.sinks.count == 1 && call.residual.count <= 1 &&
           (!adds || (add.b == sink.b && add.h == sink.h && add.w == sink.w));
}

// The places of all positions of a block, whose first row is `first`, and of one group more, which is fetched ahead.
void find_places(const Conv3x3Call& call, const Rows& rows, const Block& block, int64_t first, LinePlace* places) {
    const Conv3x3View& sink = call.sinks.view[0];
    Walk walk(call.geometry, rows, first, 0);
    const int64_t all = round_up(block.positions, kGroup) + kGroup;
    for (int64_t p = 0, n; p < all; p += n) {
        n = p < block.positions ? least(walk.run(), block.positions - p) : all - p;
        const bool has = p < block.positions && walk.has_output();
        const Tile pixel = has ? walk.pixel() : Tile{0, 0, 0};
        const int64_t at = pixel.b * sink.b + pixel.y * sink.h + pixel.x * sink.w;
        for (int64_t i = 0; i < n; i++) places[p + i] = {has ? at + i * sink.w : 0, has ? ~0u : 0u};
        if (p < block.positions) walk.advance(n);
    }
}

FASTDS_HD void store_pair(BFloat16* to, V left, V right, __mmask32 lanes) {
    _mm512_mask_storeu_epi16(to, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
}
FASTDS_HD void store_pair(float* to, V left, V right, __mmask32 lanes) {
    store_piece(to, left, static_cast<__mmask16>(lanes));
    store_piece(to + kL, right, static_cast<__mmask16>(lanes >> kL));
}

// One or two vectors of columns of all positions of a block, looked up in `places`.
template <class T, int Columns>
void convolve_lines(const Conv3x3Call& call, const PixelRows& pixels, const Block& block, const LinePlace* places, const float* bias,
                    int64_t vector) {
    const int64_t column = vector * kL, groups = parts_of(block.positions, kGroup), rest = call.sinks.channels() - column;
    const __mmask32 lanes = rest >= kPair ? ~0u : (1u << rest) - 1;
    T* const to = static_cast<T*>(call.sinks.view[0].data) + column;
    const T* const add = call.residual.count > 0 && call.residual.view[0].data != nullptr
                             ? static_cast<const T*>(call.residual.view[0].data) + column
                             : nullptr;
    const V left = load_vec<kL>(bias + column), right = Columns > 1 ? load_vec<kL>(bias + column + kL) : V{};
    const int act = call.act;
    const float slope = call.negative_slope;
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
    const auto take = [=](int64_t group, const float* sums, Range lines) {
        const LinePlace* place = places + group * kGroup;
        for (int64_t line = lines.begin; line < lines.end; line++) {
            __builtin_prefetch(to + place[line + kGroup].offset, 1);
            const int64_t at = place[line].offset;
            const __mmask32 here = place[line].lanes & lanes;
            V a = load_vec<kL>(sums + line * kPair) + left, b = right;
            if (Columns > 1) b += load_vec<kL>(sums + line * kPair + kL);
            if (add != nullptr) {
                a += load_piece(add + at, static_cast<__mmask16>(here));
                if (Columns > 1) b += load_piece(add + at + kL, static_cast<__mmask16>(here >> kL));
            }
            if (act != act_none) {
                a = activate(a, act, slope);
                b = activate(b, act, slope);
            }
            if (Columns > 1)
                store_pair(to + at, a, b, here);
            else
                store_piece(to + at, a, static_cast<__mmask16>(here));
        }
    };
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup)
        sum_products<Columns>(block, pixels, packed, block.m, Range{begin, least(begin + kChunk / kGroup, groups)}, take);
}

// The same for any outputs, whose first row is `first`.
template <class T, int Columns>
void convolve_runs(const Conv3x3Call& call, const Rows& rows, const PixelRows& pixels, const Block& block, int64_t first,
                   const float* bias, int64_t vector) {
    const int64_t columns = call.sinks.channels(), groups = parts_of(block.positions, kGroup);
    const Outputs<T> outputs(call, bias, Range{vector, vector + Columns}, columns);
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup) {
        const Range here{begin, least(begin + kChunk / kGroup, groups)};
        sum_products<Columns>(block, pixels, packed, block.m, here, [](int64_t, float*, Range) {});
        const int64_t end = least(here.end * kGroup, block.positions);
        Walk walk(call.geometry, rows, first, begin * kGroup);
        for (int64_t p = begin * kGroup, n; p < end; p += n, walk.advance(n)) {
            n = least(walk.run(), least(kGroup - p % kGroup, end - p));
            if (!walk.has_output()) continue;
            float* sums = block.m + (p / kGroup - begin) * block.m_group + p % kGroup * block.m_row;
            outputs.add_residual(walk.pixel(), n, sums, block.m_row, columns);
            outputs.store(walk.pixel(), n, sums, block.m_row);
        }
    }
}

// Hands the pre-activations of 16 outputs of a row at once to the cell.
template <class T>
void finish_cell(const Conv3x3Call& call, const Conv3x3Cell& cell, const Tile& pixel, int64_t count, const float* bias, float* sums,
                 int64_t m_row, float* buffer) {
    const int64_t columns = call.sinks.channels(), gates = columns / cell.channels;
    for (int64_t vector = 0; vector * kL < columns; vector += 2) {
        const Outputs<T> outputs(call, bias, Range{vector, least(vector + 2, parts_of(columns, kL))}, columns);
        outputs.add_residual(pixel, count, sums + vector * kL, m_row, columns);
        outputs.store(pixel, count, sums + vector * kL, m_row);
    }
    for (int64_t i = 0; i < count; i++, sums += m_row) {
        for (int64_t c = 0; c < columns; c += kL) store_vec<kL>(sums + c, load_vec<kL>(sums + c) + load_vec<kL>(bias + c));
        for (int64_t gate = 0; gate < gates; gate++)
            __builtin_memcpy(buffer + (gate * kTileRows + i) * cell.channels, sums + gate * cell.channels,
                             cell.channels * sizeof(float));
    }
    const int64_t step = cell.dense ? count : 1;
    for (int64_t i = 0; i < count; i += step)
        cell.row(cell.context, pixel.b, pixel.y, pixel.x + i, step * cell.channels, buffer + i * cell.channels,
                 kTileRows * cell.channels);
}

// All columns of all positions of a block, and the cell behind them.
template <class T>
void convolve_cell(const Conv3x3Call& call, const Conv3x3Cell& cell, const Rows& rows, const PixelRows& pixels, const Block& block,
                   int64_t first, const float* bias, float* buffer) {
    const int64_t columns = call.sinks.channels(), vectors = parts_of(columns, kL), groups = parts_of(block.positions, kGroup);
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup) {
        const Range here{begin, least(begin + kChunk / kGroup, groups)};
        const auto nothing = [](int64_t, float*, Range) {};
        for (int64_t vector = 0; vector < vectors; vector += 2) {
            const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
            if (vector + 1 < vectors)
                sum_products<2>(block, pixels, packed, block.m + vector * kL, here, nothing);
            else
                sum_products<1>(block, pixels, packed, block.m + vector * kL, here, nothing);
        }
        const int64_t end = least(here.end * kGroup, block.positions);
        Walk walk(call.geometry, rows, first, begin * kGroup);
        for (int64_t p = begin * kGroup, n; p < end; p += n, walk.advance(n)) {
            const int64_t in_group = p % kGroup;
            n = least(least(kTileRows, walk.run()), least(kGroup - in_group, end - p));
            if (walk.has_output())
                finish_cell<T>(call, cell, walk.pixel(), n, bias,
                        block.m + (p / kGroup - begin) * block.m_group + in_group * block.m_row, block.m_row, buffer);
        }
    }
}

struct Job {
    const Conv3x3Call& call;
    const Conv3x3Cell* cell;
    PixelRows pixels;
    Rows rows;
    Blocks blocks;

    Job(const Conv3x3Call& c, const Conv3x3Cell* cell_, bool is_cell, int threads)
        : call(c), cell(cell_), pixels(c.sources.channels()), rows(c.geometry, pixels),
          blocks(c, rows, pixels, is_cell, threads) {}
};

template <class T>
void run_block(const Job& job, int64_t index, const float* bias, float* scratch) {
    const Conv3x3Call& call = job.call;
    const Range rows = part_of(job.rows.count, job.blocks.count, index);
    const int64_t row = job.rows.row * job.pixels.pixel, columns = call.sinks.channels(), vectors = parts_of(columns, kL);
    BFloat16* v = reinterpret_cast<BFloat16*>(scratch + job.blocks.v);
    const BFloat16* zeros = reinterpret_cast<const BFloat16*>(scratch + job.blocks.zeros);
    const auto copy = call.sources.view[0].sign != nullptr ? copy_row<true> : copy_row<false>;
    for (int64_t r = rows.begin; r < least(rows.end + 2, job.rows.count); r++) {
        const Place at = row_at(call.geometry, job.rows, r);
        copy(call, at.b, at.y - call.geometry.pad_h, at.x - call.geometry.pad_w, job.rows.row, zeros, v + (r - rows.begin) * row,
             job.pixels.pixel);
    }
    const Block block{v,  row, (rows.end - rows.begin) * job.rows.row, scratch + job.blocks.m, job.blocks.m_row, job.blocks.m_group};
    if (job.cell != nullptr)
        return convolve_cell<T>(call, *job.cell, job.rows, job.pixels, block, rows.begin, bias, scratch + job.blocks.cell);
    if (!has_lines(call)) {
        for (int64_t vector = 0; vector < vectors; vector += 2)
            vector + 1 < vectors ? convolve_runs<T, 2>(call, job.rows, job.pixels, block, rows.begin, bias, vector)
                                 : convolve_runs<T, 1>(call, job.rows, job.pixels, block, rows.begin, bias, vector);
        return;
    }
    LinePlace* places = reinterpret_cast<LinePlace*>(scratch + job.blocks.places);
    find_places(call, job.rows, block, rows.begin, places);
    for (int64_t vector = 0; vector < vectors; vector += 2)
        vector + 1 < vectors ? convolve_lines<T, 2>(call, job.pixels, block, places, bias, vector)
                             : convolve_lines<T, 1>(call, job.pixels, block, places, bias, vector);
}

// Zeros for what sums read beyond the channels of a pixel, and for pixels outside; copies do not touch them.
void clear(const Job& job, float* scratch) {
    const int64_t channels = job.call.sources.channels();
    const PixelRows& pixels = job.pixels;
    if (pixels.depth / pixels.window > channels) __builtin_memset(scratch + job.blocks.v, 0, job.blocks.m * sizeof(float));
    __builtin_memset(scratch + job.blocks.zeros, 0, (job.blocks.cell - job.blocks.zeros) * sizeof(float));
}

}  // namespace

Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call& call, bool cell, int threads) {
    const Job job(call, nullptr, cell, threads);
    Conv3x3Plan plan{};
    plan.threads = threads;
    plan.thread_floats = job.blocks.thread_floats;
    plan.bytes = (threads * job.blocks.thread_floats + round_up(call.sinks.channels(), kL)) * static_cast<int64_t>(sizeof(float));
    return plan;
}

void conv3x3_amx_run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace) {
    const Job job(call, cell, cell != nullptr, plan.threads);
    const float* bias = bias_of_columns(call, workspace + plan.threads * plan.thread_floats);
    const int64_t blocks = job.blocks.count;
    const auto run = call.sinks.dtype == bf16 ? run_block<BFloat16> : run_block<float>;
    parallel_for(least(plan.threads, blocks), plan.threads, [&](int64_t begin, int64_t end) {
        const TileUse use(true, job.pixels.in_step);
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = workspace + thread * plan.thread_floats;
            clear(job, scratch);
            const Range own = part_of(blocks, least(plan.threads, blocks), thread);
            for (int64_t block = own.begin; block < own.end; block++) run(job, block, bias, scratch);
        }
    });
}
#else  // refused by the binding
Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call&, bool, int) { return {}; }
void conv3x3_amx_run(const Conv3x3Call&, const Conv3x3Cell*, const Conv3x3Plan&, float*) {}
#endif

}  // namespace FASTDS_ISA
}  // namespace fastds
