// The MLP between pools and scale: of SE, CBAM, CAT and DRTAM.
//
// A batch's vectors are few and the weights many, so each product below reads the weights once, for
// all vectors. It is cut by rows and columns of its result: a sum is that of one thread, in one order.
#pragma once

#include "work.h"

namespace {

// Sums at once, 4 x kTall vectors of them: as many as there are registers for.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr i64 kTall = 4;
#else
constexpr i64 kTall = 2;
#endif

// f(i, j, a[i] . b[j]) for the rows of a (rows, length), four at once, with those of b (others, length).
// Rows that a block lacks are its last one again, whose products go nowhere.
template <class A, class F>
void products(const A* a, i64 rows, const A* b, i64 others, i64 length, int threads, F&& f) {
  parallel((rows + 3) / 4, rows * others * length / 4, threads, [&](i64 u) {
    const A *ar[4], *br[kTall];
    for (i64 i = 0; i < 4; ++i) ar[i] = a + std::min(4 * u + i, rows - 1) * length;
    for (i64 j0 = 0; j0 < others; j0 += kTall) {
      for (i64 j = 0; j < kTall; ++j) br[j] = b + std::min(j0 + j, others - 1) * length;
      Vec<A> sum[kTall][4] = {};
      lanes<A>(0, length, [&](i64 l, auto n) FLAT {
        Vec<A> av[4];
        for (int i = 0; i < 4; ++i) av[i] = ld(ar[i] + l, n);
        for (int j = 0; j < kTall; ++j) {
          Vec<A> bv = ld(br[j] + l, n);
          for (int i = 0; i < 4; ++i) sum[j][i] += av[i] * bv;
        }
      });
      for (i64 j = 0; j < std::min(kTall, others - j0); ++j) {
        A dots[4] = {};
        add_hsums(sum[j], dots);
        for (i64 i = 0; i < std::min<i64>(4, rows - 4 * u); ++i) f(4 * u + i, j0 + j, dots[i]);
      }
    }
  });
}

// The larger of b and `to` is passed once. to[i] = sum over k < count of a[i * step + k * pace] * b[k], b (count, length), to (rows, length);
// if `add`, is added to.
template <class A>
void combine(const A* a, i64 step, i64 pace, i64 count, const A* b, i64 length, A* to, i64 rows,
             bool add, int threads) {
  constexpr i64 N = Simd<A>::N;
  i64 tall = (rows + kTall - 1) / kTall, wide = (length + 4 * N - 1) / (4 * N);
  parallel(tall * wide, rows * length * count / 4, threads, [&](i64 u) {
    i64 l = (count < rows ? u % wide : u / tall) * 4 * N;
    i64 first = (count < rows ? u / wide : u % tall) * kTall, left = std::min(kTall, rows - first);
    const A* ar[kTall];
    for (i64 i = 0; i < kTall; ++i) ar[i] = a + (first + std::min(i, left - 1)) * step;
    columns<A>(std::min(4 * N, length - l), [&](i64, auto nv, auto last) FLAT {
      constexpr int NV = decltype(nv)::value;
      for (i64 k0 = 0; k0 < count; k0 += 256) {  // no running sum gets long
        Vec<A> sum[kTall][NV] = {};
        for (i64 k = k0; k < std::min(k0 + 256, count); ++k)
          vectors<A, NV>(last, [&](int v, auto n) FLAT {
            Vec<A> bv = ld(b + k * length + l + v * N, n);
            for (int i = 0; i < kTall; ++i) sum[i][v] += ar[i][k * pace] * bv;
          });
        for (i64 i = 0; i < left; ++i)
          vectors<A, NV>(last, [&](int v, auto n) FLAT {
            A* at = to + (first + i) * length + l + v * N;
            st(at, add || k0 ? ld(at, n) + sum[i][v] : sum[i][v], n);
          });
      }
    });
  });
}

// Of P descriptors a sample, v (N, P, C): hidden[p] = relu(W1 v[p] + b1), (N, P, K), and
// out = sum over p of mix[p] (W2 hidden[p] + b2), (N, C).
template <class A> struct Mlp {
  i64 n, parts, channels, hidden;
  const A *w1, *b1, *w2, *b2, *mix;  // (K, C), (K), (C, K), (C), (P); b null: none; mix null: all 1

  A share(i64 p) const { return mix ? mix[p] : A(1); }
  A shares() const {
    A sum = 0;
    for (i64 p = 0; p < parts; ++p) sum += share(p);
    return sum;
  }
};

// Sum over p of mix[p] hidden[p], (N, K): the second layer is linear and takes the sum.
template <class A> struct Mixed {
  Scratch<A> own;
  const A* values;
  Mixed(const Mlp<A>& m, const A* hidden) : own(m.n * m.hidden), values(hidden) {
    if (m.parts == 1 && !m.mix) return;
    for (i64 n = 0; n < m.n; ++n)
      lanes<A>(0, m.hidden, [&](i64 k, auto r) FLAT {
        Vec<A> sum = {};
        for (i64 p = 0; p < m.parts; ++p)
          sum += m.share(p) * ld(hidden + (n * m.parts + p) * m.hidden + k, r);
        st(own + n * m.hidden + k, sum, r);
      });
    values = own + 0;
  }
};

template <class A> void mlp(const Mlp<A>& m, const A* v, A* hidden, A* out, int threads) {
  products(m.w1, m.hidden, v, m.n * m.parts, m.channels, threads, [&](i64 k, i64 i, A dot) FLAT {
    A u = m.b1 ? dot + m.b1[k] : dot;
    hidden[i * m.hidden + k] = u < 0 ? 0 : u;  // a NaN stays one
  });
  Mixed<A> mixed(m, hidden);
  A shares = m.shares();
  products(m.w2, m.channels, mixed.values, m.n, m.hidden, threads, [&](i64 c, i64 n, A dot) FLAT {
    out[n * m.channels + c] = m.b2 ? dot + m.b2[c] * shares : dot;
  });
}

// g: of out. Writes the gradients dv; dw of w1, b1, w2, b2, of null ones none (if `add`, adds to them);
// and dmix, null where there is no mix.
template <class A>
void mlp_grad(const Mlp<A>& m, const A* v, const A* hidden, const A* g, A* dv, A* const* dw, A* dmix,
              bool add, int threads) {
  i64 every = m.n * m.parts;
  Scratch<A> dmixed(m.n * m.hidden), inner(every * m.hidden);
  combine(g, m.channels, 1, m.channels, m.w2, m.hidden, dmixed + 0, m.n, false, threads);
  for (i64 i = 0; i < every; ++i)
    for (i64 k = 0; k < m.hidden; ++k)
      inner[i * m.hidden + k] = hidden[i * m.hidden + k] <= 0
                                    ? 0
                                    : dmixed[i / m.parts * m.hidden + k] * m.share(i % m.parts);
  combine(inner + 0, m.hidden, 1, m.hidden, m.w1, m.channels, dv, every, false, threads);
  combine(inner + 0, 1, m.hidden, every, v, m.channels, dw[0], m.hidden, add, threads);
  Mixed<A> mixed(m, hidden);
  combine(g, 1, m.channels, m.n, mixed.values, m.hidden, dw[2], m.channels, add, threads);
  const A one = 1, shares = m.shares();
  if (dw[1]) combine(&one, 0, 0, every, inner + 0, m.hidden, dw[1], 1, add, threads);
  if (dw[3]) combine(&shares, 0, 0, m.n, g, m.channels, dw[3], 1, add, threads);
  for (i64 p = 0; dmix && p < m.parts; ++p) {
    double sum = 0;
    for (i64 n = 0; n < m.n; ++n) {
      Vec<A> dot = {};
      lanes<A>(0, m.hidden, [&](i64 k, auto r) FLAT {
        dot += ld(dmixed + n * m.hidden + k, r) * ld(hidden + (n * m.parts + p) * m.hidden + k, r);
      });
      sum += double(hsum(dot));
    }
    dmix[p] = A(sum);
  }
}

}  // namespace
