// A map times factors (SE, ECA, CBAM, CAT; of DRTAM the maps of positions), and the factors' gradients.
#pragma once

#include "work.h"

namespace {

// y = x * f(a, b): a belongs to the row, b to the lane. `back` adds P * df/da to ra and
// P * df/db to lb, with P = dy * x.
struct RowScale {
  static constexpr int rows = 1, lanes = 0;
  template <class V> static INLINE V f(const V* a, const V*) { return a[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V* ra, V*) { ra[0] += p; }
};
struct LaneScale {
  static constexpr int rows = 0, lanes = 1;
  template <class V> static INLINE V f(const V*, const V* b) { return b[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V*, V* lb) { lb[0] += p; }
};
struct ProductScale {
  static constexpr int rows = 1, lanes = 1;
  template <class V> static INLINE V f(const V* a, const V* b) { return a[0] * b[0]; }
  template <class V> static INLINE void back(V p, const V* a, const V* b, V* ra, V* lb) {
    ra[0] += p * b[0];
    lb[0] += p * a[0];
  }
};
struct SumScale {
  static constexpr int rows = 1, lanes = 1;
  template <class V> static INLINE V f(const V* a, const V* b) { return a[0] + b[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V* ra, V* lb) {
    ra[0] += p;
    lb[0] += p;
  }
};
struct DualScale {  // A + (1 - A) * A2 with A = a0 b0, A2 = a1 b1: DRTAM, eq. (1)
  static constexpr int rows = 2, lanes = 2;
  template <class V> static INLINE V f(const V* a, const V* b) {
    V u = a[0] * b[0], v = a[1] * b[1];
    return u + (1 - u) * v;
  }
  template <class V> static INLINE void back(V p, const V* a, const V* b, V* ra, V* lb) {
    V pu = p * (1 - a[1] * b[1]), pv = p * (1 - a[0] * b[0]);
    ra[0] += pu * b[0];
    lb[0] += pu * a[0];
    ra[1] += pv * b[1];
    lb[1] += pv * a[1];
  }
};
// Those of y = x + a (x f - x), the identity in part. Factors of the channels and of the positions are
// the rows' and the lanes', or (Turned) the other way round.
template <class Inner, bool Turned> struct Either {
  static constexpr int rows = Turned ? Inner::positions : Inner::channels;
  static constexpr int lanes = Turned ? Inner::channels : Inner::positions;
  template <class V> static INLINE V f(const V* a, const V* b) {
    return Turned ? Inner::f(b, a) : Inner::f(a, b);
  }
  template <class V> static INLINE void back(V p, const V* a, const V* b, V* ra, V* lb) {
    Turned ? Inner::back(p, b, a, lb, ra) : Inner::back(p, a, b, ra, lb);
  }
};
struct Affine {  // u + v s, with u and v of the channels, s of the positions
  static constexpr int channels = 2, positions = 1;
  template <class V> static INLINE V f(const V* c, const V* s) { return c[0] + c[1] * s[0]; }
  template <class V> static INLINE void back(V p, const V* c, const V* s, V* dc, V* ds) {
    dc[0] += p;
    dc[1] += p * s[0];
    ds[0] += p * c[1];
  }
};
struct PartDual {  // 1 - a (1 - A) (1 - A2), A and A2 as of DualScale, a after them
  static constexpr int channels = 3, positions = 2;
  template <class V> static INLINE V f(const V* c, const V* s) {
    return 1 - c[2] * ((1 - c[0] * s[0]) * (1 - c[1] * s[1]));
  }
  template <class V> static INLINE void back(V p, const V* c, const V* s, V* dc, V* ds) {
    V u = 1 - c[0] * s[0], v = 1 - c[1] * s[1], pa = p * c[2], pu = pa * v, pv = pa * u;
    dc[0] += pu * s[0];
    ds[0] += pu * c[0];
    dc[1] += pv * s[1];
    ds[1] += pv * c[1];
    dc[2] -= p * (u * v);
  }
};
constexpr int kMost = 3;  // factors of the rows, and of the lanes

// K rows at once, so that a lane's factors are fetched once for all of them.
template <class G, int K, bool Past, class T>
INLINE void scale_rows(const T* x, T* y, i64 n_lanes, const Acc<T>* const* a,
                      const Acc<T>* const* b) {
  using A = Acc<T>;
  using V = Vec<A>;
  V av[K][kMost], bv[kMost];
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) av[k][i] = all<A>(a[i][k]);
  lanes<A>(0, n_lanes, [&](i64 l, auto n) FLAT {
    for (int i = 0; i < G::lanes; ++i) bv[i] = ld(b[i] + l, n);
    for (int k = 0; k < K; ++k)
      store<Past>(y + k * n_lanes + l, ld(x + k * n_lanes + l, n) * G::f(av[k], bv), n);
  });
}

template <class G, class T>
void scale(const T* x, T* y, Shape s, const Acc<T>* const* a, const Acc<T>* const* b, int threads) {
  constexpr i64 K = 4;
  bool several = G::lanes && together<T>(s.lanes);
  bool past = streams(y, s.n * s.rows * s.lanes, s.lanes);
  i64 groups = (s.rows + K - 1) / K;
  parallel(s.n * groups, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / groups, r = n * s.rows + u % groups * K, end = std::min(r + K, (n + 1) * s.rows);
    const Acc<T>*ar[kMost], *br[kMost];
    auto step = [&](auto k) FLAT {
      for (int i = 0; i < G::rows; ++i) ar[i] = a[i] + r;
      for (int i = 0; i < G::lanes; ++i) br[i] = b[i] + n * s.lanes;
      auto f = past ? scale_rows<G, decltype(k)::value, true, T>
                    : scale_rows<G, decltype(k)::value, false, T>;
      f(x + r * s.lanes, y + r * s.lanes, s.lanes, ar, br);
      r += decltype(k)::value;
    };
    if (several && r + K == end) step(std::integral_constant<int, K>{});
    while (r < end) step(std::integral_constant<int, 1>{});
    if (past) fence();
  });
}

// The same for the gradients.
template <class G, int K, class T>
INLINE void scale_grad_rows(const T* x, const T* dy, T* dx, i64 pitch, i64 begin, i64 end,
                           const Acc<T>* const* a, const Acc<T>* const* b, double (*row_sum)[kMost],
                           Acc<T>* const* lane_sum) {
  using A = Acc<T>;
  using V = Vec<A>;
  V av[K][kMost], ra[K][kMost];
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) av[k][i] = all<A>(a[i][k]), ra[k][i] = V{};
  lanes<A>(begin, end, [&](i64 l, auto n) FLAT {
    V bv[kMost], lb[kMost];
    for (int i = 0; i < G::lanes; ++i) {
      bv[i] = ld(b[i] + l, n);
      lb[i] = ld(lane_sum[i] + l, Full<A>{});
    }
    for (int k = 0; k < K; ++k) {
      V g = ld(dy + k * pitch + l, n);
      V p = ld(x + k * pitch + l, n) * g;
      if (dx) st(dx + k * pitch + l, g * G::f(av[k], bv), n);
      G::back(p, av[k], bv, ra[k], lb);
    }
    for (int i = 0; i < G::lanes; ++i) st(lane_sum[i] + l, lb[i], Full<A>{});
  });
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) row_sum[k][i] += hsum(ra[k][i]);
}

template <class G, class T>
void scale_grad(const T* x, const T* dy, T* dx, Shape s, const Acc<T>* const* a,
               const Acc<T>* const* b, Acc<T>* const* da, Acc<T>* const* db, int threads) {
  using A = Acc<T>;
  Cut cut(s.n, s.rows);
  i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
  Scratch<A> partial(G::lanes * units * pitch);
  parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
    A* lane_sum[kMost];
    const A* br[kMost];
    for (int i = 0; i < G::lanes; ++i) {
      lane_sum[i] = partial + (i * units + u) * pitch;
      std::fill_n(lane_sum[i], pitch, A(0));
      br[i] = b[i] + n * s.lanes;
    }
    std::vector<double> sums(kMost * (r1 - r0), 0.);
    auto row_sum = (double (*)[kMost])sums.data();
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      i64 l1 = std::min(l0 + kTile, s.lanes);
      i64 r = r0;
      auto step = [&](auto k) FLAT {
        i64 at = n * s.rows + r;
        const A* ar[kMost];
        for (int i = 0; i < G::rows; ++i) ar[i] = a[i] + at;
        i64 off = at * s.lanes;
        scale_grad_rows<G, decltype(k)::value>(x + off, dy + off, dx ? dx + off : dx, s.lanes, l0,
                                              l1, ar, br, row_sum + (r - r0), lane_sum);
        r += decltype(k)::value;
      };
      while (together<T>(s.lanes) && r + 4 <= r1) step(std::integral_constant<int, 4>{});
      while (r < r1) step(std::integral_constant<int, 1>{});
    }
    for (int i = 0; i < G::rows; ++i)
      for (i64 r = r0; r < r1; ++r) da[i][n * s.rows + r] = A(row_sum[r - r0][i]);
  });
  for (int i = 0; i < G::lanes; ++i)
    add_parts<A>(partial + i * units * pitch, db[i], s.n, cut.parts, pitch, s.lanes, 1., threads);
}

}  // namespace
