// The maxima of CAT's low-passed planes.
#pragma once

#include "strips.h"

namespace {

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

}  // namespace
