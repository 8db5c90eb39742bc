// The maxima of CAT's low-passed planes.
#pragma once

#include "strips.h"

namespace {

// The taps of a low-pass, in registers where their number is a constant.
template <class A, int TAPS> struct Taps {
  Vec<A> v[TAPS];
  explicit Taps(const A* taps) {
    for (int k = 0; k < TAPS; ++k) v[k] = all<A>(taps[k]);
  }
  INLINE Vec<A> operator[](i64 k) const { return v[k]; }
};
template <class A> struct Taps<A, 0> {
  const A* v;
  explicit Taps(const A* taps) : v(taps) {}
  INLINE A operator[](i64 k) const { return v[k]; }
};

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
    const Taps<A, TAPS> tap(taps);
    const A *in = plane.data(), *around = frame.data();
    A* out = column.data() + p;
    const i64 down = pitch;
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(in + l, n) * tap[0];
      for (int k = 1; k < k1; ++k) v += ld(in + l + k * down, n) * tap[k];
      st(out + l, v, n);
      top.add(v + ld(around + l, n), ramp + Index<A>(l));
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
    const Taps<A, TAPS> tap(taps);
    const A* in = column.data();
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(in + l, n) * tap[0];
      for (int k = 1; k < k1; ++k) v += ld(in + l + k, n) * tap[k];
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

// The same of a channels_last map, an image row at a time: all channels of a position side by side.
template <class T> struct RowFilter {
  using A = Acc<T>;
  using V = Vec<A>;
  Map m;
  const A* taps;
  i64 k, p = k / 2, pitch = padded<A>(m.c);
  Scratch<A> column{(m.w + 2 * p) * pitch};  // the row filtered along H, within a frame of zeros
  RowFilter(Map m_, const A* taps_, i64 k_) : m(m_), taps(taps_), k(k_) {
    std::fill_n(column + 0, (m.w + 2 * p) * pitch, A(0));
  }

  // Filters image row h of a sample along H. Each channel's maximum so far, with its position, is in
  // best and at (none: null), of which nothing is there yet if `first`.
  void vertical(const T* xn, i64 h, A* best, Index<A>* at, bool first) {
    i64 k0 = std::max<i64>(0, p - h), k1 = std::min(k, m.h + p - h);
    for (i64 w = 0; w < m.w; ++w) {
      const T* in = xn + ((h + k0 - p) * m.w + w) * m.c;
      A* out = column + (w + p) * pitch;
      const Index<A> position(h * m.w + w);
      if (k1 - k0 == 5) vertical_<5>(in, taps + k0, 5, out, position, best, at, first && w == 0);
      else vertical_<0>(in, taps + k0, k1 - k0, out, position, best, at, first && w == 0);
    }
  }
  template <int TAPS>
  INLINE void vertical_(const T* in, const A* taps_, i64 count, A* out, Index<A> position, A* best,
                        Index<A>* at, bool first) {
    const i64 kn = TAPS ? TAPS : count, down = m.w * m.c;
    const Taps<A, TAPS> tap(taps_);
    lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
      V v = ld(in + c, r) * tap[0];
      for (i64 j = 1; j < kn; ++j) v += ld(in + j * down + c, r) * tap[j];
      st(out + c, v, Full<A>{});
      if (!best) return;
      Peak<A> top;
      if (!first) {
        top.value = ld(best + c, Full<A>{});
        std::memcpy(&top.index, at + c, kBytes);
      }
      top.add(v, Int<A>{} + position);
      st(best + c, top.value, Full<A>{});
      std::memcpy(at + c, &top.index, kBytes);
    });
  }

  // Filters along W what `vertical` left: each position's maximum over the channels.
  void horizontal(A* best, int32_t* at) const {
    for (i64 w = 0; w < m.w; ++w)
      k == 5 ? horizontal_<5>(w, best + w, at + w) : horizontal_<0>(w, best + w, at + w);
  }
  template <int TAPS> INLINE void horizontal_(i64 w, A* best, int32_t* at) const {
    const i64 kn = TAPS ? TAPS : k, across = pitch;
    const Taps<A, TAPS> tap(taps);
    const A* in = column + w * pitch;
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
      V v = ld(in + c, Full<A>{}) * tap[0];
      for (i64 j = 1; j < kn; ++j) v += ld(in + j * across + c, Full<A>{}) * tap[j];
      if (r < Simd<A>::N) v = outside<A>(v, r);
      top.add(v, ramp + Index<A>(c));
    });
    top.best(best, at);
  }
};

}  // namespace
