// DRTAM's layers: the batch norms of its three descriptors, and its MLP.
#pragma once

#include "work.h"

namespace {

// One of them: v (N, length), normalised as of one channel. By the batch's mean and variance, towards
// which mean and var move by `momentum`; with a negative momentum by mean and var.
template <class A> struct Norm {
  i64 length;
  const A *v, *weight, *bias;
  A *mean, *var;
  double momentum, eps;
  bool sigmoid;
};

// f(norm, sample, first element, one past the last) over the samples of each of the three norms.
template <class A, class F> void each_norm(const Norm<A>* norms, i64 n_, int threads, F&& f) {
  parallel(3 * n_, n_ * (norms[0].length + norms[1].length + norms[2].length), threads, [&](i64 u) {
    int i = int(u / n_);
    i64 n = u % n_, length = norms[i].length;
    f(i, n, n * length, (n + 1) * length);
  });
}

// The sum of f over all elements of each norm, in the order of the samples.
template <class A, class F>
void norm_sums(const Norm<A>* norms, i64 n_, double* sums, int threads, F&& f) {
  std::vector<double> partial(3 * n_, 0.);
  each_norm(norms, n_, threads, [&](int i, i64 sample, i64 begin, i64 end) {
    Vec<A> sum = {};
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      Vec<A> v = f(i, at, n);
      if (n < Simd<A>::N) v = iota<A>() < Int<A>{} + int(n) ? v : Vec<A>{};
      sum += v;
    });
    partial[i * n_ + sample] = double(hsum(sum));
  });
  for (int i = 0; i < 3; ++i) {
    sums[i] = 0;
    for (i64 n = 0; n < n_; ++n) sums[i] += partial[i * n_ + n];
  }
}

// out: of c, h and w, of the last two the sigmoid. moments (3, 2): mean, 1 / deviation.
template <class A>
void rank1_norm(const Norm<A>* norms, i64 n_, A* const* out, A* moments, int threads) {
  double mean[3], squares[3];
  A shift[3], scale[3];
  norm_sums(norms, n_, mean, threads, [&](int i, i64 at, auto n) FLAT { return ld(norms[i].v + at, n); });
  for (int i = 0; i < 3; ++i) {
    mean[i] = norms[i].momentum < 0 ? double(*norms[i].mean) : mean[i] / double(n_ * norms[i].length);
    shift[i] = A(mean[i]);
  }
  norm_sums(norms, n_, squares, threads, [&](int i, i64 at, auto n) FLAT {
    Vec<A> d = ld(norms[i].v + at, n) - shift[i];
    return d * d;
  });
  for (int i = 0; i < 3; ++i) {
    const Norm<A>& norm = norms[i];
    double count = double(n_ * norm.length), m = norm.momentum;
    double var = m < 0 ? double(*norm.var) : squares[i] / count;
    if (m >= 0) {
      *norm.mean = A((1 - m) * double(*norm.mean) + m * mean[i]);
      *norm.var = A((1 - m) * double(*norm.var) + m * squares[i] / (count - 1));
    }
    moments[2 * i] = shift[i];
    moments[2 * i + 1] = A(1 / std::sqrt(var + norm.eps));
    scale[i] = moments[2 * i + 1] * *norm.weight;
  }
  each_norm(norms, n_, threads, [&](int i, i64, i64 begin, i64 end) {
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      Vec<A> v = (ld(norms[i].v + at, n) - shift[i]) * scale[i] + *norms[i].bias;
      st(out[i] + at, norms[i].sigmoid ? 1 / (1 + vexp(-v)) : v, n);
    });
  });
}

// grads, out: of and as given by the function above. dv, and the gradients of weight and bias.
template <class A>
void rank1_norm_grad(const Norm<A>* norms, i64 n_, const A* const* out, const A* moments,
                     const A* const* grads, A* const* dv, A* const* dweight, A* const* dbias,
                     int threads) {
  using V = Vec<A>;
  double sum[3], dot[3];
  auto incoming = [&](int i, i64 at, auto n) FLAT {
    V g = ld(grads[i] + at, n);
    if (norms[i].sigmoid) {
      V y = ld(out[i] + at, n);
      g *= y * (1 - y);
    }
    return g;
  };
  auto unit = [&](int i, i64 at, auto n) FLAT {
    return (ld(norms[i].v + at, n) - moments[2 * i]) * moments[2 * i + 1];
  };
  norm_sums(norms, n_, sum, threads, incoming);
  norm_sums(norms, n_, dot, threads, [&](int i, i64 at, auto n) FLAT {
    return incoming(i, at, n) * unit(i, at, n);
  });
  A level[3], slope[3];
  for (int i = 0; i < 3; ++i) {
    double count = double(n_ * norms[i].length);
    *dbias[i] = A(sum[i]);
    *dweight[i] = A(dot[i]);
    level[i] = norms[i].momentum < 0 ? 0 : A(sum[i] / count);
    slope[i] = norms[i].momentum < 0 ? 0 : A(dot[i] / count);
  }
  each_norm(norms, n_, threads, [&](int i, i64, i64 begin, i64 end) {
    A scale = moments[2 * i + 1] * *norms[i].weight;
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      V g = incoming(i, at, n);
      if (norms[i].momentum >= 0) g -= level[i] + unit(i, at, n) * slope[i];
      st(dv[i] + at, g * scale, n);
    });
  });
}

// Two fully connected layers: v (N, C) -> relu -> hidden (N, K) -> sigmoid -> out (N, C).
template <class A> struct Mlp {
  i64 n, channels, hidden;
  const A *w1, *b1, *w2, *b2;  // (K, C), (K), (C, K), (C)
  i64 work() const { return n * channels * hidden / 4; }
};

// f(row, row . v) for the rows of a matrix (rows, length), four at once.
template <class A, class F>
INLINE void products(const A* matrix, i64 rows, i64 length, const A* v, F&& f) {
  i64 r = 0;
  auto step = [&](auto k_) FLAT {
    constexpr int K = decltype(k_)::value;
    Vec<A> sum[K] = {};
    lanes<A>(0, length, [&](i64 l, auto n) FLAT {
      Vec<A> b = ld(v + l, n);
      for (int k = 0; k < K; ++k) sum[k] += ld(matrix + (r + k) * length + l, n) * b;
    });
    for (int k = 0; k < K; ++k) f(r + k, hsum(sum[k]));
    r += K;
  };
  while (r + 4 <= rows) step(std::integral_constant<int, 4>{});
  while (r < rows) step(std::integral_constant<int, 1>{});
}

template <class A> void mlp(const Mlp<A>& m, const A* v, A* hidden, A* out, int threads) {
  parallel(m.n, m.work(), threads, [&](i64 n) {
    A *h = hidden + n * m.hidden, *o = out + n * m.channels;
    products(m.w1, m.hidden, m.channels, v + n * m.channels, [&](i64 k, A dot) FLAT {
      A u = dot + m.b1[k];
      h[k] = u < 0 ? 0 : u;  // a NaN stays one
    });
    products(m.w2, m.channels, m.hidden, h, [&](i64 c, A dot) FLAT { o[c] = dot + m.b2[c]; });
    lanes<A>(0, m.channels, [&](i64 c, auto k) FLAT { st(o + c, 1 / (1 + vexp(-ld(o + c, k))), k); });
  });
}

// to[l] += sum over i < count of a[i * step] * rows[i][l], the rows (count, length); returns sum of a.
template <class A>
INLINE A combine(const A* a, i64 step, i64 count, const A* rows, i64 length, A* to) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT {
    Vec<A> sum = ld(to + l, n);
    for (i64 i = 0; i < count; ++i) sum += a[i * step] * ld(rows + i * length + l, n);
    st(to + l, sum, n);
  });
  A sum = 0;
  for (i64 i = 0; i < count; ++i) sum += a[i * step];
  return sum;
}

// g: of out. Writes dv, adds to the gradients dw of w1, b1, w2, b2.
template <class A>
void mlp_grad(const Mlp<A>& m, const A* v, const A* hidden, const A* out, const A* g, A* dv,
              A* const* dw, int threads) {
  Scratch<A> outer(m.n * m.channels), inner(m.n * m.hidden);
  parallel(m.n, m.work(), threads, [&](i64 n) {
    A *go = outer + n * m.channels, *gh = inner + n * m.hidden;
    lanes<A>(n * m.channels, (n + 1) * m.channels, [&](i64 at, auto k) FLAT {
      Vec<A> y = ld(out + at, k);
      st(outer + at, ld(g + at, k) * y * (1 - y), k);
    });
    std::fill_n(gh, m.hidden, A(0));
    std::fill_n(dv + n * m.channels, m.channels, A(0));
    combine(go, 1, m.channels, m.w2, m.hidden, gh);
    for (i64 k = 0; k < m.hidden; ++k)
      if (hidden[n * m.hidden + k] <= 0) gh[k] = 0;
    combine(gh, 1, m.hidden, m.w1, m.channels, dv + n * m.channels);
  });
  parallel(m.hidden, m.work(), threads, [&](i64 k) {
    dw[1][k] += combine(inner + k, m.hidden, m.n, v, m.channels, dw[0] + k * m.channels);
  });
  parallel(m.channels, m.work(), threads, [&](i64 c) {
    dw[3][c] += combine(outer + c, m.channels, m.n, hidden, m.hidden, dw[2] + c * m.hidden);
  });
}

}  // namespace
