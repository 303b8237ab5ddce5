// SPDX-License-Identifier: Apache-2.0
// The algorithm of torchvision's and mmcv's CPU deform_conv2d, written anew as a benchmark peer: one serial loop over
// NCHW that stores a (C*K, H'*W') column matrix, and col2im loops for the gradients. GEMMs are the caller's.
#include <cmath>
#include <cstdint>

namespace {

struct Shape {
  int64_t C, H, W, G, kh, kw, Ho, Wo, stride, pad_h, pad_w, dil_h, dil_w;
};

float sample(const float* image, const Shape& s, float y, float x) {
  if (!(y > -1 && y < s.H && x > -1 && x < s.W)) return 0;
  const int y0 = static_cast<int>(std::floor(y)), x0 = static_cast<int>(std::floor(x));
  const float ly = y - y0, lx = x - x0;
  const float v00 = y0 >= 0 && x0 >= 0 ? image[y0 * s.W + x0] : 0;
  const float v01 = y0 >= 0 && x0 + 1 < s.W ? image[y0 * s.W + x0 + 1] : 0;
  const float v10 = y0 + 1 < s.H && x0 >= 0 ? image[(y0 + 1) * s.W + x0] : 0;
  const float v11 = y0 + 1 < s.H && x0 + 1 < s.W ? image[(y0 + 1) * s.W + x0 + 1] : 0;
  return (1 - ly) * ((1 - lx) * v00 + lx * v01) + ly * ((1 - lx) * v10 + lx * v11);
}

// d sample / d y (axis 0) or x (axis 1)
float slope(const float* image, const Shape& s, float y, float x, int axis) {
  if (!(y > -1 && y < s.H && x > -1 && x < s.W)) return 0;
  const int y0 = static_cast<int>(std::floor(y)), x0 = static_cast<int>(std::floor(x));
  const float ly = y - y0, lx = x - x0;
  float result = 0;
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 2; ++b) {
      if (y0 + a < 0 || y0 + a >= s.H || x0 + b < 0 || x0 + b >= s.W) continue;
      const float value = image[(y0 + a) * s.W + x0 + b];
      const float along = axis == 0 ? (a ? 1.f : -1.f) : (b ? 1.f : -1.f);
      const float across = axis == 0 ? (b ? lx : 1 - lx) : (a ? ly : 1 - ly);
      result += along * across * value;
    }
  return result;
}

struct Tap {
  int64_t k, g;
  float y, x, m;
};

Tap tap_at(const Shape& s, const float* offset, const float* mask, int64_t c, int64_t i, int64_t j, int64_t p,
           int64_t q) {
  const int64_t K = s.kh * s.kw, P = s.Ho * s.Wo, at = p * s.Wo + q, g = c / (s.C / s.G), k = i * s.kw + j;
  const float dy = offset[((g * K + k) * 2) * P + at], dx = offset[((g * K + k) * 2 + 1) * P + at];
  return {k, g, p * s.stride - s.pad_h + i * s.dil_h + dy, q * s.stride - s.pad_w + j * s.dil_w + dx,
          mask[(g * K + k) * P + at]};
}

}  // namespace

extern "C" {

void im2col(const float* input, const float* offset, const float* mask, float* columns, const Shape* shape) {
  const Shape& s = *shape;
  const int64_t K = s.kh * s.kw, P = s.Ho * s.Wo;
  for (int64_t c = 0; c < s.C; ++c)
    for (int64_t p = 0; p < s.Ho; ++p)
      for (int64_t q = 0; q < s.Wo; ++q)
        for (int64_t i = 0; i < s.kh; ++i)
          for (int64_t j = 0; j < s.kw; ++j) {
            const Tap t = tap_at(s, offset, mask, c, i, j, p, q);
            columns[(c * K + t.k) * P + p * s.Wo + q] = t.m * sample(input + c * s.H * s.W, s, t.y, t.x);
          }
}

void col2im(const float* columns, const float* offset, const float* mask, float* grad_input, const Shape* shape) {
  const Shape& s = *shape;
  const int64_t K = s.kh * s.kw, P = s.Ho * s.Wo;
  for (int64_t c = 0; c < s.C; ++c)
    for (int64_t i = 0; i < s.kh; ++i)
      for (int64_t j = 0; j < s.kw; ++j)
        for (int64_t p = 0; p < s.Ho; ++p)
          for (int64_t q = 0; q < s.Wo; ++q) {
            const Tap t = tap_at(s, offset, mask, c, i, j, p, q);
            const float grad = columns[(c * K + t.k) * P + p * s.Wo + q];
            for (int a = -1; a <= 1; ++a)
              for (int b = -1; b <= 1; ++b) {
                const int64_t y = static_cast<int64_t>(t.y) + a, x = static_cast<int64_t>(t.x) + b;
                if (y < 0 || y >= s.H || x < 0 || x >= s.W) continue;
                if (std::fabs(t.y - y) >= 1 || std::fabs(t.x - x) >= 1) continue;
                const float part = (1 - std::fabs(t.y - y)) * (1 - std::fabs(t.x - x));
                grad_input[(c * s.H + y) * s.W + x] += t.m * part * grad;
              }
          }
}

void col2im_coord(const float* columns, const float* input, const float* offset, const float* mask, float* grad_offset,
                  float* grad_mask, const Shape* shape) {
  const Shape& s = *shape;
  const int64_t K = s.kh * s.kw, P = s.Ho * s.Wo, per_group = s.C / s.G;
  for (int64_t g = 0; g < s.G; ++g)
    for (int64_t k = 0; k < K; ++k)
      for (int axis = 0; axis < 2; ++axis)
        for (int64_t p = 0; p < s.Ho; ++p)
          for (int64_t q = 0; q < s.Wo; ++q) {
            float along = 0, modulation = 0;
            for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
              const Tap t = tap_at(s, offset, mask, c, k / s.kw, k % s.kw, p, q);
              const float* image = input + c * s.H * s.W;
              const float grad = columns[(c * K + k) * P + p * s.Wo + q];
              along += t.m * slope(image, s, t.y, t.x, axis) * grad;
              if (axis == 0) modulation += sample(image, s, t.y, t.x) * grad;
            }
            grad_offset[((g * K + k) * 2 + axis) * P + p * s.Wo + q] = along;
            if (axis == 0) grad_mask[(g * K + k) * P + p * s.Wo + q] = modulation;
          }
}

}  // extern "C"
