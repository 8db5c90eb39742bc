// CBAM: its factor of each position, made of two maps; and all of it, each way a call.

#include "cbam_dx.h"
#include "convolution.h"
#include "functions.h"
#include "sigmoid.h"

namespace {

// The layers behind the maps: s = sigmoid((v - mean) scale + bias), v = kernel * maps; without a norm
// s = sigmoid(v).
template <class A> struct Spatial {
  i64 n, maps, h, w, kh, kw;
  const A* kernel;
  const A *weight, *bias;  // of the norm, or null
  A *mean, *var;
  bool by_batch;
  double eps;
  i64 count() const { return n * h * w; }
  A deviation() const { return A(1 / std::sqrt(double(*var) + eps)); }
};

// Of all elements the sum of f(values), in the order of the samples.
template <class A, class F> double sum_of(i64 n_, i64 each, F&& f) {
  double total = 0;
  for (i64 n = 0; n < n_; ++n) {
    Vec<A> sum = {};
    lanes<A>(n * each, (n + 1) * each, [&](i64 l, auto r) FLAT {
      Vec<A> v = f(l, r);
      if (r < Simd<A>::N) v = iota<A>() < Int<A>{} + int(r) ? v : Vec<A>{};
      sum += v;
    });
    total += double(hsum(sum));
  }
  return total;
}

// moments: what running mean and variance move to, if by the batch.
template <class A>
void spatial_factors(const Spatial<A>& m, const A* maps, A* v, A* s, A* moments, int threads) {
  moments[0] = moments[1] = 0;
  spatial_conv(maps, m.kernel, v, m.n, m.maps, m.h, m.w, m.kh, m.kw, threads);
  if (!m.weight) return sigmoid<A>(v, s, m.count());
  if (m.by_batch) {
    double count = double(m.count());
    *m.mean = A(sum_of<A>(m.n, m.h * m.w, [&](i64 l, auto r) FLAT { return ld(v + l, r); }) / count);
    double squares = sum_of<A>(m.n, m.h * m.w, [&](i64 l, auto r) FLAT {
      Vec<A> d = ld(v + l, r) - *m.mean;
      return d * d;
    });
    *m.var = A(squares / count);
    moments[0] = *m.mean, moments[1] = A(squares / (count - 1));
  }
  A scale = m.deviation() * *m.weight;
  lanes<A>(0, m.count(), [&](i64 l, auto r) FLAT {
    st(s + l, sigmoid<A>((ld(v + l, r) - *m.mean) * scale + *m.bias), r);
  });
}

// g: of s. dmaps; dw: of kernel, and of the norm's weight and bias.
template <class A>
void spatial_factors_grad(const Spatial<A>& m, const A* g, const A* maps, const A* v, const A* s, A* dmaps,
                          A* const* dw, int threads) {
  Scratch<A> dv(m.count());
  sigmoid_grad<A>(g, s, dv + 0, m.count());
  if (m.weight) {
    A deviation = m.deviation(), level = 0, slope = 0;
    auto unit = [&](i64 l, auto r) FLAT { return (ld(v + l, r) - *m.mean) * deviation; };
    double sum = sum_of<A>(m.n, m.h * m.w, [&](i64 l, auto r) FLAT { return ld(dv + l, r); });
    double dot = sum_of<A>(m.n, m.h * m.w, [&](i64 l, auto r) FLAT { return ld(dv + l, r) * unit(l, r); });
    *dw[1] = A(dot), *dw[2] = A(sum);
    if (m.by_batch) level = A(sum / double(m.count())), slope = A(dot / double(m.count()));
    lanes<A>(0, m.count(), [&](i64 l, auto r) FLAT {
      st(dv + l, (ld(dv + l, r) - level - unit(l, r) * slope) * (deviation * *m.weight), r);
    });
  }
  spatial_conv_grad(maps, m.kernel, (const A*)(dv + 0), dmaps, dw[0], m.n, m.maps, m.h, m.w, m.kh, m.kw,
                    threads);
}

template <class A>
Spatial<A> spatial_of(i64 n, i64 maps, i64 h, i64 w, i64 kh, i64 kw, const A* kernel, A* const* norm,
                      A* mean, A* var, bool by_batch, double eps) {
  return {n, maps, h, w, kh, kw, kernel, norm[0], norm[1], mean, var, by_batch, eps};
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// From M descriptors (N, H, W): them side by side maps (N, M, H, W), their convolution v and the factors s
// (N, H, W). norm: weight, bias, running mean and variance, or nulls for none; mean, var: what it
// normalises by, the batch's or these.
void mmattn_spatial_factors(int dtype, Sum** descriptors, i64 n, i64 m, i64 h, i64 w, i64 kh, i64 kw,
                            const Sum* kernel, Sum** norm, int by_batch, double eps, Sum* maps, Sum* v,
                            Sum* s, Sum* mean, Sum* var, Sum* moments, int threads) {
  typed(dtype, [&](auto tag) {
    auto from = (const A_* const*)descriptors;
    i64 area = h * w;
    for (i64 i = 0; i < n * m; ++i) std::copy_n(from[i % m] + i / m * area, area, (A_*)maps + i * area);
    if (norm[0] && !by_batch) *(A_*)mean = *(A_*)norm[2], *(A_*)var = *(A_*)norm[3];
    auto layers = spatial_of(n, m, h, w, kh, kw, (const A_*)kernel, (A_**)norm, (A_*)mean, (A_*)var,
                             by_batch, eps);
    spatial_factors(layers, (const A_*)maps, (A_*)v, (A_*)s, (A_*)moments, threads);
  });
}

// grads: two of s to be added up, of which the second may be null. dmaps: of the M descriptors.
void mmattn_spatial_factors_grad(int dtype, Sum** grads, const Sum* s, const Sum* maps, const Sum* v, i64 n,
                                 i64 m, i64 h, i64 w, i64 kh, i64 kw, const Sum* kernel, Sum** norm,
                                 const Sum* mean, const Sum* var, int by_batch, double eps, Sum** dmaps,
                                 Sum** dweights, int threads) {
  typed(dtype, [&](auto tag) {
    i64 area = h * w;
    Scratch<A_> g(n * area), side_by_side(n * m * area);
    add_up((const A_* const*)grads, 2, g + 0, n * area);
    auto layers = spatial_of(n, m, h, w, kh, kw, (const A_*)kernel, (A_**)norm, (A_*)mean, (A_*)var,
                             by_batch, eps);
    spatial_factors_grad(layers, (const A_*)(g + 0), (const A_*)maps, (const A_*)v, (const A_*)s,
                         side_by_side + 0, (A_**)dweights, threads);
    for (i64 i = 0; i < n * m; ++i)
      std::copy_n(side_by_side + i * area, area, (A_*)dmaps[i % m] + i / m * area);
  });
}

// Of a map that was scaled by c and s, of a share of the identity (N, C) or null.
void mmattn_cbam_dx(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                    const Sum* channel, const Sum* spatial, const Sum* ga, const Sum* gm,
                    const int32_t* at, const Sum* gavg, const Sum* gmax, const int32_t* channel_at,
                    const Sum* share, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    Cbam<T> g{(const T*)dy,    (const A_*)channel, (const A_*)spatial, (const A_*)share,
              (const A_*)ga,   (const A_*)gm,      (const A_*)gavg,    (const A_*)gmax,
              at,              channel_at};
    auto f = share ? (last ? cbam_dx<true, false, T> : cbam_dx<true, true, T>)
                   : (last ? cbam_dx<false, false, T> : cbam_dx<false, true, T>);
    f(g, (T*)dx, s, threads);
  });
}

// All of it. norm: as above. factors: c, s and the moments; kept: pooled (N, 2, C), hidden (N, 2, K), maps
// (N, 2, H, W), v (N, H, W), mean and var; at: of the maxima of each channel and of each position.
void mmattn_cbam(int dtype, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w, int last, i64 hidden,
                 i64 kh, i64 kw, Sum** mlp, const Sum* kernel, Sum** norm, int by_batch, double eps,
                 Sum** factors, Sum** kept, int32_t** at, int threads) {
  SumScratch channel_avg(dtype, n * c), channel_max(dtype, n * c), avg(dtype, n * h * w), max(dtype, n * h * w);
  Sum *channel[] = {channel_avg, channel_max}, *maps[] = {max, avg};
  mmattn_pool(dtype, true, x, n, c, h, w, last, nullptr, channel_avg, channel_max, at[0], threads);
  mmattn_channel_factors(dtype, channel, n, 2, c, hidden, mlp, kept[0], kept[1], factors[0], threads);
  mmattn_pool(dtype, false, x, n, c, h, w, last, factors[0], avg, max, at[1], threads);
  mmattn_spatial_factors(dtype, maps, n, 2, h, w, kh, kw, kernel, norm, by_batch, eps, kept[2], kept[3],
                         factors[1], kept[4], kept[5], factors[2], threads);
  mmattn_scale(dtype, kProduct, x, y, n, c, h, w, last, factors[0], factors[1], nullptr, nullptr, nullptr,
               threads);
}

// factors: c and s; grads: of these, or nulls; kept, at: as above. dx null: not wanted; dmlp: of w1, b1, w2,
// b2; dspatial: of the kernel, and of the norm's weight and bias.
void mmattn_cbam_backward(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c, i64 h,
                          i64 w, int last, i64 hidden, i64 kh, i64 kw, Sum** mlp, const Sum* kernel,
                          const Sum* weight, int by_batch, double eps, Sum** factors, Sum** grads,
                          Sum** kept, int32_t** at, Sum** dmlp, Sum** dspatial, int threads) {
  SumScratch dc(dtype, n * c), dc2(dtype, n * c), channel_avg(dtype, n * c), channel_max(dtype, n * c);
  SumScratch ds(dtype, n * h * w), avg(dtype, n * h * w), max(dtype, n * h * w);
  Sum *of_s[] = {ds, grads[1]}, *maps[] = {max, avg}, *norm[] = {(Sum*)weight, nullptr};
  Sum *of_c[] = {dc, dc2, grads[0]}, *channel[] = {channel_avg, channel_max};
  mmattn_scale_grad(dtype, kProduct, x, dy, nullptr, n, c, h, w, last, factors[0], factors[1], nullptr,
                    nullptr, nullptr, dc, ds, nullptr, nullptr, nullptr, threads);
  mmattn_spatial_factors_grad(dtype, of_s, factors[1], kept[2], kept[3], n, 2, h, w, kh, kw, kernel, norm,
                              kept[4], kept[5], by_batch, eps, maps, dspatial, threads);
  mmattn_spatial_pool_grad(dtype, x, nullptr, n, c, h, w, last, factors[0], avg, max, at[1], dc2, threads);
  mmattn_channel_factors_grad(dtype, of_c, factors[0], kept[0], kept[1], n, 2, c, hidden, mlp, channel, dmlp,
                              threads);
  if (dx)
    mmattn_cbam_dx(dtype, dy, dx, n, c, h, w, last, factors[0], factors[1], avg, max, at[1], channel_avg,
                   channel_max, at[0], nullptr, threads);
}

}  // namespace

SHOW(
    ENTRY(spatial_factors),
    ENTRY(spatial_factors_grad),
    ENTRY(cbam_dx),
    ENTRY(cbam),
    ENTRY(cbam_backward))
