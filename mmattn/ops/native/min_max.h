// CAT's normalised entropies.
#pragma once

#include "work.h"

namespace {

// The smallest and largest value of a sample, NaN where it holds one.
template <class A> struct Range {
  A least, most;
  bool flat;  // a spread that rounding alone can make counts as none
  Range(const A* v, i64 length) {
    const A far = std::numeric_limits<A>::infinity();
    Vec<A> low = all<A>(far), high = all<A>(-far);
    lanes<A>(0, length, [&](i64 l, auto n) FLAT {
      Vec<A> z = ld(v + l, n), up = n < Simd<A>::N ? outside<A>(z, n) : z;
      Vec<A> down = n < Simd<A>::N ? -outside<A>(-z, n) : z;
      high = (up > high) | (up != up) ? up : high;
      low = (down < low) | (down != down) ? down : low;
    });
    least = low[0], most = high[0];
    for (int k = 1; k < Simd<A>::N; ++k) {
      if (beats(A(high[k]), most)) most = high[k];
      if (beats(A(-low[k]), -least)) least = low[k];
    }
    flat = !(most - least > 64 * std::numeric_limits<A>::epsilon());
  }
  A spread() const { return flat ? A(1) : most - least; }
};

// (v - least) / spread, stretched to [low, high]; v (N, L).
template <class A>
void min_max(const A* v, A* out, i64 n_, i64 length, A low, A high, int threads) {
  parallel(n_, n_ * length, threads, [&](i64 n) {
    const A* vn = v + n * length;
    Range<A> range(vn, length);
    A scale = (high - low) / range.spread();
    lanes<A>(0, length, [&](i64 l, auto k) FLAT {
      st(out + n * length + l, (ld(vn + l, k) - range.least) * scale + low, k);
    });
  });
}

// With u = (v - least) / spread: du/dleast = (u - 1) / spread, du/dmost = -u / spread; of equal
// extremes each gets its share.
template <class A>
void min_max_grad(const A* v, const A* g, A* dv, i64 n_, i64 length, A stretch, int threads) {
  parallel(n_, n_ * length, threads, [&](i64 n) {
    const A *vn = v + n * length, *gn = g + n * length;
    Range<A> range(vn, length);
    A scale = stretch / range.spread();
    double sum = 0, dot = 0;
    i64 lowest = 0, highest = 0;
    for (i64 l = 0; l < length; ++l) {
      sum += double(gn[l]);
      dot += double(gn[l]) * double(vn[l] - range.least);
      lowest += vn[l] == range.least;
      highest += vn[l] == range.most;
    }
    double inner = range.flat ? 0. : dot / double(range.spread());
    A at_least = A((inner - sum) * scale / double(std::max<i64>(lowest, 1)));
    A at_most = A(-inner * scale / double(std::max<i64>(highest, 1)));
    for (i64 l = 0; l < length; ++l)
      dv[n * length + l] = gn[l] * scale + (vn[l] == range.least ? at_least : A(0)) +
                           (vn[l] == range.most ? at_most : A(0));
  });
}

}  // namespace
