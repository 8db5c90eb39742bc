// The gradient of CAT's three pools of both axes.
#pragma once

#include "incoming.h"
#include "strips.h"

namespace {

// What one side contributes to dx: g_avg / count, and of the entropy, with p = e^(d - log s),
// -g_ent p (d - log s + H) = e^d (slope d + level).
template <class A> struct Terms {
  const A *avg, *ent, *max;              // the gradients, or null
  const A *h, *log, *ref;                // the saved entropy, log s and reference (wide samples)
  const int32_t* at;
  i64 count;
};
// The same of all rows, or all lanes.
template <class A> struct Rates {
  Scratch<A> mean, slope, level;
  Rates(const Terms<A>& t, i64 n, i64 length, int threads)
      : mean(n * length), slope(n * length), level(n * length) {
    parallel(n, n * length * 8, threads, [&](i64 u) {
      lanes<A>(u * length, (u + 1) * length, [&](i64 i, auto k) FLAT {
        Vec<A> m = {}, s = {}, l = {};
        if (t.avg) m = ld(t.avg + i, k) / A(t.count);
        if (t.ent) {
          Vec<A> log = ld(t.log + i, k);
          s = -ld(t.ent + i, k) * vexp(-log);
          l = s * (ld(t.h + i, k) - log);
        }
        st(mean + i, m, k);
        st(slope + i, s, k);
        st(level + i, l, k);
      });
    });
  }
};

// The positions of one sample, sorted by key: those of key k are order[start[k]] ... order[start[k + 1]].
struct Buckets {
  std::vector<i64> start;
  std::vector<int32_t> order;
  template <class F> Buckets(i64 n, i64 keys, F&& key) : start(keys + 1, 0), order(n) {
    for (i64 i = 0; i < n; ++i) ++start[key(i) + 1];
    for (i64 j = 0; j < keys; ++j) start[j + 1] += start[j];
    std::vector<i64> next(start.begin(), start.end() - 1);
    for (i64 i = 0; i < n; ++i) order[next[key(i)]++] = int32_t(i);
  }
};

template <class T, class F> struct EntropyGrad {
  using A = Acc<T>;
  using V = Vec<A>;
  static constexpr bool same = std::is_same_v<T, A>;  // gradients are worked out in dx itself
  const T* x;
  const F& incoming;
  T* dx;
  Map m;
  bool last;
  const A* taps;
  i64 k;
  Terms<A> chan, spat;
  const A* refs;
  int threads;

  i64 p = k / 2, area = m.h * m.w, size = m.n * m.c * area;
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  Terms<A> row = last ? spat : chan, lane = last ? chan : spat;
  Rates<A> of_row{row, m.n, s.rows, threads}, of_lane{lane, m.n, s.lanes, threads};
  std::vector<std::unique_ptr<Buckets>> hits{size_t(m.n)};  // of a sample, its maxima by plane or image row

  void run() {
    if (last) image_rows();
    else planes();
  }
  // `work` writes `length` gradients, which are then rounded to `to`.
  template <class W> INLINE void rounded(T* to, i64 length, W&& work) const {
    if constexpr (same) {
      work((A*)to);
    } else {
      Scratch<A> out(length);
      work(out + 0);
      lanes<A>(0, length, [&](i64 l, auto j) FLAT { st(to + l, ld(out + l, j), j); });
    }
  }

  // All but the maxima's, of row r of all.
  INLINE void dense(i64 r, A* out) const {
    A ref = refs ? refs[r / s.rows] : A(0);
    if (!row.ent && !lane.ent) means(r, out);
    else if (ref == ref) entropies(r, ref, out);
    else wide_entropies(r, out);
  }
  INLINE void means(i64 r, A* out) const {
    auto in = incoming(r);
    V mean = all<A>(of_row.mean[r]);
    const A* lm = of_lane.mean + r / s.rows * s.lanes;
    lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
      st(out + l, in(in.lanes(l, j), l, j) + mean + ld(lm + l, j), j);
    });
  }
  INLINE void entropies(i64 r, A ref, A* out) const {
    auto in = incoming(r);
    V mean = all<A>(of_row.mean[r]), slope = all<A>(of_row.slope[r]), level = all<A>(of_row.level[r]);
    i64 b = r / s.rows * s.lanes;
    const A *lm = of_lane.mean + b, *ls = of_lane.slope + b, *ll = of_lane.level + b;
    const T* xr = x + r * s.lanes;
    lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
      V d = ld(xr + l, j) - ref;
      V e = vexp(d) * (d * (slope + ld(ls + l, j)) + (level + ld(ll + l, j)));
      st(out + l, in(in.lanes(l, j), l, j) + (mean + ld(lm + l, j) + e), j);
    });
  }
  void wide_entropies(i64 r, A* out) const {
    auto in = incoming(r);
    V mean = all<A>(of_row.mean[r]);
    i64 b = r / s.rows * s.lanes;
    const T* xr = x + r * s.lanes;
    lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
      V z = ld(xr + l, j), v = mean + ld(of_lane.mean + b + l, j);
      if (row.ent) {
        V d = z - row.ref[r] - row.log[r];
        v -= vexp(d) * (d + row.h[r]) * row.ent[r];
      }
      if (lane.ent) {
        V d = z - ld(lane.ref + b + l, j) - ld(lane.log + b + l, j);
        v -= vexp(d) * (d + ld(lane.h + b + l, j)) * ld(lane.ent + b + l, j);
      }
      st(out + l, in(in.lanes(l, j), l, j) + v, j);
    });
  }

  // The maxima: 5 and 25 elements around each arg-max, added while the plane (image row) is in cache.

  // Of a contiguous map.
  void planes() {
    if (spat.max)
      parallel(m.n, size, threads, [&](i64 n) {
        hits[n] = std::make_unique<Buckets>(area, m.c, [&](i64 i) { return spat.at[n * area + i]; });
      });
    parallel(m.n * m.c, size, threads, [&](i64 plane) {
      rounded(dx + plane * area, area, [&](A* out) FLAT {
        dense(plane, out);
        if (chan.max) add_maximum_of_plane(plane, out);
        if (spat.max) add_maxima_in_plane(plane, out);
      });
    });
  }
  void add_maximum_of_plane(i64 plane, A* out) const {
    i64 h = chan.at[plane] / m.w, w = chan.at[plane] % m.w;
    for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
      out[(h + i - p) * m.w + w] += chan.max[plane] * taps[i];
  }
  void add_maxima_in_plane(i64 plane, A* out) const {
    i64 n = plane / m.c, c = plane % m.c;
    for (i64 b = hits[n]->start[c]; b < hits[n]->start[c + 1]; ++b) {
      i64 at = hits[n]->order[b], h = at / m.w, w = at % m.w;
      A g = spat.max[n * area + at];
      i64 j0 = std::max<i64>(0, p - w), j1 = std::min(k, m.w + p - w);
      for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
        for (i64 j = j0; j < j1; ++j) out[(h + i - p) * m.w + w + j - p] += g * taps[i] * taps[j];
    }
  }

  // Of a channels_last map.
  void image_rows() {
    if (chan.max)
      parallel(m.n, size, threads, [&](i64 n) {
        hits[n] = std::make_unique<Buckets>(m.c, m.h, [&](i64 i) { return chan.at[n * m.c + i] / m.w; });
      });
    parallel(m.n * m.h, size, threads, [&](i64 nh) {
      i64 n = nh / m.h, h = nh % m.h;
      rounded(dx + nh * m.w * m.c, m.w * m.c, [&](A* out) FLAT {
        for (i64 w = 0; w < m.w; ++w) dense(nh * m.w + w, out + w * m.c);
        for (i64 from = std::max<i64>(0, h - p); from < std::min(m.h, h + p + 1); ++from) {
          A tap = taps[h - from + p];
          if (chan.max) add_maxima_of_channels(n, from, tap, out);
          if (spat.max) add_maxima_of_positions(n, from, tap, out);
        }
      });
    });
  }
  // To an image row, from the maxima of row `from`, so far away that the taps along H weigh them with `tap`.
  void add_maxima_of_channels(i64 n, i64 from, A tap, A* out) const {
    for (i64 b = hits[n]->start[from]; b < hits[n]->start[from + 1]; ++b) {
      i64 c = hits[n]->order[b], w = chan.at[n * m.c + c] % m.w;
      out[w * m.c + c] += chan.max[n * m.c + c] * tap;
    }
  }
  void add_maxima_of_positions(i64 n, i64 from, A tap, A* out) const {
    for (i64 w = 0; w < m.w; ++w) {
      i64 at = n * area + from * m.w + w, c = spat.at[at];
      A g = spat.max[at] * tap;
      for (i64 j = std::max<i64>(0, p - w); j < std::min(k, m.w + p - w); ++j)
        out[(w + j - p) * m.c + c] += g * taps[j];
    }
  }
};

template <class T, class F>
void entropy_grad(const T* x, const F& incoming, T* dx, Map m, bool last, const Acc<T>* taps, i64 k,
                  const Terms<Acc<T>>& chan, const Terms<Acc<T>>& spat, const Acc<T>* refs, int threads) {
  EntropyGrad<T, F>{x, incoming, dx, m, last, taps, k, chan, spat, refs, threads}.run();
}

}  // namespace
