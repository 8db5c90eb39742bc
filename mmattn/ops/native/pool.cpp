// Means and maxima over positions and over channels: SE, ECA and CBAM.

#include "functions.h"
#include "incoming.h"

namespace {

// Mean and maximum over the lanes of each row of x * b (b: lane factor or null).
template <class T>
void row_pool(const T* x, Shape s, const Acc<T>* b, Acc<T>* mean, Acc<T>* peak, int32_t* at,
              int threads) {
  using A = Acc<T>;
  using I = Index<A>;
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    const T* xr = x + r * s.lanes;
    const A* br = b ? b + r / s.rows * s.lanes : nullptr;
    double total = 0;
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      Vec<A> sum = {};
      lanes<A>(l0, std::min(l0 + kTile, s.lanes), [&](i64 l, auto n) FLAT {
        Vec<A> v = ld(xr + l, n);
        if (br) v *= ld(br + l, n);
        sum += v;
        if (peak) {
          if (n < Simd<A>::N) v = outside<A>(v, n);
          top.add(v, ramp + I(l));
        }
      });
      total += hsum(sum);
    }
    mean[r] = A(total / s.lanes);
    if (!peak) return;
    top.best(peak + r, at + r);
  });
}

// Of some short rows of a sample, for each lane, sum and maximum of x * a. A running sum of few lanes
// that went through memory would wait there for the row before.
template <class T>
void lane_pool_part(const T* x, i64 n_lanes, const Acc<T>* a, i64 r0, i64 r1, Acc<T>* sums, Acc<T>* tops,
                    Index<Acc<T>>* where) {
  using A = Acc<T>;
  constexpr i64 N = Simd<A>::N;
  columns<A>(n_lanes, [&](i64 l, auto nv, auto last) FLAT {
    constexpr int NV = decltype(nv)::value;
    Vec<A> sum[NV] = {};
    Peak<A> top[NV];
    for (i64 r = r0; r < r1; ++r) {
      A ar = a ? a[r] : A(1);
      vectors<A, NV>(last, [&](int j, auto m) FLAT {
        Vec<A> v = ld(x + r * n_lanes + l + j * N, m) * ar;
        sum[j] += v;
        if (tops) top[j].add(v, Int<A>{} + Index<A>(r));
      });
    }
    for (int j = 0; j < NV; ++j) {
      st(sums + l + j * N, sum[j], Full<A>{});
      if (!tops) continue;
      st(tops + l + j * N, top[j].value, Full<A>{});
      std::memcpy(where + l + j * N, &top[j].index, kBytes);
    }
  });
}

// Mean and maximum over the rows of each lane of x * a (a: row factor or null).
template <class T>
void lane_pool(const T* x, Shape s, const Acc<T>* a, Acc<T>* mean, Acc<T>* peak, int32_t* at,
               int threads) {
  using A = Acc<T>;
  using I = Index<A>;
  Cut cut(s.n, s.rows);
  i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
  Scratch<A> sums(units * pitch), tops(peak ? units * pitch : 0);
  Scratch<I> where(peak ? units * pitch : 0);
  parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
    if (!long_rows<T>(s.lanes))
      return lane_pool_part(x + n * s.rows * s.lanes, s.lanes, a ? a + n * s.rows : a, r0, r1,
                            sums + u * pitch, peak ? tops + u * pitch : nullptr,
                            peak ? where + u * pitch : nullptr);
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      i64 l1 = std::min(l0 + kTile, s.lanes);
      for (i64 r = r0; r < r1;) {
        int k1 = int(std::min<i64>(4, r1 - r));
        const T* xr = x + (n * s.rows + r) * s.lanes;
        A ar[4];
        for (int k = 0; k < k1; ++k) ar[k] = a ? a[n * s.rows + r + k] : A(1);
        lanes<A>(l0, l1, [&](i64 l, auto m) FLAT {
          Vec<A> sum = r == r0 ? Vec<A>{} : ld(sums + u * pitch + l, Full<A>{});
          Peak<A> top;
          if (peak && r != r0) {
            top.value = ld(tops + u * pitch + l, Full<A>{});
            std::memcpy(&top.index, where + u * pitch + l, kBytes);
          }
          for (int k = 0; k < k1; ++k) {
            Vec<A> v = ld(xr + k * s.lanes + l, m) * ar[k];
            sum += v;
            if (peak) top.add(v, Int<A>{} + I(r + k));
          }
          st(sums + u * pitch + l, sum, Full<A>{});
          if (peak) {
            st(tops + u * pitch + l, top.value, Full<A>{});
            std::memcpy(where + u * pitch + l, &top.index, kBytes);
          }
        });
        r += k1;
      }
    }
  });
  add_parts<A>(sums + 0, mean, s.n, cut.parts, pitch, s.lanes, 1. / s.rows, threads);
  if (!peak) return;
  for (i64 n = 0; n < s.n; ++n)
    for (i64 l = 0; l < s.lanes; ++l) {
      i64 i = n * cut.parts * pitch + l;
      A best = tops[i];
      I arg = where[i];
      for (i64 q = 1; q < cut.parts; ++q)
        if (beats(tops[i + q * pitch], best)) best = tops[i + q * pitch], arg = where[i + q * pitch];
      peak[n * s.lanes + l] = best;
      at[n * s.lanes + l] = int32_t(arg);
    }
}

// A maximum's gradient lands on single elements. They are worked out before the dense pass (which
// may overwrite gx) and written after it, so that each is rounded once.
struct Spot { i64 offset; double value; };

template <class T> void write_spots(T* dx, const std::vector<Spot>& spots) {
  for (const Spot& s : spots) put(dx + s.offset, Acc<T>(s.value));
}

// dx = incoming + a (row) + b (lane), either may be null, + the gradient of a maximum over the lanes of
// each row (at, g: one for each row) or over the rows of each lane (one for each lane).
template <class T, class F>
void pool_grad(const F& incoming, T* dx, Shape s, const Acc<T>* a, const Acc<T>* b, double scale,
               const Acc<T>* g, const int32_t* at, bool per_row, int threads) {
  using A = Acc<T>;
  std::vector<Spot> spots;
  if (g) {
    i64 each = per_row ? s.rows : s.lanes;
    spots.resize(s.n * each);
    for (i64 i = 0; i < s.n * each; ++i) {
      i64 n = i / each, r = per_row ? i % each : at[i], l = per_row ? at[i] : i % each;
      double v = double(single(incoming, n * s.rows + r, l)) + double(g[i]);
      if (a) v += double(a[n * s.rows + r]) * scale;
      if (b) v += double(b[n * s.lanes + l]) * scale;
      spots[i] = {(n * s.rows + r) * s.lanes + l, v};
    }
  }
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    Vec<A> av = all<A>(a ? A(a[r] * scale) : A(0));
    const A* br = b ? b + r / s.rows * s.lanes : nullptr;
    auto in = incoming(r);
    lanes<A>(0, s.lanes, [&](i64 l, auto n) FLAT {
      Vec<A> v = in(in.lanes(l, n), l, n) + av;
      if (br) v += ld(br + l, n) * A(scale);
      st(dx + r * s.lanes + l, v, n);
    });
  });
  write_spots(dx, spots);
}

// -------------------------------------------------------------------- CBAM's second pool, backward

// z = x * c; dx = c * (ga + [argmax] gm) (null: not wanted), dc = sum of x * (ga + [argmax] gm); ga, gm: one for
// each position, null for zero. c belongs to the rows if `row_c`, else to the lanes.
template <class T>
void spatial_pool_grad(const T* x, T* dx, Shape s, bool row_c, const Acc<T>* c,
                       const Acc<T>* ga, const Acc<T>* gm, const int32_t* at, Acc<T>* dc,
                       int threads) {
  using A = Acc<T>;
  i64 channels = row_c ? s.rows : s.lanes, positions = row_c ? s.lanes : s.rows;
  A scale = A(1. / channels);
  std::vector<double> total(s.n * channels, 0.);
  std::vector<Spot> spots;
  if (gm) {
    spots.resize(s.n * positions);
    for (i64 i = 0; i < s.n * positions; ++i) {
      i64 n = i / positions, p = i % positions, ch = at[i];
      i64 o = (n * s.rows + (row_c ? ch : p)) * s.lanes + (row_c ? p : ch);
      double g = double(gm[i]) + (ga ? double(ga[i]) * scale : 0.);
      spots[i] = {o, g * double(c[n * channels + ch])};
      total[n * channels + ch] += double(get(x + o)) * double(gm[i]);
    }
  }
  if (row_c) {
    parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
      const A* g = ga ? ga + r / s.rows * s.lanes : nullptr;
      Vec<A> cv = all<A>(c[r] * scale);
      for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
        Vec<A> sum = {};
        lanes<A>(l0, std::min(l0 + kTile, s.lanes), [&](i64 l, auto n) FLAT {
          i64 o = r * s.lanes + l;
          Vec<A> gv = g ? ld(g + l, n) : Vec<A>{};
          sum += ld(x + o, n) * gv;
          if (dx) st(dx + o, cv * gv, n);
        });
        total[r] += double(hsum(sum)) * scale;
      }
    });
  } else {
    Cut cut(s.n, s.rows);
    i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
    Scratch<A> partial(units * pitch);
    parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
      i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
      A* sum = partial + u * pitch;
      std::fill_n(sum, pitch, A(0));
      for (i64 r = r0; r < r1; ++r) {
        Vec<A> g = all<A>(ga ? ga[n * s.rows + r] * scale : A(0));
        lanes<A>(0, s.lanes, [&](i64 l, auto m) FLAT {
          i64 o = (n * s.rows + r) * s.lanes + l;
          st(sum + l, ld(sum + l, Full<A>{}) + ld(x + o, m) * g, Full<A>{});
          if (dx) st(dx + o, g * ld(c + n * s.lanes + l, m), m);
        });
      }
    });
    for (i64 n = 0; n < s.n; ++n)
      for (i64 q = 0; q < cut.parts; ++q)
        for (i64 l = 0; l < s.lanes; ++l)
          total[n * s.lanes + l] += double(partial[(n * cut.parts + q) * pitch + l]);
  }
  for (i64 i = 0; i < s.n * channels; ++i) dc[i] = A(total[i]);
  if (dx) write_spots(dx, spots);
}

}  // namespace

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// Over the positions (of_channel: avg, max are (N, C)) of x, or over the channels of x * factor.
void mmattn_pool(int dtype, int of_channel, const Element* x, i64 n, i64 c, i64 h, i64 w, int last,
                 const Sum* factor, Sum* avg, Sum* max, int32_t* at, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto f = bool(of_channel) != bool(last) ? row_pool<T> : lane_pool<T>;
    f((const T*)x, s, (const A_*)factor, (A_*)avg, (A_*)max, (int32_t*)at, threads);
  });
}

// dx = dy * factor + gavg / (H W) + [argmax] gmax of each channel; factor (N, C) null: dx = dy + ...,
// dy null: no such term.
void mmattn_pool_grad(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                      const Sum* factor, const Sum* gavg, const Sum* gmax, const int32_t* at,
                      int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto g = (const A_*)gavg;
    const A_* f[1] = {(const A_*)factor};
    auto run = [&](const auto& incoming) {
      pool_grad<T>(incoming, (T*)dx, s, last ? nullptr : g, last ? g : nullptr, 1. / (h * w),
                   (const A_*)gmax, (const int32_t*)at, !last, threads);
    };
    if (!factor) run(Plain<T>{(const T*)dy, s.lanes});
    else if (last) run(Scaled<LaneScale, T>{(const T*)dy, s, f, f});
    else run(Scaled<RowScale, T>{(const T*)dy, s, f, f});
  });
}

void mmattn_spatial_pool_grad(int dtype, const Element* x, Element* dx, i64 n, i64 c, i64 h, i64 w,
                              int last, const Sum* factor, const Sum* gavg, const Sum* gmax,
                              const int32_t* at, Sum* dc, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    spatial_pool_grad<T>((const T*)x, (T*)dx, s, !last, (const A_*)factor, (const A_*)gavg,
                         (const A_*)gmax, (const int32_t*)at, (A_*)dc, threads);
  });
}

SHOW(
    ENTRY(pool),
    ENTRY(pool_grad),
    ENTRY(spatial_pool_grad))
