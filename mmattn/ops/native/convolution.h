// The convolution of a few maps to one: of CBAM's, CAT's and ECA's layers.
#pragma once

#include "work.h"

namespace {

// A plane within a frame of zeros, as a kernel (kh, kw) needs them, its rows far enough apart to be
// read in whole vectors.
template <class A> struct Framed {
  i64 pitch;
  Scratch<A> data;
  Framed(const A* plane, i64 h, i64 w, i64 kh, i64 kw)
      : pitch(padded<A>(w) + kw - 1), data((h + kh - 1) * pitch + Simd<A>::N) {
    std::fill_n(data + 0, (h + kh - 1) * pitch + Simd<A>::N, A(0));
    for (i64 i = 0; i < h; ++i)
      std::copy_n(plane + i * w, w, data + (i + kh / 2) * pitch + kw / 2);
  }
};

// Adds to `out` (H, W) the correlation of a framed plane with a kernel. K: both its sizes, or 0.
template <int K, class A>
void correlate(const Framed<A>& x, const A* kernel, i64 kh_, i64 kw_, i64 h, i64 w, A* out) {
  const i64 kh = K ? K : kh_, kw = K ? K : kw_;
  for (i64 i = 0; i < h; ++i)
    lanes<A>(0, w, [&](i64 j, auto n) FLAT {
      Vec<A> sum = ld(out + i * w + j, n);
      for (i64 a = 0; a < kh; ++a)
        for (i64 b = 0; b < kw; ++b)
          sum += kernel[a * kw + b] * ld(x.data + (i + a) * x.pitch + j + b, Full<A>{});
      st(out + i * w + j, sum, n);
    });
}

// Adds to `out` (kh, kw) the correlation of a framed plane with g (H, W).
template <int K, class A>
void correlate_grad(const Framed<A>& x, const A* g, i64 kh_, i64 kw_, i64 h, i64 w, double* out) {
  constexpr int most = K ? K : 8;  // columns of the kernel at a time
  const i64 kh = K ? K : kh_, kw = K ? K : kw_;
  for (i64 a = 0; a < kh; ++a)
    for (i64 b0 = 0; b0 < kw; b0 += most)
      for (i64 i0 = 0; i0 < h; i0 += 16) {  // no long sums in A
        Vec<A> sum[most] = {};
        for (i64 i = i0; i < std::min(i0 + 16, h); ++i)
          lanes<A>(0, w, [&](i64 j, auto n) FLAT {
            Vec<A> gv = ld(g + i * w + j, n);
            for (int b = 0; b < most; ++b)
              if (K || b0 + b < kw)
                sum[b] += gv * ld(x.data + (i + a) * x.pitch + j + b0 + b, Full<A>{});
          });
        for (int b = 0; b < most && b0 + b < kw; ++b) out[a * kw + b0 + b] += double(hsum(sum[b]));
      }
}

// maps (N, M, H, W), weights (M, kh, kw): out (N, H, W).
template <class A>
void spatial_conv(const A* maps, const A* weights, A* out, i64 n_, i64 m_, i64 h, i64 w, i64 kh,
                  i64 kw, int threads) {
  parallel(n_, n_ * m_ * h * w * kh, threads, [&](i64 n) {
    A* to = out + n * h * w;
    std::fill_n(to, h * w, A(0));
    for (i64 m = 0; m < m_; ++m) {
      Framed<A> x(maps + (n * m_ + m) * h * w, h, w, kh, kw);
      auto f = kh == 7 && kw == 7 ? correlate<7, A> : correlate<0, A>;
      f(x, weights + m * kh * kw, kh, kw, h, w, to);
    }
  });
}

template <class A>
void spatial_conv_grad(const A* maps, const A* weights, const A* dy, A* dmaps, A* dweights, i64 n_,
                       i64 m_, i64 h, i64 w, i64 kh, i64 kw, int threads) {
  const i64 size = kh * kw;
  const bool seven = kh == 7 && kw == 7;
  std::vector<double> partial(n_ * m_ * size, 0.);
  std::vector<A> flipped(weights, weights + m_ * size);
  for (i64 m = 0; m < m_; ++m)
    std::reverse(flipped.begin() + m * size, flipped.begin() + (m + 1) * size);
  parallel(n_, n_ * m_ * h * w * kh, threads, [&](i64 n) {
    const A* g = dy + n * h * w;
    Framed<A> framed(g, h, w, kh, kw);
    for (i64 m = 0; m < m_; ++m) {
      i64 at = (n * m_ + m) * h * w;
      std::fill_n(dmaps + at, h * w, A(0));
      Framed<A> x(maps + at, h, w, kh, kw);
      auto f = seven ? correlate<7, A> : correlate<0, A>;
      f(framed, flipped.data() + m * size, kh, kw, h, w, dmaps + at);
      auto grad = seven ? correlate_grad<7, A> : correlate_grad<0, A>;
      grad(x, g, kh, kw, h, w, &partial[(n * m_ + m) * size]);
    }
  });
  add_samples(partial.data(), dweights, n_, m_ * size, m_ * size);
}

}  // namespace
