// CBAM's map gradient.
#pragma once

#include <utility>

#include "work.h"

namespace {

// y = z * s with z = x * c, of whose channels at each position mean and maximum were taken, as of the
// positions of each channel of x:
// dx = dy * f + (ga / C + [argmax] gm) * c + gavg / (H W) + [argmax] gmax, f = c s, or with a share of
// the identity f = 1 + a (c s - 1).
template <class T> struct Cbam {
  using A = Acc<T>;
  const T* dy;
  const A *c, *s, *share;             // (N, C), (N, H W), (N, C) or null
  const A *ga, *gm, *gavg, *gmax;     // (N, H W) twice, (N, C) twice
  const int32_t *at, *channel_at;     // channel of each position's maximum, position of each channel's
};

template <bool Part, bool RowC, class T> void cbam_dx(const Cbam<T>& g, T* dx, Shape s, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A of_position = A(1. / (RowC ? s.rows : s.lanes)), of_channel = A(1. / (RowC ? s.lanes : s.rows));
  // The maximum of a row is one of its elements; the lanes whose maximum is in a row, each with the next
  // or -1, have it written anew while it is in the cache.
  const int32_t *row_at = RowC ? g.channel_at : g.at, *lane_at = RowC ? g.at : g.channel_at;
  Scratch<int32_t> begin(s.n * s.rows), next(s.n * s.lanes);
  parallel(s.n, s.n * s.lanes * 16, threads, [&](i64 n) {
    std::fill_n(begin + n * s.rows, s.rows, -1);
    for (i64 l = 0; l < s.lanes; ++l)
      next[n * s.lanes + l] = std::exchange(begin[n * s.rows + lane_at[n * s.lanes + l]], int32_t(l));
  });
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    const i64 first = r / s.rows * s.lanes;
    const V factor = all<A>((RowC ? g.c : g.s)[r]), top = all<A>((RowC ? g.gmax : g.gm)[r]);
    const V mean = all<A>(RowC ? g.gavg[r] * of_channel : g.ga[r] * of_position);
    const Int<A> from_top = iota<A>() - Index<A>(row_at[r]);
    auto write = [&](i64 l, V lane_top, auto n) FLAT {
      const i64 i = first + l;
      V d = ld(g.dy + r * s.lanes + l, n), f = ld((RowC ? g.s : g.c) + i, n);
      V share = Part ? (RowC ? all<A>(g.share[r]) : ld(g.share + i, n)) : all<A>(A(1)), taken = d * share;
      V lane_mean = ld((RowC ? g.ga : g.gavg) + i, n) * (RowC ? of_position : of_channel);
      V row_top = from_top + Index<A>(l) == 0 ? top : V{};
      V v = RowC ? (taken * f + lane_mean + lane_top) * factor + mean + row_top
                 : (taken * factor + mean + row_top) * f + lane_mean + lane_top;
      st(dx + r * s.lanes + l, Part ? v + (d - taken) : v, n);
    };
    lanes<A>(0, s.lanes, [&](i64 l, auto n) FLAT { write(l, V{}, n); });
    for (i64 l = begin[r]; l >= 0; l = next[first + l])
      write(l, all<A>((RowC ? g.gm : g.gmax)[first + l]), 1);
  });
}

}  // namespace
