// DRTAM's descriptors of the three planes.
#pragma once

#include "strips.h"

namespace {

struct Window { i64 begin, end; };

// Sizes of the planes ch (C, H), cw (C, W), hw (H, W), and what each axis is cut into.
struct Planes {
  i64 n, c, h, w, chunks, channel_chunks;
  const Window *in_h, *in_w, *in_c;
  i64 strips() const { return chunks + channel_chunks + 1; }
};

// chunks: the windows of height and width (S each), then of the channels (M).
inline Planes planes_of(Map m, i64 s, i64 channel_chunks, const void* chunks) {
  auto in = (const Window*)chunks;
  return {m.n, m.c, m.h, m.w, s, channel_chunks, in, in + s, in + 2 * s};
}

// One plane with channels, (C, L): L is the height or the width. `c` and `l` are the factors of an
// attention map whose share is taken from it, or null. `weights` are the channel convolution's, two
// (average, maximum) in every four. A row is short, so channels are worked on side by side, as the
// lanes of vectors: a tile holds a vector for each place along L.
template <class A> struct ChannelPlane {
  static constexpr int N = Simd<A>::N;
  using V = Vec<A>;
  const A *plane, *c, *l;
  i64 channels, length;
  const Window* in_l;
  const A* weights;

  // f(first channel, channels, how many as ld and st take it)
  template <class F> INLINE void blocks(F&& f) const {
    i64 at = 0;
    for (; at + N <= channels; at += N) f(at, N, Full<A>{});
    if (at < channels) f(at, int(channels - at), int(channels - at));
  }
  INLINE void load(i64 at, int n, A* tile) const {
    const A* from = plane + at * length;
    if (n < N) std::fill_n(tile, length * N, A(0));
    turn(from, length, tile, N, n, length);
  }
  INLINE V kept(i64 i, V cv) const { return c ? 1 - cv * l[i] : all<A>(1); }
};

template <class A> INLINE Vec<A> within(Window in, i64 at, Vec<A> v) {  // channels at, at + 1, ...
  Int<A> channel = iota<A>() + Index<A>(at);
  return (channel >= Index<A>(in.begin)) & (channel < Index<A>(in.end)) ? v : Vec<A>{};
}

// Adds to `out` (C), writes the strips avg (channel chunks, L) and peak (L) with its channel. A NaN passes
// through the averages to all that a maximum adds to: the maxima need not care.
template <class A>
void side_pool(const ChannelPlane<A>& side, const Planes& p, A* out, A* avg, A* peak, int32_t* at) {
  using V = Vec<A>;
  constexpr int N = Simd<A>::N;
  i64 length = side.length;
  Scratch<A> tile(length * N), sums(p.channel_chunks * length * N);
  std::fill_n(sums + 0, p.channel_chunks * length * N, A(0));
  std::vector<Peak<A>> tops(length);
  side.blocks([&](i64 first, int count, auto n) FLAT {
    side.load(first, count, tile + 0);
    V cv = side.c ? ld(side.c + first, n) : V{};
    for (i64 i = 0; i < length; ++i) {
      V v = ld(tile + i * N, Full<A>{}) * side.kept(i, cv);
      st(tile + i * N, v, Full<A>{});
      tops[i].raise(count < N ? outside<A>(v, count) : v, iota<A>() + Index<A>(first));
      for (i64 m = 0; m < p.channel_chunks; ++m) {
        A* sum = sums + (m * length + i) * N;
        st(sum, ld(sum, Full<A>{}) + within<A>(p.in_c[m], first, v), Full<A>{});
      }
    }
    V value = ld(out + first, n);
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = side.in_l[s];
      V sum = {}, top = ld(tile + in.begin * N, Full<A>{});
      for (i64 i = in.begin; i < in.end; ++i) {
        V v = ld(tile + i * N, Full<A>{});
        sum += v;
        top = v > top ? v : top;
      }
      value += sum * (side.weights[4 * s] / A(in.end - in.begin)) + top * side.weights[4 * s + 1];
    }
    st(out + first, value, n);
  });
  for (i64 i = 0; i < length; ++i) {
    for (i64 m = 0; m < p.channel_chunks; ++m)
      avg[m * length + i] = hsum(ld(sums + (m * length + i) * N, Full<A>{})) /
                            A(p.in_c[m].end - p.in_c[m].begin);
    tops[i].best(peak + i, at + i);
  }
}

// out[i] = sum of kernel[row][k] * strips[row][i + k - 1]
template <class A> void strip_conv(const A* strips, const A* kernel, i64 rows, i64 length, A* out) {
  for (i64 i = 0; i < length; ++i) {
    A sum = 0;
    for (i64 r = 0; r < rows; ++r)
      for (i64 k = std::max<i64>(0, 1 - i); k < std::min<i64>(3, length + 1 - i); ++k)
        sum += kernel[3 * r + k] * strips[r * length + i + k - 1];
    out[i] = sum;
  }
}

// c (N, C), h (N, H), w (N, W); for backward also the strips of h and w, (N, S + M + 1, H and W),
// and the channels of their maxima, (N, H and W). taken: c, h, w of an attention map, or null.
template <class A>
void rank1_pool(const A* ch, const A* cw, const A* hw, Planes p, const A* const* weights,
                const A* const* taken, A* const* out, A* const* strips, int32_t* const* at,
                int threads) {
  i64 rows = p.strips();
  parallel(p.n, p.n * p.c * (p.h + p.w), threads, [&](i64 n) {
    const A* t[3] = {};
    if (taken[0]) t[0] = taken[0] + n * p.c, t[1] = taken[1] + n * p.h, t[2] = taken[2] + n * p.w;
    A *sh = strips[0] + n * rows * p.h, *sw = strips[1] + n * rows * p.w;
    std::fill_n(out[0] + n * p.c, p.c, A(0));
    auto side = [&](const A* plane, i64 length, const A* l, const Window* in_l, const A* w, A* strip,
                    int32_t* where) {
      A* avg = strip + p.chunks * length;
      side_pool(ChannelPlane<A>{plane + n * p.c * length, t[0], l, p.c, length, in_l, w}, p,
                out[0] + n * p.c, avg, avg + p.channel_chunks * length, where + n * length);
    };
    side(cw, p.w, t[2], p.in_w, weights[0], sw, at[1]);
    side(ch, p.h, t[1], p.in_h, weights[0] + 2, sh, at[0]);
    std::vector<double> sums(p.chunks * p.w, 0.);
    Scratch<A> row(p.w);
    for (i64 h = 0; h < p.h; ++h) {
      for (i64 w = 0; w < p.w; ++w)
        row[w] = hw[(n * p.h + h) * p.w + w] * (t[0] ? 1 - t[1][h] * t[2][w] : A(1));
      for (i64 s = 0; s < p.chunks; ++s) {
        Window in = p.in_w[s];
        Vec<A> sum = {};
        lanes<A>(in.begin, in.end, [&](i64 w, auto r) FLAT { sum += ld(row + w, r); });
        sh[s * p.h + h] = hsum(sum) / A(in.end - in.begin);
        if (p.in_h[s].begin <= h && h < p.in_h[s].end)
          for (i64 w = 0; w < p.w; ++w) sums[s * p.w + w] += double(row[w]);
      }
    }
    for (i64 s = 0; s < p.chunks; ++s)
      for (i64 w = 0; w < p.w; ++w)
        sw[s * p.w + w] = A(sums[s * p.w + w] / double(p.in_h[s].end - p.in_h[s].begin));
    strip_conv(sh, weights[1], rows, p.h, out[1] + n * p.h);
    strip_conv(sw, weights[2], rows, p.w, out[2] + n * p.w);
  });
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
  Scratch<A> raw(length * N), tile(length * N), g(length * N), lost(length * N), level(length);
  std::fill_n(lost + 0, length * N, A(0));
  std::fill_n(level + 0, length, A(0));
  for (i64 s = 0; s < p.chunks; ++s) {
    Window in = side.in_l[s];
    for (i64 i = in.begin; i < in.end; ++i)
      level[i] += side.weights[4 * s] / A(in.end - in.begin);
  }
  Scratch<A> mean(p.channel_chunks * length);
  for (i64 m = 0; m < p.channel_chunks; ++m)
    for (i64 i = 0; i < length; ++i)
      mean[m * length + i] = gavg[m * length + i] / A(p.in_c[m].end - p.in_c[m].begin);
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
          gi += gv * level[i];
          for (i64 m = 0; m < p.channel_chunks; ++m)
            gi += within<A>(p.in_c[m], first, all<A>(mean[m * length + i]));
          gi += channel == I{} + Index<A>(at[i]) ? all<A>(gpeak[i]) : V{};
        }
        st(g + i * N, gi, Full<A>{});
      }
      done = std::max(done, in.end);
      if (!gc) continue;
      sums[2 * s] += gv * sum / A(in.end - in.begin);
      sums[2 * s + 1] += gv * top.value;
    }
    if (side.c) {
      V sum = {};
      for (i64 i = 0; i < length; ++i) {
        V gi = ld(g + i * N, Full<A>{}), gd = gi * ld(raw + i * N, Full<A>{});
        st(g + i * N, gi * side.kept(i, cv), Full<A>{});
        st(lost + i * N, ld(lost + i * N, Full<A>{}) + gd * cv, Full<A>{});
        sum += gd * side.l[i];
      }
      st(dc + first, ld(dc + first, n) - sum, n);
    }
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
      i64 o = (n * p.h + h) * p.w;
      A* to = dplanes[2] + o;
      A share = t[0] ? t[1][h] : A(0);
      Vec<A> sum = {};
      lanes<A>(0, p.w, [&](i64 w, auto r) FLAT {
        Vec<A> g = ld(row + w, r), before = add ? ld(to + w, r) : Vec<A>{};
        Vec<A> b = t[0] ? ld(t[2] + w, r) : Vec<A>{};
        st(to + w, before + g * (1 - share * b), r);
        if (!t[0]) return;
        Vec<A> lost = g * ld(hw + o + w, r);
        sum += lost * b;
        st(across + w, ld(across + w, r) + lost * share, r);
      });
      dh[h] -= double(hsum(sum));
    }
    for (i64 w = 0; w < p.w; ++w) dv[w] -= double(across[w]);
    if (!t[0]) return;
    for (i64 h = 0; h < p.h; ++h) dtaken[1][n * p.h + h] = A(dh[h]);
    for (i64 w = 0; w < p.w; ++w) dtaken[2][n * p.w + w] = A(dv[w]);
  });
  const i64 sizes[3] = {4 * p.chunks, kernel, kernel};
  for (i64 i = 0, from = 0; i < 3; from += sizes[i++])
    add_samples(&partial[from], dweights[i], p.n, each, sizes[i]);
}

}  // namespace
