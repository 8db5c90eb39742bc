// Means of a map along one axis, and outer products: DRTAM and coordinate attention.
#pragma once

#include "incoming.h"

namespace {

struct Map { i64 n, c, h, w; };

// to[j][i] = from[i][j] (Add: is added to), whose rows are their pitch apart.
template <bool Add = false, class A>
INLINE void turn(const A* from, i64 from_pitch, A* to, i64 to_pitch, i64 rows, i64 cols) {
  auto one = [&](i64 i, i64 j) FLAT {
    A* t = to + j * to_pitch + i;
    *t = Add ? *t + from[i * from_pitch + j] : from[i * from_pitch + j];
  };
  i64 i = 0;
#ifdef __SSE__
  if constexpr (std::is_same_v<A, float>)
    for (; i + 4 <= rows; i += 4) {
      i64 j = 0;
      for (; j + 4 <= cols; j += 4) {
        const float* f = from + i * from_pitch + j;
        __m128 a[4] = {_mm_loadu_ps(f), _mm_loadu_ps(f + from_pitch), _mm_loadu_ps(f + 2 * from_pitch),
                       _mm_loadu_ps(f + 3 * from_pitch)};
        _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]);
        for (int k = 0; k < 4; ++k) {
          float* t = to + (j + k) * to_pitch + i;
          _mm_storeu_ps(t, Add ? _mm_add_ps(_mm_loadu_ps(t), a[k]) : a[k]);
        }
      }
      for (; j < cols; ++j)
        for (int k = 0; k < 4; ++k) one(i + k, j);
    }
#endif
  for (; i < rows; ++i)
    for (i64 j = 0; j < cols; ++j) one(i, j);
}

// out[n][j][i] = in[n][i][j]
template <class A> void transpose(const A* in, A* out, i64 n, i64 rows, i64 cols, int threads) {
  parallel(n, n * rows * cols, threads, [&](i64 b) {
    const A* s = in + b * rows * cols;
    A* d = out + b * rows * cols;
    for (i64 j = 0; j < cols; j += 16)  // whole cache lines on both sides
      turn(s + j, cols, d + j * rows, rows, rows, std::min<i64>(16, cols - j));
  });
}

// A contiguous map's three means: over W, over H and (hw not null) over C.
template <class T>
void strips_nchw(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* hw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr i64 N = Simd<A>::N;
  i64 area = m.h * m.w, pitch = padded<A>(area);
  i64 rows = std::max<i64>(1, 1024 / m.w);  // at once, of four planes: they stay in the next cache
  Cut cut(m.n, m.c);
  i64 units = m.n * cut.parts;
  Scratch<A> partial(hw ? units * pitch : 0);
  parallel(units, m.n * m.c * area, threads, [&](i64 u) {
    i64 n = u / cut.parts, c0 = u % cut.parts * cut.size, c1 = std::min(c0 + cut.size, m.c);
    A* sum = partial + u * pitch;
    if (hw) std::fill_n(sum, pitch, A(0));
    auto step = [&](i64 c, auto k_) FLAT {
      constexpr int K = decltype(k_)::value;
      i64 plane = n * m.c + c;
      const T* xp = x + plane * area;
      std::fill_n(ch + plane * m.h, K * m.h, A(0));
      std::fill_n(cw + plane * m.w, K * m.w, A(0));
      for (i64 h0 = 0; h0 < m.h; h0 += rows) {
        i64 h1 = std::min(h0 + rows, m.h);
        if (hw)
          lanes<A>(h0 * m.w, h1 * m.w, [&](i64 l, auto r) FLAT {
            V across = ld(sum + l, r);
            for (int k = 0; k < K; ++k) across += ld(xp + k * area + l, r);
            st(sum + l, across, r);
          });
        for (int k = 0; k < K; ++k)
          columns<A>(m.w, [&](i64 w, auto nv, auto last) FLAT {
            constexpr int NV = decltype(nv)::value;
            V down[NV] = {};
            auto row = [&](i64 h) FLAT {
              V along = {};
              vectors<A, NV>(last, [&](int j, auto r) FLAT {
                V v = ld(xp + k * area + h * m.w + w + j * N, r);
                along += v;
                down[j] += v;
              });
              return along;
            };
            A* to = ch + (plane + k) * m.h;
            i64 h = h0;
            for (; h + 4 <= h1; h += 4) {
              const V four[4] = {row(h), row(h + 1), row(h + 2), row(h + 3)};
              add_hsums(four, to + h);
            }
            for (; h < h1; ++h) to[h] += hsum(row(h));
            vectors<A, NV>(last, [&](int j, auto r) FLAT {
              A* to = cw + (plane + k) * m.w + w + j * N;
              st(to, ld(to, r) + down[j], r);
            });
          });
      }
      for (i64 i = 0; i < K * m.h; ++i) ch[plane * m.h + i] /= A(m.w);
      for (i64 i = 0; i < K * m.w; ++i) cw[plane * m.w + i] /= A(m.h);
    };
    i64 c = c0;
    for (; together<T>(area) && c + 4 <= c1; c += 4) step(c, std::integral_constant<int, 4>{});
    for (; c < c1; ++c) step(c, std::integral_constant<int, 1>{});
  });
  if (hw) add_parts<A>(partial + 0, hw, m.n, cut.parts, pitch, area, 1. / m.c, threads);
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
  parallel(m.n * m.w, m.n * cut.parts * m.w * m.c, threads, [&](i64 i) {
    i64 n = i / m.w, w = i % m.w;
    for (i64 c = 0; c < m.c; ++c) {
      double s = 0;
      for (i64 q = 0; q < cut.parts; ++q) s += double(cols[(n * cut.parts + q) * wide + w * pitch + c]);
      sums[i * m.c + c] = A(s / m.h);
    }
  });
  transpose<A>(rows + 0, ch, m.n, m.h, m.c, threads);
  transpose<A>(sums + 0, cw, m.n, m.w, m.c, threads);
}

// dx = incoming + gch / W + gcw / H + ghw / C; a null gradient is zero. Past: stores past the caches.
template <bool Past, class T, class F>
void strips_grad(const F& incoming, T* dx, Map m, bool last, const Acc<T>* gch, const Acc<T>* gcw,
                 const Acc<T>* ghw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  A ih = A(1. / m.h), iw = A(1. / m.w), ic = A(1. / m.c);
  i64 size = m.n * m.c * m.h * m.w;
  if (!last) {
    // A plane is one long row: dx may be what comes in, and the rows of a plane would wait for each
    // other, as the end of one is the beginning of the next. What is added to a vector of it belongs to
    // two rows at most where these are as wide as a vector; of others it is laid out beforehand.
    constexpr i64 N = Simd<A>::N, each = 8;
    const bool wide = m.w >= N;
    i64 area = m.h * m.w, groups = (m.c + each - 1) / each, around = m.w + N;
    parallel(m.n * groups, size, threads, [&](i64 u) {
      i64 n = u / groups, plane = n * m.c + u % groups * each;
      const i64 end = std::min(plane + each, (n + 1) * m.c);
      const A* hw = ghw ? ghw + n * area : nullptr;
      Scratch<A> right(4 * around), down(4 * (m.h + 1)), term(wide ? 0 : 4 * (area + N));
      const Int<A> ramp = iota<A>();
      auto step = [&](auto k_) FLAT {
        constexpr int K = decltype(k_)::value;
        typename F::Row in[K];
        for (int k = 0; k < K; ++k) {
          A *r = right + k * around, *d = down + k * (m.h + 1);
          in[k] = incoming(plane + k);
          for (i64 w = 0; w < m.w; ++w) r[w] = gcw ? gcw[(plane + k) * m.w + w] * ih : A(0);
          for (i64 w = m.w; w < around; ++w) r[w] = r[w - m.w];
          for (i64 h = 0; h < m.h; ++h) d[h] = gch ? gch[(plane + k) * m.h + h] * iw : A(0);
          d[m.h] = 0;
          for (i64 h = 0; !wide && h < m.h; ++h)  // what is too much, the next row overwrites
            st(term + k * (area + N) + h * m.w, d[h] + ld(r, Full<A>{}), Full<A>{});
        }
        i64 h = 0, w = 0;
        lanes<A>(0, area, [&](i64 l, auto r) FLAT {
          V across = hw ? ld(hw + l, r) * ic : V{};
          auto shared = in[0].lanes(l, r);
          for (int k = 0; k < K; ++k) {
            V v = across;
            if (wide) {
              const A* d = down + k * (m.h + 1) + h;
              v += ld(right + k * around + w, Full<A>{});
              if (w + N <= m.w) v += d[0];
              else v += ramp < Int<A>{} + Index<A>(m.w - w) ? all<A>(d[0]) : all<A>(d[1]);
            } else {
              v += ld(term + k * (area + N) + l, Full<A>{});
            }
            store<Past>(dx + (plane + k) * area + l, in[k](shared, l, r) + v, r);
          }
          if (wide && (w += N) >= m.w) w -= m.w, ++h;
        });
        plane += K;
      };
      while (together<T>(area) && plane + 4 <= end) step(std::integral_constant<int, 4>{});
      while (plane < end) step(std::integral_constant<int, 1>{});
      if (Past) fence();
    });
    return;
  }
  Scratch<A> hc(gch ? m.n * m.c * m.h : 0), wc(gcw ? m.n * m.c * m.w : 0);
  if (gch) transpose<A>(gch, hc + 0, m.n, m.c, m.h, threads);
  if (gcw) transpose<A>(gcw, wc + 0, m.n, m.c, m.w, threads);
  parallel(m.n * m.h, size, threads, [&](i64 nh) {
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
