// CAT's three pools of both axes.

#include "entropy.h"
#include "filter.h"
#include "functions.h"

namespace {

// A typical value of a sample: the shared reference.
template <class T> Acc<T> typical(const T* x, i64 n) {
  i64 step = std::max<i64>(n / 64, 1);
  double s = 0;
  i64 k = 0;
  for (i64 i = 0; i < n && k < 64; i += step, ++k) s += double(get(x + i));
  s /= double(k);
  return std::isfinite(s) ? Acc<T>(s) : Acc<T>(0);
}

template <class A> struct Partials {  // of the lanes, one set for each unit
  i64 pitch, wide;
  Scratch<A> x, s, t, top;
  Scratch<Index<A>> at;
  Partials(i64 units, i64 lanes_, i64 wide_)
      : pitch(padded<A>(lanes_)), wide(wide_), x(units * pitch), s(units * pitch), t(units * pitch),
        top(units * wide), at(units * wide) {}
};

template <class T>
i64 entropy_pool(const T* x, Map m, bool last, const Acc<T>* taps, i64 k, Side<Acc<T>> chan,
                 Side<Acc<T>> spat, Acc<T>* refs, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 area = m.h * m.w, p = k / 2, size = m.n * m.c * area;
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  Side<A>& row = last ? spat : chan;
  Side<A>& lane = last ? chan : spat;
  bool ent = chan.ent || spat.ent, dense = ent || chan.avg || spat.avg;
  Cut cut(m.n, last ? m.h : m.c, last ? 1 : 4);
  i64 units = m.n * cut.parts;
  i64 wide = last ? padded<A>(m.c) : padded<A>(m.h * (m.w + 2 * p));
  Partials<A> part(units, s.lanes, lane.max ? wide : 0);
  Scratch<A> reach(units);
  for (i64 n = 0; n < m.n; ++n) refs[n] = typical(x + n * m.c * area, m.c * area);

  parallel(units, size, threads, [&](i64 u) {
    i64 n = u / cut.parts, q0 = u % cut.parts * cut.size, q1 = q0 + cut.size;
    q1 = std::min(q1, last ? m.h : m.c);
    Lanes<A> acc{part.x + u * part.pitch, part.s + u * part.pitch, part.t + u * part.pitch};
    for (A* a : {acc.x, acc.s, acc.t}) std::fill_n(a, part.pitch, A(0));
    auto sums = [&](i64 r, auto k_) FLAT {
      constexpr int K = decltype(k_)::value;
      Sums out[K] = {};
      i64 i = n * s.rows + r;
      entropy_rows<K>(x + i * s.lanes, s.lanes, s.lanes, refs[n], acc, out);
      for (int j = 0; j < K; ++j) {
        if (row.avg) row.avg[i + j] = A(out[j].x / s.lanes);
        if (row.ent) finish(row, i + j, out[j].s, out[j].t);
      }
    };
    if (!last) {
      Filter<A> filter(m, taps, k);
      auto maxima = [&](i64 c) {
        int32_t at;
        filter.load(x + (n * m.c + c) * area);
        A best = filter.vertical(&at);
        if (chan.max) chan.max[n * m.c + c] = best, chan.at[n * m.c + c] = at;
        if (spat.max) filter.horizontal(part.top + u * wide, part.at + u * wide, c, c == q0);
      };
      for (i64 c = q0; c < q1;) {
        i64 c1 = std::min(c + (long_rows<T>(area) ? 2 : 1), q1);
        if (dense) {
          if (c1 - c == 2) sums(c, std::integral_constant<int, 2>{});
          else sums(c, std::integral_constant<int, 1>{});
        }
        if (chan.max || spat.max)
          for (i64 i = c; i < c1; ++i) maxima(i);
        c = c1;
      }
    } else {
      i64 pitch = padded<A>(m.c);
      Scratch<A> column((m.w + 2 * p) * pitch);
      std::fill_n(column + 0, (m.w + 2 * p) * pitch, A(0));
      const T* xn = x + n * area * m.c;
      for (i64 h = q0; h < q1; ++h) {
        if (dense) {
          i64 w = 0;
          for (; long_rows<T>(m.c) && w + 2 <= m.w; w += 2) sums(h * m.w + w, std::integral_constant<int, 2>{});
          for (; w < m.w; ++w) sums(h * m.w + w, std::integral_constant<int, 1>{});
        }
        if (!chan.max && !spat.max) continue;
        i64 k0 = std::max<i64>(0, p - h), k1 = std::min(k, m.h + p - h);
        for (i64 w = 0; w < m.w; ++w) {
          const T* in = xn + ((h + k0 - p) * m.w + w) * m.c;
          A* out = column + (w + p) * pitch;
          bool first = h == q0 && w == 0;
          auto down = [&](auto taps_) FLAT {
            constexpr int TAPS = decltype(taps_)::value;
            i64 kn = TAPS ? TAPS : k1 - k0;
            lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
              V v = ld(in + c, r) * taps[k0];
              for (i64 j = 1; j < kn; ++j) v += ld(in + j * m.w * m.c + c, r) * taps[k0 + j];
              st(out + c, v, Full<A>{});
              if (!chan.max) return;
              Peak<A> top;
              A* best = part.top + u * wide + c;
              Index<A>* at = part.at + u * wide + c;
              if (!first) {
                top.value = ld(best, Full<A>{});
                std::memcpy(&top.index, at, kBytes);
              }
              top.add(v, Int<A>{} + Index<A>(h * m.w + w));
              st(best, top.value, Full<A>{});
              std::memcpy(at, &top.index, kBytes);
            });
          };
          if (k1 - k0 == 5) down(std::integral_constant<int, 5>{});
          else down(std::integral_constant<int, 0>{});
        }
        if (!spat.max) continue;
        for (i64 w = 0; w < m.w; ++w) {
          Peak<A> top;
          const Int<A> ramp = iota<A>();
          auto across = [&](auto taps_) FLAT {
            constexpr int TAPS = decltype(taps_)::value;
            i64 kn = TAPS ? TAPS : k;
            lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
              V v = ld(column + w * pitch + c, Full<A>{}) * taps[0];
              for (i64 j = 1; j < kn; ++j)
                v += ld(column + (w + j) * pitch + c, Full<A>{}) * taps[j];
              if (r < Simd<A>::N) v = outside<A>(v, r);
              top.add(v, ramp + Index<A>(c));
            });
          };
          if (k == 5) across(std::integral_constant<int, 5>{});
          else across(std::integral_constant<int, 0>{});
          i64 position = n * area + h * m.w + w;
          top.best(spat.max + position, spat.at + position);
        }
      }
    }
    reach[u] = acc.reach[0];
    for (int j = 1; j < Simd<A>::N; ++j) reach[u] = std::max<A>(reach[u], acc.reach[j]);
  });

  // Across the cuts.
  parallel(m.n, units * s.lanes * 4, threads, [&](i64 n) {
    for (i64 l = 0; l < s.lanes; ++l) {
      Sums sum = {};
      for (i64 q = n * cut.parts; q < (n + 1) * cut.parts; ++q) {
        i64 i = q * part.pitch + l;
        sum.x += double(part.x[i]), sum.s += double(part.s[i]), sum.t += double(part.t[i]);
      }
      if (lane.avg) lane.avg[n * s.lanes + l] = A(sum.x / s.rows);
      if (lane.ent) finish(lane, n * s.lanes + l, sum.s, sum.t);
      if (!lane.max) continue;
      i64 i = n * cut.parts * wide + (last ? l : l / m.w * (m.w + 2 * p) + l % m.w + p);
      A best = part.top[i];
      Index<A> at = part.at[i];
      for (i64 q = 1; q < cut.parts; ++q)
        if (beats(part.top[i + q * wide], best)) {
          best = part.top[i + q * wide];
          at = part.at[i + q * wide];
        }
      lane.max[n * s.lanes + l] = best;
      lane.at[n * s.lanes + l] = int32_t(at);
    }
  });
  i64 n_wide = 0;
  if (ent)
    for (i64 n = 0; n < m.n; ++n) {
      A far = 0;
      for (i64 q = 0; q < cut.parts; ++q) far = std::max(far, reach[n * cut.parts + q]);
      if (far <= kReach) continue;
      entropy_wide(x, n, s, row, lane, threads);
      refs[n] = std::numeric_limits<A>::quiet_NaN();
      ++n_wide;
    }
  return n_wide;
}

// A contiguous map of few positions wastes most of its vectors: its samples are turned one by one, to be
// read as channels_last ones.
constexpr i64 kFew = 100;
template <class T>
i64 entropy_of_few(const T* x, Map m, const Acc<T>* taps, i64 k, Side<Acc<T>> chan, Side<Acc<T>> spat,
                   Acc<T>* refs, int threads) {
  using A = Acc<T>;
  i64 area = m.h * m.w;
  std::atomic<i64> wide{0};
  parallel(m.n, m.n * m.c * area, threads, [&](i64 n) {
    constexpr i64 N = 64;  // channels at a time: of a position some cache lines side by side
    Scratch<A> turned(m.c * area), rows(std::is_same_v<T, A> ? 0 : N * area);
    for (i64 c = 0; c < m.c; c += N) {
      i64 count = std::min(N, m.c - c);
      const T* from = x + (n * m.c + c) * area;
      const A* full;
      if constexpr (std::is_same_v<T, A>) {
        full = from;
      } else {
        lanes<A>(0, count * area, [&](i64 l, auto r) FLAT { st(rows + l, ld(from + l, r), r); });
        full = rows + 0;
      }
      for (i64 p = 0; p < area; p += 4)
        turn(full + p, area, turned + p * m.c + c, m.c, count, std::min<i64>(4, area - p));
    }
    wide += entropy_pool<A>(turned + 0, Map{1, m.c, m.h, m.w}, true, taps, k, chan.of(n, m.c),
                            spat.of(n, area), refs + n, 1);
  });
  return wide;
}

}  // namespace

// --------------------------------------------------------------------------------------------------
// As it is called from outside.

// channel, spatial: pointers to avg, max, ent, log s, ref. Returns the number of wide samples.
i64 mmattn_entropy(int dtype, const Element* x, i64 n, i64 c, i64 h, i64 w, int last, const Sum* taps,
                   i64 k, Sum** channel, int32_t* channel_at, Sum** spatial, int32_t* spatial_at,
                   Sum* refs, int threads) {
  i64 wide = 0;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto side = [](Sum** v, int32_t* at) {
      return Side<A_>{(A_*)v[0], (A_*)v[1], (A_*)v[2], (A_*)v[3], (A_*)v[4], at};
    };
    Map m{n, c, h, w};
    auto of_channels = side(channel, channel_at), of_positions = side(spatial, spatial_at);
    wide = !last && h * w <= kFew
               ? entropy_of_few<T>((const T*)x, m, (const A_*)taps, k, of_channels, of_positions,
                                   (A_*)refs, threads)
               : entropy_pool<T>((const T*)x, m, last, (const A_*)taps, k, of_channels, of_positions,
                                 (A_*)refs, threads);
  });
  return wide;
}

SHOW(ENTRY(entropy))
