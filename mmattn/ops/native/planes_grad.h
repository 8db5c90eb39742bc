// The gradients of DRTAM's descriptors of the three planes.
#pragma once

#include "planes.h"

namespace {

// What the averages pass on: to each place along L of the gradient of each channel, and, of each window of
// channels, to all of these.
template <class A> struct Shares {
  Scratch<A> level, mean;
  Shares(const ChannelPlane<A>& side, const Planes& p, const A* gavg)
      : level(side.length), mean(p.channel_chunks * side.length) {
    i64 length = side.length;
    std::fill_n(level + 0, length, A(0));
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = side.in_l[s];
      for (i64 i = in.begin; i < in.end; ++i) level[i] += side.weights[4 * s] / A(in.end - in.begin);
    }
    for (i64 m = 0; m < p.channel_chunks; ++m)
      for (i64 i = 0; i < length; ++i)
        mean[m * length + i] = gavg[m * length + i] / A(p.in_c[m].end - p.in_c[m].begin);
  }
};

// Of some channels, factors cv: g becomes the gradient of their plane `raw`, from that of what was left of
// it; `lost` grows by that of the factors along L, dc by theirs.
template <class A, class R>
INLINE void take_grad(const ChannelPlane<A>& side, Vec<A> cv, const A* raw, A* g, A* lost, A* dc, R n) {
  constexpr int N = Simd<A>::N;
  Vec<A> sum = {};
  for (i64 i = 0; i < side.length; ++i) {
    Vec<A> gi = ld(g + i * N, Full<A>{}), gd = gi * ld(raw + i * N, Full<A>{});
    st(g + i * N, gi * side.kept(i, cv), Full<A>{});
    st(lost + i * N, ld(lost + i * N, Full<A>{}) + gd * cv, Full<A>{});
    sum += gd * side.l[i];
  }
  st(dc, ld(dc, n) - sum, n);
}

// The gradients of one side. `gc` (C) or null; gavg, gpeak: those of its strips. Writes the plane's (or
// adds to it), adds to those of the channel convolution's weights and of the factors taken.
template <class A>
void side_pool_grad(const ChannelPlane<A>& side, const Planes& p, const A* gc, const A* gavg,
                    const A* gpeak, const int32_t* at, A* dplane, bool add, double* dweights, A* dc,
                    double* dl) {
  using V = Vec<A>;
  using I = Int<A>;
  constexpr int N = Simd<A>::N;
  i64 length = side.length;
  Scratch<A> raw(length * N), tile(length * N), g(length * N), lost(length * N);
  std::fill_n(lost + 0, length * N, A(0));
  Shares<A> shares(side, p, gavg);
  std::vector<V> sums(2 * p.chunks, V{});
  side.blocks([&](i64 first, int count, auto n) FLAT {
    side.load(first, count, raw + 0);
    V cv = side.c ? ld(side.c + first, n) : V{}, gv = gc ? ld(gc + first, n) : V{};
    I channel = iota<A>() + Index<A>(first);
    for (i64 i = 0; i < length; ++i)
      st(tile + i * N, ld(raw + i * N, Full<A>{}) * side.kept(i, cv), Full<A>{});
    i64 done = 0;  // windows overlap on axes shorter than their number
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = side.in_l[s];
      V sum = {}, gm = gv * side.weights[4 * s + 1];
      Peak<A> top;
      for (i64 i = in.begin; i < in.end; ++i) {
        V v = ld(tile + i * N, Full<A>{});
        sum += v;
        top.raise(v, I{} + Index<A>(i));
      }
      for (i64 i = in.begin; i < in.end; ++i) {
        V gi = top.index == I{} + Index<A>(i) ? gm : V{};
        if (i < done) {
          gi += ld(g + i * N, Full<A>{});
        } else {
          gi += gv * shares.level[i];
          for (i64 m = 0; m < p.channel_chunks; ++m)
            gi += within<A>(p.in_c[m], first, all<A>(shares.mean[m * length + i]));
          gi += channel == I{} + Index<A>(at[i]) ? all<A>(gpeak[i]) : V{};
        }
        st(g + i * N, gi, Full<A>{});
      }
      done = std::max(done, in.end);
      if (!gc) continue;
      sums[2 * s] += gv * sum / A(in.end - in.begin);
      sums[2 * s + 1] += gv * top.value;
    }
    if (side.c) take_grad(side, cv, raw + 0, g + 0, lost + 0, dc + first, n);
    if (add) turn<true>(g + 0, N, dplane + first * length, length, length, count);
    else turn(g + 0, N, dplane + first * length, length, length, count);
  });
  for (i64 s = 0; s < p.chunks; ++s)
    for (int k = 0; k < 2; ++k) dweights[4 * s + k] += double(hsum(sums[2 * s + k]));
  if (side.c)
    for (i64 i = 0; i < length; ++i) dl[i] -= double(hsum(ld(lost + i * N, Full<A>{})));
}

// The gradients of the strips, and of the kernel, which are added.
template <class A>
void strip_conv_grad(const A* strips, const A* kernel, i64 rows, i64 length, const A* g, A* dstrips,
                     double* dkernel) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 i = 0; i < length; ++i) {
      A sum = 0;
      if (g)
        for (i64 k = std::max<i64>(0, i + 2 - length); k < std::min<i64>(3, i + 2); ++k) {
          sum += kernel[3 * r + k] * g[i + 1 - k];
          dkernel[3 * r + k] += double(g[i + 1 - k]) * double(strips[r * length + i]);
        }
      dstrips[r * length + i] = sum;
    }
}

// The gradients of the plane (H, W), which are written (`add`: added), and dh, dw of the factors taken.
template <class A>
void area_pool_grad(const A* plane, const A* const* t, const Planes& p, const A* gh, const A* gw, A* dplane,
                    bool add, double* dh, double* dw) {
  Scratch<A> row(p.w), across(p.w);
  std::fill_n(across + 0, p.w, A(0));
  for (i64 h = 0; h < p.h; ++h) {
    std::fill_n(row + 0, p.w, A(0));
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = p.in_w[s];
      A along = gh[s * p.h + h] / A(in.end - in.begin);
      for (i64 w = in.begin; w < in.end; ++w) row[w] += along;
      in = p.in_h[s];
      if (in.begin <= h && h < in.end)
        for (i64 w = 0; w < p.w; ++w) row[w] += gw[s * p.w + w] / A(in.end - in.begin);
    }
    A* to = dplane + h * p.w;
    A share = t[0] ? t[1][h] : A(0);
    Vec<A> sum = {};
    lanes<A>(0, p.w, [&](i64 w, auto r) FLAT {
      Vec<A> g = ld(row + w, r), before = add ? ld(to + w, r) : Vec<A>{};
      Vec<A> b = t[0] ? ld(t[2] + w, r) : Vec<A>{};
      st(to + w, before + g * (1 - share * b), r);
      if (!t[0]) return;
      Vec<A> lost = g * ld(plane + h * p.w + w, r);
      sum += lost * b;
      st(across + w, ld(across + w, r) + lost * share, r);
    });
    dh[h] -= double(hsum(sum));
  }
  for (i64 w = 0; w < p.w; ++w) dw[w] -= double(across[w]);
}

// grads: of c, h, w, each may be null. dplanes (`add`: added to), dweights, dtaken: in the order of the
// arguments.
template <class A>
void rank1_pool_grad(const A* ch, const A* cw, const A* hw, Planes p, const A* const* weights,
                     const A* const* taken, const A* const* grads, const A* const* strips,
                     const int32_t* const* at, A* const* dplanes, bool add, A* const* dweights,
                     A* const* dtaken, int threads) {
  i64 rows = p.strips(), kernel = 3 * rows, each = 4 * p.chunks + 2 * kernel;
  std::vector<double> partial(p.n * each, 0.);
  parallel(p.n, p.n * p.c * (p.h + p.w), threads, [&](i64 n) {
    const A *t[3] = {}, *g[3];
    const i64 sizes[3] = {p.c, p.h, p.w};
    for (int i = 0; i < 3; ++i) {
      t[i] = taken[0] ? taken[i] + n * sizes[i] : nullptr;
      g[i] = grads[i] ? grads[i] + n * sizes[i] : nullptr;
    }
    double* dw = partial.data() + n * each;
    Scratch<A> gh(rows * p.h), gw(rows * p.w);
    strip_conv_grad(strips[0] + n * rows * p.h, weights[1], rows, p.h, g[1], gh + 0,
                    dw + 4 * p.chunks);
    strip_conv_grad(strips[1] + n * rows * p.w, weights[2], rows, p.w, g[2], gw + 0,
                    dw + 4 * p.chunks + kernel);
    A* dc = t[0] ? dtaken[0] + n * p.c : nullptr;
    if (dc) std::fill_n(dc, p.c, A(0));
    std::vector<double> dh(p.h, 0.), dv(p.w, 0.);
    auto side = [&](const A* plane, i64 length, const A* l, const Window* in_l, const A* w,
                    const A* gs, const int32_t* where, A* out, double* dws, double* dl) {
      const A* gavg = gs + p.chunks * length;
      side_pool_grad(ChannelPlane<A>{plane + n * p.c * length, t[0], l, p.c, length, in_l, w}, p, g[0], gavg,
                     gavg + p.channel_chunks * length, where + n * length, out + n * p.c * length,
                     add, dws, dc, dl);
    };
    side(cw, p.w, t[2], p.in_w, weights[0], gw + 0, at[1], dplanes[1], dw, dv.data());
    side(ch, p.h, t[1], p.in_h, weights[0] + 2, gh + 0, at[0], dplanes[0], dw + 2, dh.data());
    i64 area = p.h * p.w;
    area_pool_grad(hw + n * area, t, p, gh + 0, gw + 0, dplanes[2] + n * area, add, dh.data(), dv.data());
    if (!t[0]) return;
    for (i64 h = 0; h < p.h; ++h) dtaken[1][n * p.h + h] = A(dh[h]);
    for (i64 w = 0; w < p.w; ++w) dtaken[2][n * p.w + w] = A(dv[w]);
  });
  const i64 sizes[3] = {4 * p.chunks, kernel, kernel};
  for (i64 i = 0, from = 0; i < 3; from += sizes[i++])
    add_samples(&partial[from], dweights[i], p.n, each, sizes[i]);
}

}  // namespace
