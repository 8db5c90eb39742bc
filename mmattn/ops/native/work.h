// How work is cut and shared by threads, and added up again in order.
#pragma once

#include <atomic>

#include "vectors.h"

// The threads of torch's own OpenMP runtime: a second one would fight it for the cores. Which one that
// is, is found when the library is loaded, so the library needs none to be compiled or linked with.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr, (*threads)() = nullptr;
};
extern OpenMP openmp;

namespace {

struct Shape { i64 n, rows, lanes; };

// Each thread takes an equal run of the units. An exception may not leave a parallel region: it is
// carried out, one of several. It is caught outside the loop over the units, which it would slow down.
template <class F> void parallel(i64 units, i64 elements, int threads, F&& f) {
  if (threads > units) threads = int(units);
  if (elements < 65536 || !openmp.parallel) threads = 1;  // waking a thread costs more
  std::exception_ptr failure;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  auto run = [&](int t) {
    try {
      for (i64 u = units * t / threads, end = units * (t + 1) / threads; u < end; ++u) f(u);
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  };
  if (threads > 1) {
    auto team = [&] {  // which may be smaller than was asked for
      for (int t = openmp.thread(); t < threads; t += openmp.threads()) run(t);
    };
    openmp.parallel([](void* p) { (*static_cast<decltype(team)*>(p))(); }, &team, threads, 0);
  } else if (units > 0) {
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

// Rows are cut so that no running sum gets long and that a small batch still fills the cores.
struct Cut {
  i64 parts, size;
  explicit Cut(i64 n, i64 rows, i64 step = 4) {
    i64 want = std::max((rows + 255) / 256, std::min((64 + n - 1) / n, rows / 32));
    parts = std::max<i64>(want, 1);
    size = ((rows + parts - 1) / parts + step - 1) / step * step;
    parts = (rows + size - 1) / size;
  }
};

// f(first column, number of vectors as a constant, columns in the last of them): the columns of a
// contiguous plane, as many at once as their sums have registers. A sum that went through memory from
// row to row would wait there: the end of one row is the beginning of the next.
template <class A, class F> INLINE void columns(i64 width, F&& f) {
  constexpr i64 N = Simd<A>::N;
  i64 w = 0;
  for (; w + 4 * N <= width; w += 4 * N) f(w, std::integral_constant<int, 4>{}, Full<A>{});
  if (w == width) return;
  i64 vectors = (width - w + N - 1) / N;
  int last = int(width - w - (vectors - 1) * N);
  if (vectors == 4) f(w, std::integral_constant<int, 4>{}, last);
  if (vectors == 3) f(w, std::integral_constant<int, 3>{}, last);
  if (vectors == 2) f(w, std::integral_constant<int, 2>{}, last);
  if (vectors == 1) f(w, std::integral_constant<int, 1>{}, last);
}
// f(offset, number of lanes) for each of NV vectors, of which the last has `last` lanes.
template <class A, int NV, class L, class F> INLINE void vectors(L last, F&& f) {
  for (int j = 0; j + 1 < NV; ++j) f(j, Full<A>{});
  f(NV - 1, last);
}

// Several rows at once only where each lies in pages of its own, or all of them in one: the prefetchers
// follow one stream in a page.
template <class T> bool long_rows(i64 lanes_) { return lanes_ * i64(sizeof(T)) >= 4096; }
template <class T> bool together(i64 lanes_) {
  return long_rows<T>(lanes_) || lanes_ * i64(sizeof(T)) <= 256;
}

constexpr i64 kTile = 4096;  // lanes worked on at once: their accumulators stay in cache

template <class A> i64 padded(i64 n) { return (n + Simd<A>::N - 1) / Simd<A>::N * Simd<A>::N; }

// Uninitialised scratch: a std::vector would write every page first.
template <class A> struct Scratch {
  std::unique_ptr<A[]> p;
  explicit Scratch(i64 n) : p(new A[std::max<i64>(n, 1)]) {}
  A* operator+(i64 i) const { return p.get() + i; }
  A& operator[](i64 i) const { return p[i]; }
};

// out[n][l] = scale * sum over parts of partial[n][part][l]
template <class A>
void add_parts(const A* partial, A* out, i64 n, i64 parts, i64 pitch, i64 lanes_, double scale,
               int threads) {
  constexpr i64 block = 512;
  i64 blocks = (lanes_ + block - 1) / block;
  parallel(n * blocks, n * parts * lanes_, threads, [&](i64 u) {
    i64 b = u / blocks, first = u % blocks * block, count = std::min(block, lanes_ - first);
    double sum[block] = {};
    for (i64 q = 0; q < parts; ++q) {
      const A* from = partial + (b * parts + q) * pitch + first;
      for (i64 l = 0; l < count; ++l) sum[l] += double(from[l]);
    }
    for (i64 l = 0; l < count; ++l) out[b * lanes_ + first + l] = A(sum[l] * scale);
  });
}

// out[l] = sum over samples of partial[n][l], whose rows are `pitch` apart
template <class A> void add_samples(const double* partial, A* out, i64 n_, i64 pitch, i64 length) {
  for (i64 l = 0; l < length; ++l) {
    double s = 0;
    for (i64 n = 0; n < n_; ++n) s += partial[n * pitch + l];
    out[l] = A(s);
  }
}

}  // namespace
