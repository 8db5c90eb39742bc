// What a pool's gradient is added to: a gradient, scaled by factors or not, or nothing.
#pragma once

#include "scale.h"

namespace {

// What comes in at a row of the sample matrices (the rows of all samples counted on), in vectors: dy * f
// of a gate's factors, or a gradient itself, or nothing (a null pointer).
template <class G, class T> struct Scaled {
  using A = Acc<T>;
  using V = Vec<A>;
  struct Lanes { V b[kMost]; };  // of all rows of a sample
  struct Row {
    const T* dy;
    V a[kMost];
    const A* b[kMost];
    template <class N> INLINE Lanes lanes(i64 l, N n) const {
      Lanes found;
      for (int i = 0; i < G::lanes; ++i) found.b[i] = ld(b[i] + l, n);
      return found;
    }
    template <class N> INLINE V operator()(const Lanes& at, i64 l, N n) const {
      return ld(dy + l, n) * G::f(a, at.b);
    }
  };
  const T* dy;
  Shape s;
  const A *const *a, *const *b;
  Row operator()(i64 r) const {
    Row row{dy + r * s.lanes, {}, {}};
    for (int i = 0; i < G::rows; ++i) row.a[i] = all<A>(a[i][r]);
    for (int i = 0; i < G::lanes; ++i) row.b[i] = b[i] + r / s.rows * s.lanes;
    return row;
  }
};
template <class T> struct Plain {
  struct Lanes {};
  struct Row {
    const T* g;
    template <class N> INLINE Lanes lanes(i64, N) const { return {}; }
    template <class N> INLINE Vec<Acc<T>> operator()(Lanes, i64 l, N n) const {
      return g ? ld(g + l, n) : Vec<Acc<T>>{};
    }
  };
  const T* g;
  i64 lanes;
  Row operator()(i64 r) const { return {g ? g + r * lanes : nullptr}; }
};

// The same, of a single element.
template <class F> INLINE auto single(const F& incoming, i64 row, i64 lane) {
  auto in = incoming(row);
  return in(in.lanes(lane, 1), lane, 1)[0];
}

}  // namespace
