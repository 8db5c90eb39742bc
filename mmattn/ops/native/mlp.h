// The MLP between pools and scale: of SE, CBAM, CAT and DRTAM.
//
// A batch's vectors are few and the weights many, so each product below reads the weights once, for
// all vectors. It is cut by rows and columns of its result: a sum is that of one thread, in one order.
#pragma once

#include "turn.h"

namespace {

// Sums at once: kTall x kWide vectors of them, of dot products kTall / 2 x 4; as many as there are
// registers for.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTall = 8;
#else
constexpr int kTall = 4;
#endif
constexpr int kWide = 2;

// A value that is read from memory once, not by each operation that takes it.
template <class V> INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE__)
  asm("" : "+x"(v));
#endif
  return v;
}

// f(first row i, how many, j, their products a[i] . b[j]) for the rows of a (rows, length), four at
// once, with those of b (others, length). Rows that a block lacks are its last one again, whose
// products go nowhere.
template <class A, class F>
void products(const A* a, i64 rows, const A* b, i64 others, i64 length, int threads, F&& f) {
  constexpr int M = kTall / 2;
  parallel((rows + 3) / 4, rows * others * length / 4, threads, [&](i64 u) {
    const A *ar[4], *br[M];
    for (i64 i = 0; i < 4; ++i) ar[i] = a + std::min(4 * u + i, rows - 1) * length;
    for (i64 j0 = 0; j0 < others; j0 += M) {
      for (i64 j = 0; j < M; ++j) br[j] = b + std::min(j0 + j, others - 1) * length;
      Vec<A> sum[M][4] = {};
      lanes<A>(0, length, [&](i64 l, auto n) FLAT {
        Vec<A> av[4];
        for (int i = 0; i < 4; ++i) av[i] = ld(ar[i] + l, n);
        for (int j = 0; j < M; ++j) {
          Vec<A> bv = in_register(ld(br[j] + l, n));
          for (int i = 0; i < 4; ++i) sum[j][i] += av[i] * bv;
        }
      });
      A dots[M][4] = {};
      for (int j = 0; j < M; ++j) add_hsums(sum[j], dots[j]);
      for (i64 j = 0; j < std::min<i64>(M, others - j0); ++j)
        if (4 * u + 4 <= rows) f(4 * u, std::integral_constant<int, 4>{}, j0 + j, dots[j]);
        else f(4 * u, int(rows - 4 * u), j0 + j, dots[j]);
    }
  });
}

// A matrix, the element of row i and column k at values[i * step + k * pace], of which one is 1, laid
// out as it is read below: kTall rows at once, side by side, column by column; what lacks of rows, 0.
template <class A> struct Tall {
  i64 rows, count;
  Scratch<A> data;
  Tall(const A* values, i64 step, i64 pace, i64 rows_, i64 count_)
      : rows(rows_), count(count_), data((rows + kTall - 1) / kTall * kTall * count) {
    for (i64 first = 0; first < rows; first += kTall) {
      i64 left = std::min<i64>(kTall, rows - first);
      A* to = data + first * count;
      const A* from = values + first * step;
      if (left < kTall) std::fill_n(to, kTall * count, A(0));
      if (pace == 1) {
        turn(from, step, to, kTall, left, count);
        continue;
      }
      for (i64 k = 0; k < count; ++k, from += pace, to += kTall)
        if (left == kTall) std::memcpy(to, from, kTall * sizeof(A));
        else std::copy_n(from, left, to);
    }
  }
};

// f(first column, number of vectors as a constant, columns in the last of them): kWide vectors at once.
template <class A, class F> INLINE void wide_columns(i64 begin, i64 end, F&& f) {
  constexpr i64 N = Simd<A>::N;
  static_assert(kWide == 2);
  i64 l = begin;
  for (; l + 2 * N <= end; l += 2 * N) f(l, std::integral_constant<int, 2>{}, Full<A>{});
  if (end - l > N) f(l, std::integral_constant<int, 2>{}, int(end - l - N));
  else if (end - l == N) f(l, std::integral_constant<int, 1>{}, Full<A>{});
  else if (end > l) f(l, std::integral_constant<int, 1>{}, int(end - l));
}

// to[i] = sum over k0 <= k < k1 of a[i, k] * b[k], for the rows of a from `first` on and the columns
// l0 to l1 of b (count, length) and to (rows, length); if `add`, is added to.
template <class A>
void combine_block(const Tall<A>& a, i64 first, i64 k0, i64 k1, const A* b, i64 length, i64 l0, i64 l1,
                   A* to, bool add) {
  constexpr i64 N = Simd<A>::N;
  const A* ar = a.data + first * a.count;
  const i64 left = std::min<i64>(kTall, a.rows - first);
  wide_columns<A>(l0, l1, [&](i64 l, auto nv, auto last) FLAT {
    constexpr int NV = decltype(nv)::value;
    Vec<A> sum[kTall][NV] = {};
    for (i64 k = k0; k < k1; ++k)
      vectors<A, NV>(last, [&](int v, auto n) FLAT {
        Vec<A> bv = ld(b + k * length + l + v * N, n);
        for (int i = 0; i < kTall; ++i) sum[i][v] += ar[k * kTall + i] * bv;
      });
    A* at = to + first * length + l;
    auto save = [&](i64 i, const Vec<A>* s) FLAT {
      vectors<A, NV>(last, [&](int v, auto n) FLAT {
        A* t = at + i * length + v * N;
        st(t, add ? ld(t, n) + s[v] : s[v], n);
      });
    };
#pragma GCC unroll 8
    for (int i = 0; i < kTall; ++i)
      if (i < left) save(i, sum[i]);
  });
}

// to[i] = sum over k < count of a[i * step + k * pace] * b[k], b (count, length), to (rows, length); if
// `add`, is added to. The larger of b and `to` is passed once. No running sum gets long: those of 256
// each are added up in order, of few rows after all have been made.
template <class A>
void combine(const A* a, i64 step, i64 pace, i64 count, const A* b, i64 length, A* to, i64 rows,
             bool add, int threads) {
  constexpr i64 kLong = 256;
  Tall<A> packed(a, step, pace, rows, count);
  const i64 parts = std::max<i64>((count + kLong - 1) / kLong, 1), split = rows < 64 ? parts : 1;
  const i64 block = (count < rows ? 64 : 4) * Simd<A>::N, size = rows * length;
  const i64 tall = (rows + kTall - 1) / kTall, wide = (length + block - 1) / block;
  Scratch<A> partial(split > 1 ? split * size : 0);
  parallel(split * tall * wide, size * count / 4, threads, [&](i64 u) {
    i64 at = u % (tall * wide), part = u / (tall * wide);
    i64 l = (count < rows ? at % wide : at / tall) * block;
    i64 first = (count < rows ? at / wide : at % tall) * kTall;
    A* out = split > 1 ? partial + part * size : to;
    for (i64 q = part; q < (split > 1 ? part + 1 : parts); ++q)
      combine_block(packed, first, q * kLong, std::min((q + 1) * kLong, count), b, length, l,
                    std::min(l + block, length), out, q > part || (add && split == 1));
  });
  if (split == 1) return;
  lanes<A>(0, size, [&](i64 l, auto n) FLAT {
    Vec<A> sum = ld(partial + l, n);
    if (add) sum += ld(to + l, n);
    for (i64 q = 1; q < split; ++q) sum += ld(partial + q * size + l, n);
    st(to + l, sum, n);
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
  products(m.w1, m.hidden, v, m.n * m.parts, m.channels, threads, [&](i64 k, auto n, i64 i, A* dots) FLAT {
    for (int j = 0; j < n; ++j) {
      A u = m.b1 ? dots[j] + m.b1[k + j] : dots[j];
      dots[j] = u < 0 ? 0 : u;  // a NaN stays one
    }
    std::memcpy(hidden + i * m.hidden + k, dots, n * sizeof(A));
  });
  Mixed<A> mixed(m, hidden);
  A shares = m.shares();
  products(m.w2, m.channels, mixed.values, m.n, m.hidden, threads, [&](i64 c, auto n, i64 i, A* dots) FLAT {
    for (int j = 0; m.b2 && j < n; ++j) dots[j] += m.b2[c + j] * shares;
    std::memcpy(out + i * m.channels + c, dots, n * sizeof(A));
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
