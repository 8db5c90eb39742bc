// CAT's three pools of both axes: mean, largest low-passed value and entropy.
#pragma once

#include "entropy.h"
#include "filter.h"

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

// What the units leave of the lanes, each of the rows that it saw.
template <class A> struct Partials {
  i64 pitch, wide;
  Scratch<A> x, s, t, top, reach;
  Scratch<Index<A>> at;
  Partials(i64 units, i64 lanes_, i64 wide_)
      : pitch(padded<A>(lanes_)), wide(wide_), x(units * pitch), s(units * pitch), t(units * pitch),
        top(units * wide), reach(units), at(units * wide) {}
  Lanes<A> sums(i64 u) const {
    Lanes<A> acc{x + u * pitch, s + u * pitch, t + u * pitch};
    for (A* a : {acc.x, acc.s, acc.t}) std::fill_n(a, pitch, A(0));
    return acc;
  }
  void keep(i64 u, Vec<A> far) const {
    reach[u] = far[0];
    for (int j = 1; j < Simd<A>::N; ++j) reach[u] = std::max<A>(reach[u], far[j]);
  }
};

template <class T> struct EntropyPool {
  using A = Acc<T>;
  const T* x;
  Map m;
  bool last;
  const A* taps;
  i64 k;
  Side<A> chan, spat;
  A* refs;
  int threads;

  i64 area = m.h * m.w, frame = 2 * (k / 2);
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  Side<A> row = last ? spat : chan, lane = last ? chan : spat;
  bool ent = chan.ent || spat.ent, dense = ent || chan.avg || spat.avg, max = chan.max || spat.max;
  i64 cuts_of = last ? m.h : m.c;  // image rows, or planes
  Cut cut{m.n, cuts_of, last ? 1 : 4};
  i64 units = m.n * cut.parts;
  i64 wide = last ? padded<A>(m.c) : padded<A>(m.h * (m.w + frame));
  Partials<A> part{units, s.lanes, lane.max ? wide : 0};

  // Returns the number of wide samples.
  i64 run() {
    for (i64 n = 0; n < m.n; ++n) refs[n] = typical(x + n * m.c * area, m.c * area);
    parallel(units, m.n * m.c * area, threads, [&](i64 u) {
      i64 n = u / cut.parts, begin = u % cut.parts * cut.size, end = std::min(begin + cut.size, cuts_of);
      last ? image_rows(u, n, begin, end) : planes(u, n, begin, end);
    });
    parallel(m.n, units * s.lanes * 4, threads, [&](i64 n) {
      for (i64 l = 0; l < s.lanes; ++l) {
        join_sums(n, l);
        if (lane.max) join_maxima(n, l);
      }
    });
    i64 n_wide = 0;
    for (i64 n = 0; ent && n < m.n; ++n) n_wide += redone_if_wide(n);
    return n_wide;
  }

  // `count` rows, 1 or 2, of sample n from r on: their means and entropies, and to the lanes' sums.
  INLINE void pool_rows(i64 n, i64 r, i64 count, Lanes<A>& acc) const {
    if (count == 2) pool_rows<2>(n, r, acc);
    else pool_rows<1>(n, r, acc);
  }
  template <int K> INLINE void pool_rows(i64 n, i64 r, Lanes<A>& acc) const {
    Sums out[K] = {};
    i64 i = n * s.rows + r;
    entropy_rows<K>(x + i * s.lanes, s.lanes, s.lanes, refs[n], acc, out);
    for (int j = 0; j < K; ++j) {
      if (row.avg) row.avg[i + j] = A(out[j].x / s.lanes);
      if (row.ent) finish(row, i + j, out[j].s, out[j].t);
    }
  }

  // Of a contiguous map: a plane is a row.
  void planes(i64 u, i64 n, i64 c0, i64 c1) const {
    Lanes<A> acc = part.sums(u);
    Filter<A> filter(m, taps, k);
    for (i64 c = c0; c < c1;) {
      i64 next = std::min(c + (long_rows<T>(area) ? 2 : 1), c1);
      if (dense) pool_rows(n, c, next - c, acc);
      for (; c < next; ++c)
        if (max) plane_maxima(filter, u, n, c, c == c0);
    }
    part.keep(u, acc.reach);
  }
  void plane_maxima(Filter<A>& filter, i64 u, i64 n, i64 c, bool first) const {
    i64 plane = n * m.c + c;
    int32_t at;
    filter.load(x + plane * area);
    A best = filter.vertical(&at);
    if (chan.max) chan.max[plane] = best, chan.at[plane] = at;
    if (spat.max) filter.horizontal(part.top + u * wide, part.at + u * wide, c, first);
  }

  // Of a channels_last map: a position is a row.
  void image_rows(i64 u, i64 n, i64 h0, i64 h1) const {
    Lanes<A> acc = part.sums(u);
    RowFilter<T> filter(m, taps, k);
    for (i64 h = h0; h < h1; ++h) {
      for (i64 w = 0, next; dense && w < m.w; w = next) {
        next = std::min(w + (long_rows<T>(m.c) ? 2 : 1), m.w);
        pool_rows(n, h * m.w + w, next - w, acc);
      }
      if (!max) continue;
      A* best = chan.max ? part.top + u * wide : nullptr;
      filter.vertical(x + n * area * m.c, h, best, part.at + u * wide, h == h0);
      i64 position = n * area + h * m.w;
      if (spat.max) filter.horizontal(spat.max + position, spat.at + position);
    }
    part.keep(u, acc.reach);
  }

  // Lane l of sample n, of all its units.
  void join_sums(i64 n, i64 l) const {
    Sums sum = {};
    for (i64 q = n * cut.parts; q < (n + 1) * cut.parts; ++q) {
      i64 i = q * part.pitch + l;
      sum.x += double(part.x[i]), sum.s += double(part.s[i]), sum.t += double(part.t[i]);
    }
    if (lane.avg) lane.avg[n * s.lanes + l] = A(sum.x / s.rows);
    if (lane.ent) finish(lane, n * s.lanes + l, sum.s, sum.t);
  }
  void join_maxima(i64 n, i64 l) const {
    i64 i = n * cut.parts * wide + (last ? l : l / m.w * (m.w + frame) + l % m.w + frame / 2);
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

  // A sample whose values lie too far from its reference has its entropies computed anew.
  bool redone_if_wide(i64 n) const {
    A far = 0;
    for (i64 q = 0; q < cut.parts; ++q) far = std::max(far, part.reach[n * cut.parts + q]);
    if (far <= kReach) return false;
    entropy_wide(x, n, s, row, lane, threads);
    refs[n] = std::numeric_limits<A>::quiet_NaN();
    return true;
  }
};

template <class T>
i64 entropy_pool(const T* x, Map m, bool last, const Acc<T>* taps, i64 k, Side<Acc<T>> chan,
                 Side<Acc<T>> spat, Acc<T>* refs, int threads) {
  return EntropyPool<T>{x, m, last, taps, k, chan, spat, refs, threads}.run();
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
