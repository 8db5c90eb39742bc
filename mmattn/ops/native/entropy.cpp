// CAT's three pools of both axes.

#include "abi.h"
#include "incoming.h"
#include "strips.h"

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

// A sample whose values lie too far apart for one reference.
template <class T>
void entropy_wide(const T* x, i64 n, Shape s, const Side<Acc<T>>& row, const Side<Acc<T>>& lane,
                  int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A low = -std::numeric_limits<A>::infinity();
  const T* xn = x + n * s.rows * s.lanes;
  if (row.ent)
    parallel(s.rows, s.rows * s.lanes, threads, [&](i64 r) {
      const T* z = xn + r * s.lanes;
      V top = all<A>(low);
      lanes<A>(0, s.lanes, [&](i64 l, auto k) FLAT {
        V v = ld(z + l, k);
        if (k < Simd<A>::N) v = outside<A>(v, k);
        top = v > top ? v : top;
      });
      A ref = top[0];
      for (int k = 1; k < Simd<A>::N; ++k) ref = std::max<A>(ref, top[k]);
      double sum = 0, dot = 0;
      for (i64 l0 = 0; l0 < s.lanes; l0 += 512) {
        V sv = {}, tv = {};
        lanes<A>(l0, std::min<i64>(l0 + 512, s.lanes), [&](i64 l, auto k) FLAT {
          V d = ld(z + l, k) - ref, e = vexp(d);
          if (k < Simd<A>::N) e = iota<A>() < Int<A>{} + int(k) ? e : V{}, d = e == 0 ? V{} : d;
          sv += e;
          tv += d * e;
        });
        sum += hsum(sv), dot += hsum(tv);
      }
      row.ref[n * s.rows + r] = ref;
      finish(row, n * s.rows + r, sum, dot);
    });
  if (lane.ent) {
    constexpr i64 kBlock = 8 * Simd<A>::N;
    parallel((s.lanes + kBlock - 1) / kBlock, s.rows * s.lanes, threads, [&](i64 b) {
      i64 l0 = b * kBlock, l1 = std::min(l0 + kBlock, s.lanes);
      lanes<A>(l0, l1, [&](i64 l, auto k) FLAT {
        V ref = all<A>(low);
        for (i64 r = 0; r < s.rows; ++r) {
          V v = ld(xn + r * s.lanes + l, k);
          ref = v > ref ? v : ref;
        }
        double sum[Simd<A>::N] = {}, dot[Simd<A>::N] = {};
        for (i64 r0 = 0; r0 < s.rows; r0 += 64) {
          V sv = {}, tv = {};
          for (i64 r = r0; r < std::min(r0 + 64, s.rows); ++r) {
            V d = ld(xn + r * s.lanes + l, k) - ref, e = vexp(d);
            sv += e;
            tv += d * e;
          }
          for (int j = 0; j < k; ++j) sum[j] += sv[j], dot[j] += tv[j];
        }
        for (int j = 0; j < k; ++j) {
          lane.ref[n * s.lanes + l + j] = ref[j];
          finish(lane, n * s.lanes + l + j, sum[j], dot[j]);
        }
      });
    });
  }
}

// The two filtered maxima of contiguous planes: the plane is copied into a zero frame, so that both
// filters run over it as over one long row; `frame` is -infinity on the frame's columns.
template <class A> struct Filter {
  i64 h, w, p, pitch, size;
  const A* taps;
  std::vector<A> plane, column, frame;
  Filter(Map m, const A* taps_, i64 k)
      : h(m.h), w(m.w), p(k / 2), pitch(m.w + 2 * p), size(padded<A>(m.h * pitch)), taps(taps_),
        plane(size + 2 * p * pitch + Simd<A>::N), column(size + 2 * p + Simd<A>::N),
        frame(size, -std::numeric_limits<A>::infinity()) {
    for (i64 i = 0; i < h; ++i) std::fill_n(frame.data() + i * pitch + p, w, A(0));
  }
  i64 position(i64 at) const { return at / pitch * w + at % pitch - p; }

  template <class T> void load(const T* x) {
    for (i64 i = 0; i < h; ++i)
      lanes<A>(0, w, [&](i64 j, auto n) FLAT {
        st(plane.data() + (i + p) * pitch + p + j, ld(x + i * w + j, n), n);
      });
  }
  // Filters along H; returns the maximum and, in `at`, its position.
  template <int TAPS> INLINE A vertical_(int32_t* at) {
    const int k1 = TAPS ? TAPS : int(2 * p + 1);
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(plane.data() + l, n) * taps[0];
      for (int k = 1; k < k1; ++k) v += ld(plane.data() + l + k * pitch, n) * taps[k];
      st(column.data() + p + l, v, n);
      top.add(v + ld(frame.data() + l, n), ramp + Index<A>(l));
    });
    A best;
    int32_t where;
    top.best(&best, &where);
    // All -infinity: any position will do, a column of the frame will not.
    *at = int32_t(frame[where] == 0 ? position(where) : 0);
    return best;
  }
  A vertical(int32_t* at) { return p == 2 ? vertical_<5>(at) : vertical_<0>(at); }

  // Filters along W what `vertical` left, and keeps each position's maximum over the channels.
  template <int TAPS> INLINE void horizontal_(A* best, Index<A>* at, Index<A> channel, bool first) {
    const int k1 = TAPS ? TAPS : int(2 * p + 1);
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(column.data() + l, n) * taps[0];
      for (int k = 1; k < k1; ++k) v += ld(column.data() + l + k, n) * taps[k];
      Peak<A> top;
      if (!first) {
        top.value = ld(best + l, n);
        std::memcpy(&top.index, at + l, kBytes);
      }
      top.add(v, Int<A>{} + channel);
      st(best + l, top.value, n);
      std::memcpy(at + l, &top.index, kBytes);
    });
  }
  void horizontal(A* best, Index<A>* at, Index<A> channel, bool first) {
    p == 2 ? horizontal_<5>(best, at, channel, first) : horizontal_<0>(best, at, channel, first);
  }
};

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

template <class T, class F>
void entropy_grad(const T* x, const F& incoming, T* dx, Map m, bool last, const Acc<T>* taps, i64 k,
                  Terms<Acc<T>> chan, Terms<Acc<T>> spat, const Acc<T>* refs, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 area = m.h * m.w, p = k / 2, size = m.n * m.c * area;
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  const Terms<A>& row = last ? spat : chan;
  const Terms<A>& lane = last ? chan : spat;
  bool ent = row.ent || lane.ent;
  Rates<A> of_row(row, m.n, s.rows, threads), of_lane(lane, m.n, s.lanes, threads);
  const A *lm = of_lane.mean + 0, *ls = of_lane.slope + 0, *ll = of_lane.level + 0;
  auto dense = [&](i64 r, A* out_acc) FLAT {  // row r of all; into out_acc, or dx where null
    i64 n = r / s.rows, o = r * s.lanes, b = n * s.lanes;
    auto in = incoming(r);
    A ref = refs ? refs[n] : A(0);
    V mean = all<A>(of_row.mean[r]);
    auto save = [&](i64 l, V v, auto j) FLAT {
      if constexpr (std::is_same_v<T, A>) st(dx + o + l, v, j);
      else st(out_acc + l, v, j);
    };
    if (!ent) {
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        save(l, in(in.lanes(l, j), l, j) + mean + ld(lm + b + l, j), j);
      });
    } else if (ref == ref) {
      V slope = all<A>(of_row.slope[r]), level = all<A>(of_row.level[r]);
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        V d = ld(x + o + l, j) - ref;
        V e = vexp(d) * (d * (slope + ld(ls + b + l, j)) + (level + ld(ll + b + l, j)));
        save(l, in(in.lanes(l, j), l, j) + (mean + ld(lm + b + l, j) + e), j);
      });
    } else {
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        V z = ld(x + o + l, j), v = mean + ld(lm + b + l, j);
        if (row.ent) {
          V d = z - row.ref[r] - row.log[r];
          v -= vexp(d) * (d + row.h[r]) * row.ent[r];
        }
        if (lane.ent) {
          V d = z - ld(lane.ref + b + l, j) - ld(lane.log + b + l, j);
          v -= vexp(d) * (d + ld(lane.h + b + l, j)) * ld(lane.ent + b + l, j);
        }
        save(l, in(in.lanes(l, j), l, j) + v, j);
      });
    }
  };
  // The maxima: 5 and 25 elements around each arg-max, added while the plane (image row) is in cache.
  std::vector<std::unique_ptr<Buckets>> hits(m.n);
  auto narrow_out = [&](const A* acc, T* out, i64 n) FLAT {
    if constexpr (!std::is_same_v<T, A>)
      lanes<A>(0, n, [&](i64 l, auto j) FLAT { st(out + l, ld(acc + l, j), j); });
  };
  if (!last) {
    if (spat.max)
      parallel(m.n, size, threads, [&](i64 n) {
        hits[n] = std::make_unique<Buckets>(area, m.c, [&](i64 i) { return spat.at[n * area + i]; });
      });
    parallel(m.n * m.c, size, threads, [&](i64 plane) {
      i64 n = plane / m.c, c = plane % m.c;
      std::unique_ptr<A[]> acc(std::is_same_v<T, A> ? nullptr : new A[area]);
      A* out = std::is_same_v<T, A> ? (A*)(dx + plane * area) : acc.get();
      dense(plane, out);
      if (chan.max) {
        i64 h = chan.at[plane] / m.w, w = chan.at[plane] % m.w;
        for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
          out[(h + i - p) * m.w + w] += chan.max[plane] * taps[i];
      }
      if (spat.max)
        for (i64 b = hits[n]->start[c]; b < hits[n]->start[c + 1]; ++b) {
          i64 at = hits[n]->order[b], h = at / m.w, w = at % m.w;
          A g = spat.max[n * area + at];
          i64 j0 = std::max<i64>(0, p - w), j1 = std::min(k, m.w + p - w);
          for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
            for (i64 j = j0; j < j1; ++j)
              out[(h + i - p) * m.w + w + j - p] += g * taps[i] * taps[j];
        }
      narrow_out(out, dx + plane * area, area);
    });
    return;
  }
  if (chan.max)
    parallel(m.n, size, threads, [&](i64 n) {
      hits[n] = std::make_unique<Buckets>(m.c, m.h, [&](i64 i) { return chan.at[n * m.c + i] / m.w; });
    });
  parallel(m.n * m.h, size, threads, [&](i64 nh) {
    i64 n = nh / m.h, h = nh % m.h;
    std::unique_ptr<A[]> acc(std::is_same_v<T, A> ? nullptr : new A[m.w * m.c]);
    T* to = dx + nh * m.w * m.c;
    A* out = std::is_same_v<T, A> ? (A*)to : acc.get();
    for (i64 w = 0; w < m.w; ++w) dense(nh * m.w + w, out + w * m.c);
    for (i64 from = std::max<i64>(0, h - p); from < std::min(m.h, h + p + 1); ++from) {
      A tap = taps[h - from + p];
      if (chan.max)
        for (i64 b = hits[n]->start[from]; b < hits[n]->start[from + 1]; ++b) {
          i64 c = hits[n]->order[b], w = chan.at[n * m.c + c] % m.w;
          out[w * m.c + c] += chan.max[n * m.c + c] * tap;
        }
      if (spat.max)
        for (i64 w = 0; w < m.w; ++w) {
          i64 at = n * area + from * m.w + w, c = spat.at[at];
          A g = spat.max[at] * tap;
          for (i64 j = std::max<i64>(0, p - w); j < std::min(k, m.w + p - w); ++j)
            out[(w + j - p) * m.c + c] += g * taps[j];
        }
    }
    narrow_out(out, to, m.w * m.c);
  });
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// A contiguous map of few positions wastes most of its vectors: its samples are turned one by one, to be
// read as channels_last ones.
constexpr i64 kFew = 256;
template <class T>
i64 entropy_of_few(const T* x, Map m, const Acc<T>* taps, i64 k, Side<Acc<T>> chan, Side<Acc<T>> spat,
                   Acc<T>* refs, int threads) {
  using A = Acc<T>;
  i64 area = m.h * m.w;
  std::atomic<i64> wide{0};
  parallel(m.n, m.n * m.c * area, threads, [&](i64 n) {
    constexpr i64 N = 16;  // channels at a time: a cache line of float
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

// channel, spatial: pointers to g_avg, g_ent, g_max, entropy, log s, ref. With factors c, p of a sum
// gate dx = dy * (c + p) + ..., with a share v of the identity dy * (c + v p); dy null: no such term.
void mmattn_entropy_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c,
                         i64 h, i64 w, int last, const Sum* taps, i64 k, Sum** channel,
                         const int32_t* channel_at, Sum** spatial, const int32_t* spatial_at,
                         const Sum* refs, const Sum* fc, const Sum* fp, const Sum* fv,
                         int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto terms = [](Sum** v, const int32_t* at, i64 count) {
      return Terms<A_>{(const A_*)v[0], (const A_*)v[1], (const A_*)v[2], (const A_*)v[3],
                       (const A_*)v[4], (const A_*)v[5], at,              count};
    };
    auto run = [&](const auto& incoming) {
      entropy_grad<T>((const T*)x, incoming, (T*)dx, Map{n, c, h, w}, last, (const A_*)taps, k,
                      terms(channel, channel_at, h * w), terms(spatial, spatial_at, c),
                      (const A_*)refs, threads);
    };
    const A_ *channels[2] = {(const A_*)fc, (const A_*)fv}, *positions[1] = {(const A_*)fp};
    const A_ *const *a = last ? positions : channels, *const *b = last ? channels : positions;
    if (!fc) return run(Plain<T>{(const T*)dy, s.lanes});
    if (!fv) run(Scaled<SumScale, T>{(const T*)dy, s, a, b});
    else if (last) run(Scaled<Either<Affine, true>, T>{(const T*)dy, s, a, b});
    else run(Scaled<Either<Affine, false>, T>{(const T*)dy, s, a, b});
  });
}

}  // namespace

SHOW(
    ENTRY(entropy),
    ENTRY(entropy_grad))
