// The gradient of CAT's three pools of both axes.

#include "functions.h"
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

}  // namespace

// --------------------------------------------------------------------------------------------------
// As it is called from outside.

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

SHOW(ENTRY(entropy_grad))
