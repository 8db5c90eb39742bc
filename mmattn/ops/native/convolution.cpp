// Of CBAM's and CAT's layers: the convolution of maps to one; CAT's normalised entropies.

#include "abi.h"
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

// ------------------------------------------------------------------- CAT's normalised entropies

// The smallest and largest value of a sample, NaN where it holds one.
template <class A> struct Range {
  A least, most;
  bool flat;  // a spread that rounding alone can make counts as none
  Range(const A* v, i64 length) {
    const A far = std::numeric_limits<A>::infinity();
    Vec<A> low = all<A>(far), high = all<A>(-far);
    lanes<A>(0, length, [&](i64 l, auto n) FLAT {
      Vec<A> z = ld(v + l, n), up = n < Simd<A>::N ? outside<A>(z, n) : z;
      Vec<A> down = n < Simd<A>::N ? -outside<A>(-z, n) : z;
      high = (up > high) | (up != up) ? up : high;
      low = (down < low) | (down != down) ? down : low;
    });
    least = low[0], most = high[0];
    for (int k = 1; k < Simd<A>::N; ++k) {
      if (beats(A(high[k]), most)) most = high[k];
      if (beats(A(-low[k]), -least)) least = low[k];
    }
    flat = !(most - least > 64 * std::numeric_limits<A>::epsilon());
  }
  A spread() const { return flat ? A(1) : most - least; }
};

// (v - least) / spread, stretched to [low, high]; v (N, L).
template <class A>
void min_max(const A* v, A* out, i64 n_, i64 length, A low, A high, int threads) {
  parallel(n_, n_ * length, threads, [&](i64 n) {
    const A* vn = v + n * length;
    Range<A> range(vn, length);
    A scale = (high - low) / range.spread();
    lanes<A>(0, length, [&](i64 l, auto k) FLAT {
      st(out + n * length + l, (ld(vn + l, k) - range.least) * scale + low, k);
    });
  });
}

// With u = (v - least) / spread: du/dleast = (u - 1) / spread, du/dmost = -u / spread; of equal
// extremes each gets its share.
template <class A>
void min_max_grad(const A* v, const A* g, A* dv, i64 n_, i64 length, A stretch, int threads) {
  parallel(n_, n_ * length, threads, [&](i64 n) {
    const A *vn = v + n * length, *gn = g + n * length;
    Range<A> range(vn, length);
    A scale = stretch / range.spread();
    double sum = 0, dot = 0;
    i64 lowest = 0, highest = 0;
    for (i64 l = 0; l < length; ++l) {
      sum += double(gn[l]);
      dot += double(gn[l]) * double(vn[l] - range.least);
      lowest += vn[l] == range.least;
      highest += vn[l] == range.most;
    }
    double inner = range.flat ? 0. : dot / double(range.spread());
    A at_least = A((inner - sum) * scale / double(std::max<i64>(lowest, 1)));
    A at_most = A(-inner * scale / double(std::max<i64>(highest, 1)));
    for (i64 l = 0; l < length; ++l)
      dv[n * length + l] = gn[l] * scale + (vn[l] == range.least ? at_least : A(0)) +
                           (vn[l] == range.most ? at_most : A(0));
  });
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

void mmattn_spatial_conv(int dtype, const Sum* maps, const Sum* weights, Sum* out, i64 n, i64 m,
                         i64 h, i64 w, i64 kh, i64 kw, int threads) {
  typed(dtype, [&](auto tag) {
    spatial_conv<A_>((const A_*)maps, (const A_*)weights, (A_*)out, n, m, h, w, kh, kw, threads);
  });
}

void mmattn_spatial_conv_grad(int dtype, const Sum* maps, const Sum* weights, const Sum* dy,
                              Sum* dmaps, Sum* dweights, i64 n, i64 m, i64 h, i64 w, i64 kh, i64 kw,
                              int threads) {
  typed(dtype, [&](auto tag) {
    spatial_conv_grad<A_>((const A_*)maps, (const A_*)weights, (const A_*)dy, (A_*)dmaps,
                          (A_*)dweights, n, m, h, w, kh, kw, threads);
  });
}

void mmattn_min_max(int dtype, const Sum* v, Sum* out, i64 n, i64 length, double low, double high,
                    int threads) {
  typed(dtype, [&](auto tag) {
    min_max<A_>((const A_*)v, (A_*)out, n, length, A_(low), A_(high), threads);
  });
}

void mmattn_min_max_grad(int dtype, const Sum* v, const Sum* g, Sum* dv, i64 n, i64 length,
                         double stretch, int threads) {
  typed(dtype, [&](auto tag) {
    min_max_grad<A_>((const A_*)v, (const A_*)g, (A_*)dv, n, length, A_(stretch), threads);
  });
}

}  // namespace

SHOW(
    ENTRY(spatial_conv),
    ENTRY(spatial_conv_grad),
    ENTRY(min_max),
    ENTRY(min_max_grad))
