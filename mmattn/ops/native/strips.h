// Means of a map along one axis, and outer products: DRTAM and coordinate attention.
#pragma once

#include "incoming.h"
#include "turn.h"

namespace {

struct Map { i64 n, c, h, w; };

// Image rows h0 to h1 of a contiguous plane: their sums to `ch`, and what they add to the columns' sums cw.
template <class T>
INLINE void sums_of_plane(const T* x, i64 h0, i64 h1, i64 width, Acc<T>* ch, Acc<T>* cw) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr i64 N = Simd<A>::N;
  columns<A>(width, [&](i64 w, auto nv, auto last) FLAT {
    constexpr int NV = decltype(nv)::value;
    V down[NV] = {};
    auto row = [&](i64 h) FLAT {
      V along = {};
      vectors<A, NV>(last, [&](int j, auto r) FLAT {
        V v = ld(x + h * width + w + j * N, r);
        along += v;
        down[j] += v;
      });
      return along;
    };
    i64 h = h0;
    for (; h + 4 <= h1; h += 4) {
      const V four[4] = {row(h), row(h + 1), row(h + 2), row(h + 3)};
      add_hsums(four, ch + h);
    }
    for (; h < h1; ++h) ch[h] += hsum(row(h));
    vectors<A, NV>(last, [&](int j, auto r) FLAT {
      A* to = cw + w + j * N;
      st(to, ld(to, r) + down[j], r);
    });
  });
}

// The means of K contiguous planes one after another, ch (K, H) and cw (K, W); they are added to
// `sum` (H, W) if it is not null.
template <int K, class T>
INLINE void strips_of_planes(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* sum) {
  using A = Acc<T>;
  const i64 area = m.h * m.w;
  const i64 rows = std::max<i64>(1, 1024 / m.w);  // at once, of four planes: they stay in the next cache
  std::fill_n(ch, K * m.h, A(0));
  std::fill_n(cw, K * m.w, A(0));
  for (i64 h0 = 0; h0 < m.h; h0 += rows) {
    i64 h1 = std::min(h0 + rows, m.h);
    if (sum)
      lanes<A>(h0 * m.w, h1 * m.w, [&](i64 l, auto r) FLAT {
        Vec<A> across = ld(sum + l, r);
        for (int k = 0; k < K; ++k) across += ld(x + k * area + l, r);
        st(sum + l, across, r);
      });
    for (int k = 0; k < K; ++k) sums_of_plane(x + k * area, h0, h1, m.w, ch + k * m.h, cw + k * m.w);
  }
  for (i64 i = 0; i < K * m.h; ++i) ch[i] /= A(m.w);
  for (i64 i = 0; i < K * m.w; ++i) cw[i] /= A(m.h);
}

// A contiguous map's three means: over W, over H and (hw not null) over C.
template <class T>
void strips_nchw(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* hw, int threads) {
  using A = Acc<T>;
  i64 area = m.h * m.w, pitch = padded<A>(area);
  Cut cut(m.n, m.c);
  i64 units = m.n * cut.parts;
  Scratch<A> partial(hw ? units * pitch : 0);
  parallel(units, m.n * m.c * area, threads, [&](i64 u) {
    i64 n = u / cut.parts, c0 = u % cut.parts * cut.size, c1 = std::min(c0 + cut.size, m.c);
    A* sum = hw ? partial + u * pitch : nullptr;
    if (hw) std::fill_n(sum, pitch, A(0));
    auto step = [&](i64 c, auto k) FLAT {
      i64 plane = n * m.c + c;
      strips_of_planes<decltype(k)::value>(x + plane * area, m, ch + plane * m.h, cw + plane * m.w, sum);
    };
    i64 c = c0;
    for (; together<T>(area) && c + 4 <= c1; c += 4) step(c, std::integral_constant<int, 4>{});
    for (; c < c1; ++c) step(c, std::integral_constant<int, 1>{});
  });
  if (hw) add_parts<A>(partial + 0, hw, m.n, cut.parts, pitch, area, 1. / m.c, threads);
}

// Of each sample and column the sum over the cuts of its image rows, over `divisor`: cols (N * parts, W,
// pitch), to (N, W, C).
template <class A>
void join_columns(const A* cols, A* to, Map m, i64 parts, i64 pitch, i64 divisor, int threads) {
  parallel(m.n * m.w, m.n * parts * m.w * m.c, threads, [&](i64 i) {
    const A* from = cols + (i / m.w * parts * m.w + i % m.w) * pitch;
    for (i64 c = 0; c < m.c; ++c) {
      double s = 0;
      for (i64 q = 0; q < parts; ++q) s += double(from[q * m.w * pitch + c]);
      to[i * m.c + c] = A(s / divisor);
    }
  });
}

// The same of a channels_last map.
template <class T>
void strips_nhwc(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* hw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 pitch = padded<A>(m.c), wide = m.w * pitch;
  Cut cut(m.n, m.h, 1);
  i64 units = m.n * cut.parts;
  Scratch<A> cols(units * wide), rows(m.n * m.h * m.c), sums(m.n * m.w * m.c);
  parallel(units, m.n * m.h * m.w * m.c, threads, [&](i64 u) {
    i64 n = u / cut.parts, h0 = u % cut.parts * cut.size, h1 = std::min(h0 + cut.size, m.h);
    A* col = cols + u * wide;
    std::fill_n(col, wide, A(0));
    Scratch<A> row(pitch);
    for (i64 h = h0; h < h1; ++h) {
      std::fill_n(row + 0, pitch, A(0));
      auto step = [&](i64 w, auto k_) FLAT {
        constexpr int K = decltype(k_)::value;
        i64 p = (n * m.h + h) * m.w + w;
        V across[K] = {};
        lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
          V down = ld(row + c, Full<A>{});
          for (int k = 0; k < K; ++k) {
            V v = ld(x + (p + k) * m.c + c, r);
            A* d = col + (w + k) * pitch + c;
            across[k] += v;
            down += v;
            st(d, ld(d, Full<A>{}) + v, Full<A>{});
          }
          st(row + c, down, Full<A>{});
        });
        if (hw)
          for (int k = 0; k < K; ++k) hw[p + k] = hsum(across[k]) / A(m.c);
      };
      i64 w = 0;
      for (; long_rows<T>(m.c) && w + 4 <= m.w; w += 4) step(w, std::integral_constant<int, 4>{});
      for (; w < m.w; ++w) step(w, std::integral_constant<int, 1>{});
      for (i64 c = 0; c < m.c; ++c) rows[(n * m.h + h) * m.c + c] = row[c] / A(m.w);
    }
  });
  join_columns(cols + 0, sums + 0, m, cut.parts, pitch, m.h, threads);
  transpose<A>(rows + 0, ch, m.n, m.h, m.c, threads);
  transpose<A>(sums + 0, cw, m.n, m.w, m.c, threads);
}

// What is added to K contiguous planes, to image rows and to columns, in vectors along the plane: it is one
// long row. dx may be what comes in, and the rows of a plane would wait for each other, as the end of one
// is the beginning of the next. What is added to a vector belongs to two rows at most where these are as
// wide as a vector; of others it is laid out beforehand.
template <class A> struct Crossed {
  static constexpr i64 N = Simd<A>::N;
  i64 h, w, around = w + N, area = h * w + N;
  bool wide = w >= N;
  Scratch<A> right, down, term;  // (K, around), (K, H + 1), (K, area)
  Crossed(Map m, i64 planes)
      : h(m.h), w(m.w), right(planes * around), down(planes * (h + 1)), term(wide ? 0 : planes * area) {}

  // Plane k: gch (H) times iw and gcw (W) times ih, each null for zero.
  INLINE void set(int k, const A* gch, A iw, const A* gcw, A ih) {
    A *r = right + k * around, *d = down + k * (h + 1);
    for (i64 i = 0; i < w; ++i) r[i] = gcw ? gcw[i] * ih : A(0);
    for (i64 i = w; i < around; ++i) r[i] = r[i - w];
    for (i64 i = 0; i < h; ++i) d[i] = gch ? gch[i] * iw : A(0);
    d[h] = 0;
    for (i64 i = 0; !wide && i < h; ++i)  // what is too much, the next row overwrites
      st(term + k * area + i * w, d[i] + ld(r, Full<A>{}), Full<A>{});
  }
};

// Of K contiguous planes from number `plane` on; hw (H, W), of their sample, is added times ic, or null.
template <int K, bool Past, class T, class F>
INLINE void strips_grad_planes(const F& incoming, T* dx, i64 plane, const Crossed<Acc<T>>& crossed,
                               const Acc<T>* hw, Acc<T> ic) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr i64 N = Simd<A>::N;
  const i64 height = crossed.h, width = crossed.w, area = height * width;
  const bool wide = crossed.wide;
  const A *right = crossed.right + 0, *down = crossed.down + 0, *term = crossed.term + 0;
  const Int<A> ramp = iota<A>();
  typename F::Row in[K];
  for (int k = 0; k < K; ++k) in[k] = incoming(plane + k);
  i64 h = 0, w = 0;
  lanes<A>(0, area, [&](i64 l, auto r) FLAT {
    V across = hw ? ld(hw + l, r) * ic : V{};
    auto shared = in[0].lanes(l, r);
    for (int k = 0; k < K; ++k) {
      V v = across;
      if (wide) {
        const A* d = down + k * (height + 1) + h;
        v += ld(right + k * (width + N) + w, Full<A>{});
        if (w + N <= width) v += d[0];
        else v += ramp < Int<A>{} + Index<A>(width - w) ? all<A>(d[0]) : all<A>(d[1]);
      } else {
        v += ld(term + k * (area + N) + l, Full<A>{});
      }
      store<Past>(dx + (plane + k) * area + l, in[k](shared, l, r) + v, r);
    }
    if (wide && (w += N) >= width) w -= width, ++h;
  });
}

template <bool Past, class T, class F>
void strips_grad_nchw(const F& incoming, T* dx, Map m, const Acc<T>* gch, const Acc<T>* gcw,
                      const Acc<T>* ghw, int threads) {
  using A = Acc<T>;
  constexpr i64 each = 8;
  const A ih = A(1. / m.h), iw = A(1. / m.w), ic = A(1. / m.c);
  i64 area = m.h * m.w, groups = (m.c + each - 1) / each;
  parallel(m.n * groups, m.n * m.c * area, threads, [&](i64 u) {
    i64 n = u / groups, plane = n * m.c + u % groups * each;
    const i64 end = std::min(plane + each, (n + 1) * m.c);
    Crossed<A> crossed(m, 4);
    auto step = [&](auto k_) FLAT {
      constexpr int K = decltype(k_)::value;
      for (int k = 0; k < K; ++k)
        crossed.set(k, gch ? gch + (plane + k) * m.h : gch, iw, gcw ? gcw + (plane + k) * m.w : gcw, ih);
      strips_grad_planes<K, Past>(incoming, dx, plane, crossed, ghw ? ghw + n * area : ghw, ic);
      plane += K;
    };
    while (together<T>(area) && plane + 4 <= end) step(std::integral_constant<int, 4>{});
    while (plane < end) step(std::integral_constant<int, 1>{});
    if (Past) fence();
  });
}

template <bool Past, class T, class F>
void strips_grad_nhwc(const F& incoming, T* dx, Map m, const Acc<T>* gch, const Acc<T>* gcw,
                      const Acc<T>* ghw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A ih = A(1. / m.h), iw = A(1. / m.w), ic = A(1. / m.c);
  Scratch<A> hc(gch ? m.n * m.c * m.h : 0), wc(gcw ? m.n * m.c * m.w : 0);
  if (gch) transpose<A>(gch, hc + 0, m.n, m.c, m.h, threads);
  if (gcw) transpose<A>(gcw, wc + 0, m.n, m.c, m.w, threads);
  parallel(m.n * m.h, m.n * m.c * m.h * m.w, threads, [&](i64 nh) {
    const A* down = gch ? hc + nh * m.c : nullptr;
    for (i64 w = 0; w < m.w; ++w) {
      i64 p = nh * m.w + w;
      auto in = incoming(p);
      V across = all<A>(ghw ? ghw[p] * ic : A(0));
      const A* right = gcw ? wc + (nh / m.h * m.w + w) * m.c : nullptr;
      lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
        V v = in(in.lanes(c, r), c, r) + across;
        if (down) v += ld(down + c, r) * iw;
        if (right) v += ld(right + c, r) * ih;
        store<Past>(dx + p * m.c + c, v, r);
      });
    }
    if (Past) fence();
  });
}

// dx = incoming + gch / W + gcw / H + ghw / C; a null gradient is zero. Past: stores past the caches.
template <bool Past, class T, class F>
void strips_grad(const F& incoming, T* dx, Map m, bool last, const Acc<T>* gch, const Acc<T>* gcw,
                 const Acc<T>* ghw, int threads) {
  if (last) strips_grad_nhwc<Past>(incoming, dx, m, gch, gcw, ghw, threads);
  else strips_grad_nchw<Past>(incoming, dx, m, gch, gcw, ghw, threads);
}

// q[n][h][w] = h[n][h] * w[n][w], and its gradient.
template <class A> void outer(const A* h, const A* w, A* q, Map m) {
  for (i64 i = 0; i < m.n * m.h; ++i)
    for (i64 j = 0; j < m.w; ++j) q[i * m.w + j] = h[i] * w[i / m.h * m.w + j];
}
template <class A> void outer_grad(const A* h, const A* w, const A* dq, A* dh, A* dw, Map m) {
  std::vector<double> col(m.w);
  for (i64 n = 0; n < m.n; ++n) {
    std::fill(col.begin(), col.end(), 0.);
    for (i64 i = n * m.h; i < (n + 1) * m.h; ++i) {
      double row = 0;
      for (i64 j = 0; j < m.w; ++j) {
        row += double(dq[i * m.w + j]) * w[n * m.w + j];
        col[j] += double(dq[i * m.w + j]) * h[i];
      }
      dh[i] = A(row);
    }
    for (i64 j = 0; j < m.w; ++j) dw[n * m.w + j] = A(col[j]);
  }
}

}  // namespace
