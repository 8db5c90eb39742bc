// SimAM on the CPU: both passes over a channel read it while it is in the cache.

#include "abi.h"

namespace {

// Sum over a row of f(value); what a short vector has no value for, counts nothing.
template <class T, class F> double sum(const T* x, i64 size, F&& f) {
  using A = Acc<T>;
  Vec<A> total = {};
  lanes<A>(0, size, [&](i64 i, auto n) {
    Vec<A> v = f(i, n);
    total += iota<A>() < Int<A>{} + int(n) ? v : Vec<A>{};
  });
  return hsum(total);
}

template <class A> Vec<A> sigmoid(Vec<A> v) { return all<A>(1) / (all<A>(1) + vexp(-v)); }

// Of a row: its mean, and of the energy (x - mean)^2 * scale + 1/2 the scale.
template <class T> struct Row {
  using A = Acc<T>;
  A mean, scale, free;
  Row(const T* x, i64 size, double lambda) : free(A(std::max<i64>(size - 1, 1))) {
    mean = A(sum(x, size, [&](i64 i, auto n) { return ld(x + i, n); }) / size);
    double squares = sum(x, size, [&](i64 i, auto n) {
      Vec<A> d = ld(x + i, n) - all<A>(mean);
      return d * d;
    });
    scale = A(1 / (4 * (squares / free + lambda)));
  }
  Vec<A> energy(Vec<A> d) const { return d * d * scale + all<A>(0.5); }
};

// x, y: rows of size values
void mmattn_energy_gate(int dtype, const Element* x, Element* y, i64 rows, i64 size, double lambda,
                  int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Acc<T>;
    parallel(rows, rows * size, threads, [&](i64 r) {
      const T* from = (const T*)x + r * size;
      T* to = (T*)y + r * size;
      Row<T> row(from, size, lambda);
      lanes<A>(0, size, [&](i64 i, auto n) {
        Vec<A> v = ld(from + i, n);
        st(to + i, v * sigmoid<A>(row.energy(v - all<A>(row.mean))), n);
      });
    });
  });
}

// The energy moves with the value, with the mean, and with the scale: dscale = -scale^2 * 4 dvariance.
void mmattn_energy_gate_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 rows, i64 size,
                       double lambda, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = Acc<T>;
    parallel(rows, rows * size, threads, [&](i64 r) {
      const T *from = (const T*)x + r * size, *g = (const T*)dy + r * size;
      T* to = (T*)dx + r * size;
      Row<T> row(from, size, lambda);
      auto energy_grad = [&](Vec<A> v, Vec<A> d, Vec<A> dy) {
        Vec<A> s = sigmoid<A>(row.energy(d));
        return dy * v * s * (all<A>(1) - s);
      };
      A dscale = A(sum(from, size, [&](i64 i, auto n) {
        Vec<A> v = ld(from + i, n), d = v - all<A>(row.mean);
        return energy_grad(v, d, ld(g + i, n)) * d * d;
      }));
      A dvariance = -dscale * row.scale * row.scale * 4;
      auto centred_grad = [&](i64 i, auto n) {
        Vec<A> v = ld(from + i, n), d = v - all<A>(row.mean);
        return d * 2 * (energy_grad(v, d, ld(g + i, n)) * row.scale + all<A>(dvariance / row.free));
      };
      A dmean = A(sum(from, size, centred_grad) / size);
      lanes<A>(0, size, [&](i64 i, auto n) {
        Vec<A> s = sigmoid<A>(row.energy(ld(from + i, n) - all<A>(row.mean)));
        st(to + i, ld(g + i, n) * s + centred_grad(i, n) - all<A>(dmean), n);
      });
    });
  });
}

}  // namespace

SHOW(ENTRY(energy_gate), ENTRY(energy_gate_grad))
