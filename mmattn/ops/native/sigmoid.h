// The sigmoid of vectors, and its gradient.
#pragma once

#include "work.h"

namespace {

template <class A> INLINE Vec<A> sigmoid(Vec<A> v) { return 1 / (1 + vexp(-v)); }

template <class A> void sigmoid(const A* v, A* to, i64 length) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT { st(to + l, sigmoid<A>(ld(v + l, n)), n); });
}

// The gradient g of a sigmoid y becomes that of its argument; to may be g.
template <class A> void sigmoid_grad(const A* g, const A* y, A* to, i64 length) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT {
    Vec<A> f = ld(y + l, n);
    st(to + l, ld(g + l, n) * f * (1 - f), n);
  });
}

// The sum of gradients, of which each but the first may be null.
template <class A> void add_up(const A* const* grads, int count, A* to, i64 length) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT {
    Vec<A> sum = ld(grads[0] + l, n);
    for (int i = 1; i < count; ++i)
      if (grads[i]) sum += ld(grads[i] + l, n);
    st(to + l, sum, n);
  });
}

}  // namespace
