// Entropies of a map's rows and lanes.
#pragma once

#include "work.h"

namespace {

// Entropy of softmax(z) = log s - t / s with d = z - ref, s = sum e^d, t = sum d e^d. One e^(z - ref)
// serves the rows and the lanes of a sample as long as the sample keeps within kReach of its ref;
// a sample that does not takes each row's and each lane's own maximum for ref (`wide`).
constexpr double kReach = 24;

struct Sums { double x, s, t; };

template <class A> struct Lanes {  // running sums of every lane, and the largest |d| met
  A *x, *s, *t;
  Vec<A> reach = {};
};

template <int K, class T>
INLINE void entropy_rows(const T* z, i64 pitch, i64 n_lanes, Acc<T> ref, Lanes<Acc<T>>& acc,
                         Sums* rows) {
  using A = Acc<T>;
  using V = Vec<A>;
  for (i64 l0 = 0; l0 < n_lanes; l0 += kTile) {
    V x[K] = {}, s[K] = {}, t[K] = {}, reach = acc.reach;
    lanes<A>(l0, std::min(l0 + kTile, n_lanes), [&](i64 l, auto n) FLAT {
      V lx = ld(acc.x + l, Full<A>{}), ls = ld(acc.s + l, Full<A>{}), lt = ld(acc.t + l, Full<A>{});
      for (int k = 0; k < K; ++k) {
        V v = ld(z + k * pitch + l, n), d = v - ref, e = vexp(d);
        if (n < Simd<A>::N) {
          auto in = iota<A>() < Int<A>{} + int(n);
          d = in ? d : V{};
          e = in ? e : V{};
        }
        V far = d < 0 ? -d : d, de = d * e;
        reach = far > reach ? far : reach;
        x[k] += v, s[k] += e, t[k] += de;
        lx += v, ls += e, lt += de;
      }
      st(acc.x + l, lx, Full<A>{});
      st(acc.s + l, ls, Full<A>{});
      st(acc.t + l, lt, Full<A>{});
    });
    acc.reach = reach;
    for (int k = 0; k < K; ++k) {
      rows[k].x += hsum(x[k]);
      rows[k].s += hsum(s[k]);
      rows[k].t += hsum(t[k]);
    }
  }
}

// One side's statistics (of the rows or of the lanes): where they go. Null: not asked for.
template <class A> struct Side {
  A *avg, *max, *ent, *log, *ref;
  int32_t* at;
  Side of(i64 sample, i64 each) const {
    auto from = [&](auto* p) { return p ? p + sample * each : p; };
    return {from(avg), from(max), from(ent), from(log), from(ref), from(at)};
  }
};

template <class A> INLINE void finish(const Side<A>& o, i64 i, double s, double t) {
  double log_s = std::log(s);
  o.ent[i] = A(log_s - t / s);
  o.log[i] = A(log_s);
}

// Of a sample whose values lie too far apart for one reference, row r of all, by its own maximum.
template <class T> void entropy_wide_row(const T* z, i64 r, i64 n_lanes, const Side<Acc<T>>& row) {
  using A = Acc<T>;
  using V = Vec<A>;
  V top = all<A>(-std::numeric_limits<A>::infinity());
  lanes<A>(0, n_lanes, [&](i64 l, auto k) FLAT {
    V v = ld(z + l, k);
    if (k < Simd<A>::N) v = outside<A>(v, k);
    top = v > top ? v : top;
  });
  A ref = top[0];
  for (int k = 1; k < Simd<A>::N; ++k) ref = std::max<A>(ref, top[k]);
  double sum = 0, dot = 0;
  for (i64 l0 = 0; l0 < n_lanes; l0 += 512) {
    V sv = {}, tv = {};
    lanes<A>(l0, std::min<i64>(l0 + 512, n_lanes), [&](i64 l, auto k) FLAT {
      V d = ld(z + l, k) - ref, e = vexp(d);
      if (k < Simd<A>::N) e = iota<A>() < Int<A>{} + int(k) ? e : V{}, d = e == 0 ? V{} : d;
      sv += e;
      tv += d * e;
    });
    sum += hsum(sv), dot += hsum(tv);
  }
  row.ref[r] = ref;
  finish(row, r, sum, dot);
}

// The same of k lanes, the first of which is number `first` of all; z: where they lie in the sample's first row.
template <class T, class K>
INLINE void entropy_wide_lanes(const T* z, i64 first, K k, Shape s, const Side<Acc<T>>& lane) {
  using A = Acc<T>;
  using V = Vec<A>;
  V ref = all<A>(-std::numeric_limits<A>::infinity());
  for (i64 r = 0; r < s.rows; ++r) {
    V v = ld(z + r * s.lanes, k);
    ref = v > ref ? v : ref;
  }
  double sum[Simd<A>::N] = {}, dot[Simd<A>::N] = {};
  for (i64 r0 = 0; r0 < s.rows; r0 += 64) {
    V sv = {}, tv = {};
    for (i64 r = r0; r < std::min(r0 + 64, s.rows); ++r) {
      V d = ld(z + r * s.lanes, k) - ref, e = vexp(d);
      sv += e;
      tv += d * e;
    }
    for (int j = 0; j < k; ++j) sum[j] += sv[j], dot[j] += tv[j];
  }
  for (int j = 0; j < k; ++j) {
    lane.ref[first + j] = ref[j];
    finish(lane, first + j, sum[j], dot[j]);
  }
}

// All of sample n.
template <class T>
void entropy_wide(const T* x, i64 n, Shape s, const Side<Acc<T>>& row, const Side<Acc<T>>& lane,
                  int threads) {
  using A = Acc<T>;
  const T* xn = x + n * s.rows * s.lanes;
  if (row.ent)
    parallel(s.rows, s.rows * s.lanes, threads, [&](i64 r) {
      entropy_wide_row(xn + r * s.lanes, n * s.rows + r, s.lanes, row);
    });
  if (!lane.ent) return;
  constexpr i64 kBlock = 8 * Simd<A>::N;
  parallel((s.lanes + kBlock - 1) / kBlock, s.rows * s.lanes, threads, [&](i64 b) {
    lanes<A>(b * kBlock, std::min((b + 1) * kBlock, s.lanes), [&](i64 l, auto k) FLAT {
      entropy_wide_lanes(xn + l, n * s.lanes + l, k, s, lane);
    });
  });
}

}  // namespace
