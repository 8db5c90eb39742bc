// All of DRTAM, and its descriptors alone.

#include "abi.h"
#include "mlp.h"
#include "norms.h"
#include "planes_grad.h"
#include "sigmoid.h"

namespace {

// The parameters of one attention module, or their gradients: weights of the channels', the height's
// and the width's convolution, and of their norms weights and biases.
template <class A> struct Module {
  static constexpr int count = 9;
  A *const *conv, *const *weight, *const *bias;
  explicit Module(A* const* p) : conv(p), weight(p + 3), bias(p + 6) {}
};

// The descriptors on their way: what one attention module computes, and backward needs.
template <class A> struct Stage {
  A *vectors[3], *strips[2], *moments, *v, *hidden, *out[3];
  int32_t* at[2];
};

// x (N, C, H, W) -> y = x * A, or x * (A + (1 - A) * A2) with two modules. With `share`, a of each
// sample's channels (N, C), y = x * (1 - a (1 - A) (1 - A2)), where A2 = 0 of a single module.
template <class A> struct Rank1 {
  Map m;
  bool last;
  Planes p;
  i64 hidden;
  int modules;
  A* const* params;      // the MLP's four, then each module's
  A* const* running;     // mean and var of each norm, read where it normalises by these
  A* moments;            // mean and var of each, written where it normalises by the batch's
  const double* rules;   // momentum and eps of each norm
  A* share;              // or null
  A *ch, *cw, *hw;
  Stage<A> stages[2];

  // Cuts the floats and integers kept for backward into their parts; returns the number of floats.
  i64 lay_out(A* kept, int32_t* at) {
    i64 used = 0;
    auto take = [&](i64 size) { return kept + (used += size) - size; };
    ch = take(m.n * m.c * m.h), cw = take(m.n * m.c * m.w), hw = take(m.n * m.h * m.w);
    for (int i = 0; i < modules; ++i) {
      Stage<A>& s = stages[i];
      for (int k = 0; k < 3; ++k) {
        s.vectors[k] = take(m.n * length(k));
        s.out[k] = take(m.n * length(k));
      }
      s.strips[0] = take(m.n * p.strips() * m.h), s.strips[1] = take(m.n * p.strips() * m.w);
      s.moments = take(6), s.v = take(m.n * m.c), s.hidden = take(m.n * hidden);
      s.at[0] = at + i * m.n * (m.h + m.w), s.at[1] = s.at[0] + m.n * m.h;
    }
    return used;
  }
  Shape shape() const { return last ? Shape{m.n, m.h * m.w, m.c} : Shape{m.n, m.c, m.h * m.w}; }
  i64 length(int k) const { return k == 0 ? m.c : k == 1 ? m.h : m.w; }
  Module<A> module(int i) const { return Module<A>(params + 4 + i * Module<A>::count); }
  const A* const* taken(int i) const {
    static constexpr A* none[3] = {};
    return i ? stages[0].out : none;
  }
  Mlp<A> layers() const {
    return {m.n, 1, m.c, hidden, params[0], params[1], params[2], params[3], nullptr};
  }
  std::array<Norm<A>, 3> norms(int i) const {
    std::array<Norm<A>, 3> found;
    for (int k = 0; k < 3; ++k) {
      int j = 3 * i + k;
      A *mean = nullptr, *var = nullptr;  // which backward does not ask for
      if (moments && rules[2 * j] >= 0) mean = moments + 2 * j, var = mean + 1;
      else if (moments) mean = running[2 * j], var = running[2 * j + 1];
      found[k] = {length(k), stages[i].vectors[k], module(i).weight[k], module(i).bias[k], mean, var,
                  rules[2 * j], rules[2 * j + 1], k > 0};
    }
    return found;
  }
  // f(scale, row factors, lane factors) with the maps q, q2 of the positions (N, H * W).
  template <class F> void scaled(A* const* q, F&& f) const {
    A* c[3] = {stages[0].out[0], modules > 1 ? stages[1].out[0] : nullptr, share};
    if (share) {
      Scratch<A> none(modules > 1 ? 0 : m.n * m.c);
      if (modules == 1) c[1] = none + 0, std::fill_n(c[1], m.n * m.c, A(0));
      if (last) f(Either<PartDual, true>{}, q, c);
      else f(Either<PartDual, false>{}, c, q);
    } else if (modules > 1) f(DualScale{}, last ? q : c, last ? c : q);
    else f(ProductScale{}, last ? q : c, last ? c : q);
  }
};

template <class T> void rank1_attention(const T* x, T* y, const Rank1<Acc<T>>& r, int threads) {
  using A = Acc<T>;
  (r.last ? strips_nhwc<T> : strips_nchw<T>)(x, r.m, r.ch, r.cw, r.hw, threads);
  i64 places = r.m.n * r.m.h * r.m.w;
  Scratch<A> maps(r.modules * places);
  A* q[2] = {maps + 0, maps + (r.modules - 1) * places};
  for (int i = 0; i < r.modules; ++i) {
    const Stage<A>& s = r.stages[i];
    rank1_pool<A>(r.ch, r.cw, r.hw, r.p, r.module(i).conv, r.taken(i), s.vectors, s.strips, s.at,
                  threads);
    A* const to[3] = {s.v, s.out[1], s.out[2]};
    rank1_norm<A>(r.norms(i).data(), r.m.n, to, s.moments, threads);
    mlp(r.layers(), (const A*)s.v, s.hidden, s.out[0], threads);
    sigmoid<A>(s.out[0], s.out[0], r.m.n * r.m.c);
    outer<A>(s.out[1], s.out[2], q[i], r.m);
  }
  Shape shape = r.shape();
  r.scaled(q, [&](auto g, auto a, auto b) { scale<decltype(g)>(x, y, shape, a, b, threads); });
}

// dx may be null; dparams: as the parameters; dshare: as share.
template <class T>
void rank1_attention_grad(const T* x, const T* dy, T* dx, const Rank1<Acc<T>>& r,
                          Acc<T>* const* dparams, Acc<T>* dshare, int threads) {
  using A = Acc<T>;
  const Map& m = r.m;
  i64 places = m.n * m.h * m.w, sizes[3] = {m.n * m.c, m.n * m.h, m.n * m.w};
  i64 vectors = sizes[0] + sizes[1] + sizes[2];
  Scratch<A> maps(2 * r.modules * places), grads(2 * r.modules * vectors + sizes[0]);
  Scratch<A> planes(m.n * (m.c * (m.h + m.w) + m.h * m.w));
  A *q[2], *dq[2], *dout[2][3], *dv[3], *gv = grads + 2 * r.modules * vectors;
  for (int i = 0; i < r.modules; ++i) {
    q[i] = maps + 2 * i * places, dq[i] = q[i] + places;
    outer<A>(r.stages[i].out[1], r.stages[i].out[2], q[i], m);
    A* to = grads + i * vectors;
    for (int k = 0; k < 3; to += sizes[k++]) dout[i][k] = to;
  }
  Shape shape = r.shape();
  // Of a single module there is no second map: what a kernel writes of one goes nowhere.
  Scratch<A> nowhere(r.share && r.modules == 1 ? sizes[0] + places : 0);
  A* dc[3] = {dout[0][0], dout[r.modules - 1][0], dshare};
  if (r.modules == 1) q[1] = q[0], dq[1] = nowhere + sizes[0], dc[1] = nowhere + 0;
  r.scaled(q, [&](auto g, auto a, auto b) {
    scale_grad<decltype(g)>(x, dy, (T*)nullptr, shape, a, b, r.last ? dq : dc, r.last ? dc : dq, threads);
  });
  A* const dplanes[3] = {planes + 0, planes + m.n * m.c * m.h, planes + m.n * m.c * (m.h + m.w)};
  for (int i = 0; i < r.modules; ++i)
    outer_grad<A>(r.stages[i].out[1], r.stages[i].out[2], dq[i], dout[i][1], dout[i][2], m);
  for (int i = r.modules - 1; i >= 0; --i) {
    const Stage<A>& s = r.stages[i];
    Module<A> d(dparams + 4 + i * Module<A>::count);
    A* to = grads + (r.modules + i) * vectors;
    for (int k = 0; k < 3; to += sizes[k++]) dv[k] = to;
    sigmoid_grad<A>(dout[i][0], s.out[0], dout[i][0], sizes[0]);
    mlp_grad<A>(r.layers(), s.v, s.hidden, dout[i][0], gv, dparams, nullptr, i + 1 < r.modules, threads);
    const A* const g[3] = {gv, dout[i][1], dout[i][2]};
    rank1_norm_grad<A>(r.norms(i).data(), m.n, s.out, s.moments, g, dv, d.weight, d.bias, threads);
    Scratch<A> lost(i ? vectors : 0);  // the first module's factors, taken from the planes
    A* const dtaken[3] = {lost + 0, lost + sizes[0], lost + sizes[0] + sizes[1]};
    rank1_pool_grad<A>(r.ch, r.cw, r.hw, r.p, r.module(i).conv, r.taken(i), dv, s.strips, s.at,
                       dplanes, i + 1 < r.modules, d.conv, dtaken, threads);
    for (i64 l = 0; i && l < vectors; ++l) grads[l] += lost[l];
  }
  if (!dx) return;
  bool past = streams(dx, shape.n * shape.rows * shape.lanes, shape.lanes);
  r.scaled(q, [&](auto g, auto a, auto b) {
    Scaled<decltype(g), T> incoming{dy, shape, a, b};
    auto finish = past ? strips_grad<true, T, decltype(incoming)>
                       : strips_grad<false, T, decltype(incoming)>;
    finish(incoming, dx, m, r.last, dplanes[0], dplanes[1], dplanes[2], threads);
  });
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// chunks: pairs of begin and end, for height and width (S each) and the channels (M). weights, taken,
// out, strips, at, grads: pointers as the functions above take them.
void mmattn_rank1_pool(int dtype, const Sum* ch, const Sum* cw, const Sum* hw, i64 n, i64 c, i64 h,
                       i64 w, i64 s, i64 m, const i64* chunks, Sum** weights, Sum** taken, Sum** out,
                       Sum** strips, int32_t** at, int threads) {
  Planes p = planes_of({n, c, h, w}, s, m, chunks);
  typed(dtype, [&](auto tag) {
    rank1_pool<A_>((const A_*)ch, (const A_*)cw, (const A_*)hw, p, (const A_**)weights,
                   (const A_**)taken, (A_**)out, (A_**)strips, (int32_t**)at, threads);
  });
}

void mmattn_rank1_pool_grad(int dtype, const Sum* ch, const Sum* cw, const Sum* hw, i64 n, i64 c,
                            i64 h, i64 w, i64 s, i64 m, const i64* chunks, Sum** weights, Sum** taken,
                            Sum** grads, Sum** strips, int32_t** at, Sum** dplanes, Sum** dweights,
                            Sum** dtaken, int threads) {
  Planes p = planes_of({n, c, h, w}, s, m, chunks);
  typed(dtype, [&](auto tag) {
    rank1_pool_grad<A_>((const A_*)ch, (const A_*)cw, (const A_*)hw, p, (const A_**)weights,
                        (const A_**)taken, (const A_**)grads, (const A_**)strips,
                        (const int32_t**)at, (A_**)dplanes, false, (A_**)dweights, (A_**)dtaken,
                        threads);
  });
}

// chunks: as above; params, running, rules, dparams: as `Rank1` has them; kept, at: what forward leaves
// for backward. The first returns the number of floats of `kept`; without y that is all it does.
i64 mmattn_rank1_attention(int dtype, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w,
                           int last, i64 s, i64 m, const i64* chunks, i64 hidden, int modules,
                           Sum** params, Sum** running, Sum* moments, const double* rules,
                           const Sum* share, Sum* kept, int32_t* at, int threads) {
  i64 size = 0;
  typed(dtype, [&](auto tag) {
    Rank1<A_> r{{n, c, h, w}, bool(last), planes_of({n, c, h, w}, s, m, chunks), hidden, modules,
                (A_**)params, (A_**)running, (A_*)moments, rules, (A_*)share};
    size = r.lay_out((A_*)kept, (int32_t*)at);
    if (y) rank1_attention((const decltype(tag)*)x, (decltype(tag)*)y, r, threads);
  });
  return size;
}

void mmattn_rank1_attention_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n,
                                 i64 c, i64 h, i64 w, int last, i64 s, i64 m, const i64* chunks,
                                 i64 hidden, int modules, Sum** params, const double* rules,
                                 const Sum* share, Sum* kept, int32_t* at, Sum** dparams,
                                 Sum* dshare, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    Rank1<A_> r{{n, c, h, w}, bool(last), planes_of({n, c, h, w}, s, m, chunks), hidden, modules,
                (A_**)params, nullptr, nullptr, rules, (A_*)share};
    r.lay_out((A_*)kept, (int32_t*)at);
    rank1_attention_grad((const T*)x, (const T*)dy, (T*)dx, r, (A_**)dparams, (A_*)dshare, threads);
  });
}

}  // namespace

SHOW(
    ENTRY(rank1_pool),
    ENTRY(rank1_pool_grad),
    ENTRY(rank1_attention),
    ENTRY(rank1_attention_grad))
