// SPDX-License-Identifier: Apache-2.0
// Sampling rule of deform_conv2d for host and device: bilinear interpolation with zeros outside the image.
#pragma once
#include "core/dtype.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// The four corners (y0, x0), (y0, x0+1), (y0+1, x0), (y0+1, x0+1) around a sample, and the position of the sample between them.
template <class A, class Index = int64_t>
struct BilinearCell {
    Index y0, x0;
    A ly, lx;        // fractions in [0, 1] towards row y0+1 and column x0+1
    bool corner[4];  // whether the corner is inside the image; other corners count as 0
};

// Returns whether a sample contributes: -1 < y < H and -1 < x < W. It is false for NaN. Only coordinates that pass may be
// converted to integers.
template <class A>
FASTDS_HD bool sample_inside(A y, A x, A H, A W) {
    return y > A(-1) && y < H && x > A(-1) && x < W;
}

// Returns the cell of a sample for which sample_inside is true. A sample at integer coordinates belongs to the cell that starts
// there, so that derivatives at integers are those towards larger coordinates.
template <class A, class Index = int64_t>
FASTDS_HD BilinearCell<A, Index> bilinear_cell(A y, A x, Index H, Index W) {
    BilinearCell<A, Index> cell;
    cell.y0 = static_cast<Index>(y) - (y < A(0) ? 1 : 0);  // the floor, since y > -1
    cell.x0 = static_cast<Index>(x) - (x < A(0) ? 1 : 0);
    cell.ly = y - static_cast<A>(cell.y0);
    cell.lx = x - static_cast<A>(cell.x0);
    const bool row0 = cell.y0 >= 0, row1 = cell.y0 + 1 < H, col0 = cell.x0 >= 0, col1 = cell.x0 + 1 < W;
    cell.corner[0] = row0 && col0;
    cell.corner[1] = row0 && col1;
    cell.corner[2] = row1 && col0;
    cell.corner[3] = row1 && col1;
    return cell;
}

template <class V>
FASTDS_HD void bilinear_weights(V ly, V lx, V& w0, V& w1, V& w2, V& w3) {
    w0 = (1 - ly) * (1 - lx);
    w1 = (1 - ly) * lx;
    w2 = ly * (1 - lx);
    w3 = ly * lx;
}

// Gradients of one sample from d_n = sum over channels of (gradient of the masked sample) * (corner n), with 0 for
// corners outside the image. The gradient of the mask is sum_n w_n d_n. The gradients of the row and column
// displacements are the mask times the derivatives of that sum with respect to y and x.
template <class V>
FASTDS_HD V grad_of_mask(V d0, V d1, V d2, V d3, V ly, V lx) {
    return (1 - ly) * ((1 - lx) * d0 + lx * d1) + ly * ((1 - lx) * d2 + lx * d3);
}
template <class V>
FASTDS_HD V grad_of_y(V d0, V d1, V d2, V d3, V lx) {
    return (1 - lx) * (d2 - d0) + lx * (d3 - d1);
}
template <class V>
FASTDS_HD V grad_of_x(V d0, V d1, V d2, V d3, V ly) {
    return (1 - ly) * (d1 - d0) + ly * (d3 - d2);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
