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

// The strips of a plane (H, W), of each window of one axis the means: sh (S, H) and sw (S, W). t: the
// factors of a map whose share is taken from it, or nulls.
template <class A>
void area_pool(const A* plane, const A* const* t, const Planes& p, A* sh, A* sw) {
  std::vector<double> sums(p.chunks * p.w, 0.);
  Scratch<A> row(p.w);
  for (i64 h = 0; h < p.h; ++h) {
    for (i64 w = 0; w < p.w; ++w) row[w] = plane[h * p.w + w] * (t[0] ? 1 - t[1][h] * t[2][w] : A(1));
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
    area_pool(hw + n * p.h * p.w, t, p, sh, sw);
    strip_conv(sh, weights[1], rows, p.h, out[1] + n * p.h);
    strip_conv(sw, weights[2], rows, p.w, out[2] + n * p.w);
  });
}

}  // namespace
