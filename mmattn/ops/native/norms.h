// The batch norms of DRTAM's three descriptors.
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

}  // namespace
