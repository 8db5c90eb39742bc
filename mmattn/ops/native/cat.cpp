// CAT: its factors of channels and of positions, made of its pools (eq. 1 to 7); and all of it, each way
// a call.

#include "convolution.h"
#include "functions.h"
#include "min_max.h"
#include "mlp.h"
#include "sigmoid.h"

namespace {

// One attention's P descriptors, each (N, L): average, maximum, entropy, of which some are null.
template <class A> struct Pools {
  i64 n, length;
  int sign;  // of the average: 1 of the channels, -1 of the positions (eq. 7)
  A low, high;

  // Side by side (N, P, L), the entropy as it is normalised (eq. 4).
  void stack(const A* const* from, i64 parts, A* to, int threads) const {
    i64 p = 0;
    if (from[0]) each(from[0], A(sign), to + p++ * length, parts);
    if (from[1]) each(from[1], A(1), to + p++ * length, parts);
    if (!from[2]) return;
    Scratch<A> normal(n * length);
    min_max(from[2], normal + 0, n, length, low, high, threads);
    each(normal + 0, A(1), to + p * length, parts);
  }
  void each(const A* from, A factor, A* to, i64 parts) const {
    for (i64 i = 0; i < n; ++i)
      for (i64 l = 0; l < length; ++l) to[i * parts * length + l] = from[i * length + l] * factor;
  }
  // The gradients of the descriptors, of that of their stack; entropy: as it was, not normalised.
  void unstack(const A* g, i64 parts, const A* entropy, A* const* to, int threads) const {
    i64 p = 0;
    auto part = [&](A factor, A* out) {
      for (i64 i = 0; i < n; ++i)
        for (i64 l = 0; l < length; ++l) out[i * length + l] = g[(i * parts + p) * length + l] * factor;
      ++p;
    };
    if (to[0]) part(A(sign), to[0]);
    if (to[1]) part(A(1), to[1]);
    if (!to[2]) return;
    Scratch<A> normal(n * length);
    part(A(1), normal + 0);
    min_max_grad(entropy, (const A*)(normal + 0), to[2], n, length, high - low, threads);
  }
};

// act is a sigmoid; the factor is sigmoid(inner * weight) by eq. 1 (`equation`), act * weight by
// Algorithm 1. `inner` is act itself where it is a sigmoid already.
template <class A> void exterior(const A* inner, A weight, bool equation, A* factor, i64 length) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT {
    Vec<A> v = ld(inner + l, n) * weight;
    st(factor + l, equation ? sigmoid<A>(v) : v, n);
  });
}
// The gradient g of the factor becomes that of inner; returns that of the weight.
template <class A>
A exterior_grad(A* g, const A* inner, const A* factor, A weight, bool equation, i64 length) {
  double total = 0;
  if (equation) sigmoid_grad<A>(g, factor, g, length);
  for (i64 l0 = 0; l0 < length; l0 += kTile) {
    Vec<A> sum = {};
    lanes<A>(l0, std::min(l0 + kTile, length), [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(g + l, n);
      sum += v * ld(inner + l, n);
      st(g + l, v * weight, n);
    });
    total += double(hsum(sum));
  }
  return A(total);
}

template <class A> struct Cat {
  i64 n, c, h, w, parts, hidden, maps, kh, kw;
  // w1, w2, kernel; alpha, beta (P) and the two exterior weights, each may be null
  const A *w1, *w2, *kernel, *alpha, *beta, *outer;
  A low, high;
  bool equation;

  i64 area() const { return h * w; }
  A exterior_weight(int i) const { return outer ? outer[i] : A(1); }
  A share(i64 p) const { return beta ? beta[p] : A(1); }
  Mlp<A> mlp_() const { return {n, parts, c, hidden, w1, nullptr, w2, nullptr, alpha}; }
  Pools<A> of_channels() const { return {n, c, 1, low, high}; }
  Pools<A> of_positions() const { return {n, area(), -1, low, high}; }
  // What the convolution takes: the weighted sum of the spatial stack's maps, or these side by side.
  void weigh(const A* stack, A* to) const {
    for (i64 i = 0; i < n; ++i)
      for (i64 p = 0; p < parts; ++p) {
        A* out = to + (maps == 1 ? i : i * parts + p) * area();
        for (i64 l = 0; l < area(); ++l) {
          A v = stack[(i * parts + p) * area() + l] * share(p);
          out[l] = maps == 1 && p ? out[l] + v : v;
        }
      }
  }
};

template <class A>
void cat_factors(const Cat<A>& m, const A* const* channel, const A* const* spatial, A* channels,
                 A* positions, A* hidden, A* inner, A* z, A* c, A* s, int threads) {
  i64 area = m.n * m.area();
  m.of_channels().stack(channel, m.parts, channels, threads);
  m.of_positions().stack(spatial, m.parts, positions, threads);
  mlp(m.mlp_(), (const A*)channels, hidden, inner, threads);
  Scratch<A> maps(area * m.maps);
  m.weigh(positions, maps + 0);
  spatial_conv((const A*)(maps + 0), m.kernel, z, m.n, m.maps, m.h, m.w, m.kh, m.kw, threads);
  sigmoid<A>(z, z, area);
  if (!m.equation) sigmoid<A>(inner, c, m.n * m.c);
  exterior<A>(m.equation ? inner : c, m.exterior_weight(0), m.equation, c, m.n * m.c);
  exterior<A>(z, m.exterior_weight(1), m.equation, s, area);
}

// gc, gs: of c and s, which are used up. What forward left: channels, positions, hidden, inner, z, c, s.
// dchannel, dspatial: of the pools; dw: of w1, w2, kernel, alpha, beta, outer.
template <class A>
void cat_factors_grad(const Cat<A>& m, A* gc, A* gs, const A* channels, const A* positions, const A* hidden,
                      const A* inner, const A* z, const A* c, const A* s, const A* channel_entropy,
                      const A* spatial_entropy, A* const* dchannel, A* const* dspatial, A* const* dw,
                      int threads) {
  i64 area = m.n * m.area(), vector = m.n * m.c;
  Scratch<A> act(m.equation ? 0 : vector);
  if (!m.equation) sigmoid<A>(inner, act + 0, vector);
  A douter = exterior_grad<A>(gc, m.equation ? inner : act + 0, c, m.exterior_weight(0), m.equation, vector);
  if (!m.equation) sigmoid_grad<A>(gc, act + 0, gc, vector);
  if (dw[5]) dw[5][0] = douter;
  douter = exterior_grad<A>(gs, z, s, m.exterior_weight(1), m.equation, area);
  if (dw[5]) dw[5][1] = douter;
  sigmoid_grad<A>(gs, z, gs, area);

  Scratch<A> dv(vector * m.parts), maps(area * m.maps), dmaps(area * m.maps), dpositions(area * m.parts);
  A* const dmlp[4] = {dw[0], nullptr, dw[1], nullptr};
  mlp_grad(m.mlp_(), channels, hidden, (const A*)gc, dv + 0, dmlp, dw[3], false, threads);
  m.of_channels().unstack(dv + 0, m.parts, channel_entropy, dchannel, threads);

  m.weigh(positions, maps + 0);
  spatial_conv_grad((const A*)(maps + 0), m.kernel, (const A*)gs, dmaps + 0, dw[2], m.n, m.maps, m.h, m.w,
                    m.kh, m.kw, threads);
  std::vector<double> dbeta(m.parts, 0.);
  for (i64 i = 0; i < m.n; ++i)
    for (i64 p = 0; p < m.parts; ++p) {
      const A* g = dmaps + (m.maps == 1 ? i : i * m.parts + p) * m.area();
      i64 at = (i * m.parts + p) * m.area();
      Vec<A> sum = {};
      lanes<A>(0, m.area(), [&](i64 l, auto n) FLAT {
        Vec<A> v = ld(g + l, n);
        sum += v * ld(positions + at + l, n);
        st(dpositions + at + l, v * m.share(p), n);
      });
      dbeta[p] += double(hsum(sum));
    }
  for (i64 p = 0; dw[4] && p < m.parts; ++p) dw[4][p] = A(dbeta[p]);
  m.of_positions().unstack(dpositions + 0, m.parts, spatial_entropy, dspatial, threads);
}

// weights: w1, w2, kernel, alpha, beta, outer.
template <class A>
Cat<A> cat_of(i64 n, i64 c, i64 h, i64 w, i64 parts, i64 hidden, i64 maps, i64 kh, i64 kw, A* const* weights,
              double low, double high, bool equation) {
  return {n,          c,          h,          w,          parts,      hidden, maps,    kh,      kw,
          weights[0], weights[1], weights[2], weights[3], weights[4], weights[5], A(low), A(high), equation};
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// channel, spatial: average, maximum, entropy, null where there is none, P of them. kept: their stacks (N, P,
// C) and (N, P, H, W), hidden (N, P, K), inner (N, C), z (N, H, W).
void mmattn_cat_factors(int dtype, Sum** channel, Sum** spatial, i64 n, i64 c, i64 h, i64 w, i64 parts,
                        i64 hidden, i64 maps, i64 kh, i64 kw, Sum** weights, double low, double high,
                        int equation, Sum** kept, Sum* channels, Sum* positions, int threads) {
  typed(dtype, [&](auto tag) {
    auto m = cat_of(n, c, h, w, parts, hidden, maps, kh, kw, (A_**)weights, low, high, equation);
    auto k = (A_**)kept;
    cat_factors(m, (const A_* const*)channel, (const A_* const*)spatial, k[0], k[1], k[2], k[3], k[4],
                (A_*)channels, (A_*)positions, threads);
  });
}

// grads: two of c to be added up, then two of s, of each the second may be null. factors: c and s;
// entropies: of channels and positions, as they were pooled, or nulls.
void mmattn_cat_factors_grad(int dtype, Sum** grads, Sum** factors, Sum** kept, Sum** entropies, i64 n, i64 c,
                             i64 h, i64 w, i64 parts, i64 hidden, i64 maps, i64 kh, i64 kw, Sum** weights,
                             double low, double high, int equation, Sum** dchannel, Sum** dspatial,
                             Sum** dweights, int threads) {
  typed(dtype, [&](auto tag) {
    auto m = cat_of(n, c, h, w, parts, hidden, maps, kh, kw, (A_**)weights, low, high, equation);
    auto g = (const A_* const*)grads, f = (const A_* const*)factors, k = (const A_* const*)kept,
         e = (const A_* const*)entropies;
    Scratch<A_> gc(n * c), gs(n * h * w);
    add_up(g, 2, gc + 0, n * c);
    add_up(g + 2, 2, gs + 0, n * h * w);
    cat_factors_grad(m, gc + 0, gs + 0, k[0], k[1], k[2], k[3], k[4], f[0], f[1], e[0], e[1],
                     (A_**)dchannel, (A_**)dspatial, (A_**)dweights, threads);
  });
}

// All of it. avg, max, ent: which pools are wanted. factors: c and s; kept: inner, z, the stacks, hidden,
// as above; the entropies of channels and of positions, the samples' references, and of each side
// once more the entropies, log s and reference of wide samples; at: where the maxima are. What is of a pool
// that is not wanted is null.
void mmattn_cat(int dtype, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w, int last,
                const Sum* taps, i64 k, i64 hidden, i64 maps, i64 kh, i64 kw, Sum** weights, int avg,
                int max, int ent, double low, double high, int equation, Sum** factors, Sum** kept,
                int32_t** at, int threads) {
  SumScratch channel_avg(dtype, n * c), channel_max(dtype, n * c);
  SumScratch spatial_avg(dtype, n * h * w), spatial_max(dtype, n * h * w);
  Sum* channel[] = {avg ? channel_avg : (Sum*)nullptr, max ? channel_max : (Sum*)nullptr, kept[5], kept[9],
                    kept[10]};
  Sum* spatial[] = {avg ? spatial_avg : (Sum*)nullptr, max ? spatial_max : (Sum*)nullptr, kept[6], kept[12],
                    kept[13]};
  Sum* inner[] = {kept[2], kept[3], kept[4], kept[0], kept[1]};
  const size_t of_channels = sum_bytes(dtype, n * c), of_positions = sum_bytes(dtype, n * h * w);
  if (ent) std::memset(kept[10], 0, of_channels), std::memset(kept[13], 0, of_positions);
  mmattn_entropy(dtype, x, n, c, h, w, last, taps, k, channel, at[0], spatial, at[1], kept[7], threads);
  if (ent) std::memcpy(kept[8], kept[5], of_channels), std::memcpy(kept[11], kept[6], of_positions);
  mmattn_cat_factors(dtype, channel, spatial, n, c, h, w, avg + max + ent, hidden, maps, kh, kw, weights, low,
                     high, equation, inner, factors[0], factors[1], threads);
  mmattn_scale(dtype, kSum, x, y, n, c, h, w, last, factors[0], factors[1], nullptr, nullptr, nullptr,
               threads);
}

// grads: of the factors, or nulls; kept, at: as above. dx null: not wanted.
void mmattn_cat_backward(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c, i64 h,
                         i64 w, int last, const Sum* taps, i64 k, i64 hidden, i64 maps, i64 kh, i64 kw,
                         Sum** weights, int avg, int max, int ent, double low, double high, int equation,
                         Sum** factors, Sum** grads, Sum** kept, int32_t** at, Sum** dweights, int threads) {
  SumScratch dc(dtype, n * c), ds(dtype, n * h * w), channel(dtype, 3 * n * c), spatial(dtype, 3 * n * h * w);
  auto part = [&](Sum* of, bool wanted, int i, i64 length) {
    return wanted ? (Sum*)((char*)of + sum_bytes(dtype, i * length)) : nullptr;
  };
  const bool wanted[] = {bool(avg), bool(max), bool(ent)};
  Sum *dchannel[3], *dspatial[3];
  for (int i = 0; i < 3; ++i) {
    dchannel[i] = part(channel, wanted[i], i, n * c);
    dspatial[i] = part(spatial, wanted[i], i, n * h * w);
  }
  Sum *given[] = {dc, grads[0], ds, grads[1]}, *entropies[] = {kept[5], kept[6]};
  Sum* inner[] = {kept[2], kept[3], kept[4], kept[0], kept[1]};
  Sum* of_channels[] = {dchannel[0], dchannel[2], dchannel[1], kept[8], kept[9], kept[10]};
  Sum* of_positions[] = {dspatial[0], dspatial[2], dspatial[1], kept[11], kept[12], kept[13]};
  mmattn_scale_grad(dtype, kSum, x, dy, nullptr, n, c, h, w, last, factors[0], factors[1], nullptr, nullptr,
                    nullptr, dc, ds, nullptr, nullptr, nullptr, threads);
  mmattn_cat_factors_grad(dtype, given, factors, inner, entropies, n, c, h, w, avg + max + ent, hidden, maps,
                          kh, kw, weights, low, high, equation, dchannel, dspatial, dweights, threads);
  if (dx)
    mmattn_entropy_grad(dtype, x, dy, dx, n, c, h, w, last, taps, k, of_channels, at[0], of_positions, at[1],
                        kept[7], factors[0], factors[1], nullptr, threads);
}

}  // namespace

SHOW(
    ENTRY(cat_factors),
    ENTRY(cat_factors_grad),
    ENTRY(cat),
    ENTRY(cat_backward))
