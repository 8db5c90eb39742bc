// CBAM's map gradient.
#pragma once

#include "work.h"

namespace {

// All of CBAM's map gradient: y = z * s with z = x * c, of whose channels at each position mean and
// maximum were taken, as of the positions of each channel of x.
// dx = dy * f + (ga / C + [argmax] gm) * c + gavg / (H W) + [argmax] gmax, f = c s, or with a share of
// the identity f = 1 + a (c s - 1).
template <class T> struct Cbam {
  using A = Acc<T>;
  const T* dy;
  const A *c, *s, *share;             // (N, C), (N, H W), (N, C) or null
  const A *ga, *gm, *gavg, *gmax;     // (N, H W) twice, (N, C) twice; each may be null
  const int32_t *channel_at, *at;     // position of each channel's maximum, channel of each position's
};

template <bool Part, class T>
void cbam_grad(const Cbam<T>& g, T* dx, Shape s, bool row_c, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 channels = row_c ? s.rows : s.lanes, positions = row_c ? s.lanes : s.rows;
  const A of_position = A(1. / channels), of_channel = A(1. / positions);
  // The maxima's elements are written anew. One may be that of its channel and of its position: both
  // ways it is all of it.
  auto spot = [&](i64 n, i64 ch, i64 p) {
    i64 nc = n * channels + ch, np = n * positions + p;
    i64 o = (n * s.rows + (row_c ? ch : p)) * s.lanes + (row_c ? p : ch);
    A d = get(g.dy + o), a = Part ? g.share[nc] : A(1);
    A v = a * d * g.s[np];
    if (g.ga) v += g.ga[np] * of_position;
    if (g.gm && g.at[np] == ch) v += g.gm[np];
    v *= g.c[nc];
    if (Part) v += d * (1 - a);
    if (g.gavg) v += g.gavg[nc] * of_channel;
    if (g.gmax && g.channel_at[nc] == p) v += g.gmax[nc];
    put(dx + o, v);
  };
  auto of_channels = [&](i64 n, i64 ch) {
    if (g.gmax) spot(n, ch, g.channel_at[n * channels + ch]);
  };
  auto of_positions = [&](i64 n, i64 p) {
    if (g.gm) spot(n, g.at[n * positions + p], p);
  };
  const A *rows = row_c ? g.c : g.s, *cols = row_c ? g.s : g.c;
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    i64 n = r / s.rows, first = n * s.lanes;
    V factor = all<A>(rows[r]);
    const A *row_term = row_c ? g.gavg : g.ga, *lane_term = row_c ? g.ga : g.gavg;
    V term = all<A>(row_term ? row_term[r] * (row_c ? of_channel : of_position) : A(0));
    V share = all<A>(Part && row_c ? g.share[r] : A(1));
    lanes<A>(0, s.lanes, [&](i64 l, auto m) FLAT {
      V d = ld(g.dy + r * s.lanes + l, m), f = ld(cols + first + l, m);
      V t = lane_term ? ld(lane_term + first + l, m) : V{};
      if (Part && !row_c) share = ld(g.share + first + l, m);
      V taken = Part ? d * share : d;
      V v = row_c ? (taken * f + t * of_position) * factor + term
                  : (taken * factor + term) * f + t * of_channel;
      if (Part) v += d - taken;
      st(dx + r * s.lanes + l, v, m);
    });
    row_c ? of_channels(n, r - n * s.rows) : of_positions(n, r - n * s.rows);
  });
  parallel(s.n, s.n * s.lanes * 16, threads, [&](i64 n) {
    for (i64 l = 0; l < s.lanes; ++l) row_c ? of_positions(n, l) : of_channels(n, l);
  });
}

}  // namespace
