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

// The two filtered maxima of contiguous planes, two at once: they are copied into a zero frame, so that
// both filters run over each as over one long row, the second some vectors behind the first, while what
// that left is in cache; `frame` is -infinity on the frame's columns.
template <class A> struct Filter {
  static constexpr i64 N = Simd<A>::N, kChunk = 32 * N;
  i64 h, w, p, pitch, size, lag;
  const A* taps;
  std::vector<A> plane[2], column[2], frame;
  Filter(Map m, const A* taps_, i64 k)
      : h(m.h), w(m.w), p(k / 2), pitch(m.w + 2 * p), size(padded<A>(m.h * pitch)), lag(padded<A>(p)),
        taps(taps_), frame(size, -std::numeric_limits<A>::infinity()) {
    for (auto& v : plane) v.resize(size + 2 * p * pitch + N);
    for (auto& v : column) v.resize(size + 2 * p + N);
    for (i64 i = 0; i < h; ++i) std::fill_n(frame.data() + i * pitch + p, w, A(0));
  }

  template <class T> void load(int k, const T* x) {
    A* to = plane[k].data() + p * pitch + p;
    for (i64 i = 0; i < h; ++i)
      lanes<A>(0, w, [&](i64 j, auto n) FLAT { st(to + i * pitch + j, ld(x + i * w + j, n), n); });
  }

  // Of `count` planes, 1 or 2, that were loaded, the first of which is `channel`: of each the largest value
  // that is left by the filter along H, with its position; and (best not null) each position's largest of
  // what the one along W leaves of that, with its channel. Of these nothing is there yet if `first`.
  void maxima(int count, A* top, int32_t* where, A* best, Index<A>* at, i64 channel, bool first) {
    auto run = p == 2 ? (count == 2 ? &Filter::run<5, 2> : &Filter::run<5, 1>)
                      : (count == 2 ? &Filter::run<0, 2> : &Filter::run<0, 1>);
    (this->*run)(top, where, best, at, Index<A>(channel), first);
  }
  template <int TAPS, int K>
  void run(A* top, int32_t* where, A* best, Index<A>* at, Index<A> channel, bool first) {
    Peak<A> tops[K];
    for (i64 begin = 0; begin < size + lag; begin += kChunk) {
      i64 end = begin + kChunk;
      for (int k = 0; k < K; ++k) along_h<TAPS>(k, begin, std::min(end, size), &tops[k]);
      if (!best) continue;
      along_w<TAPS, K>(std::max<i64>(begin - lag, 0), std::min(end - lag, size), best, at, channel, first);
    }
    for (int k = 0; k < K; ++k) {
      tops[k].best(top + k, where + k);
      // All -infinity: any position will do, a column of the frame will not.
      i64 i = where[k];
      where[k] = int32_t(frame[i] == 0 ? i / pitch * w + i % pitch - p : 0);
    }
  }
  template <int TAPS> INLINE void along_h(int k, i64 begin, i64 end, Peak<A>* to) {
    const i64 count = TAPS ? TAPS : 2 * p + 1, down = pitch;
    const Taps<A, TAPS> tap(taps);
    const A *in = plane[k].data(), *around = frame.data();
    A* out = column[k].data() + p;
    Peak<A> top = *to;
    const Int<A> ramp = iota<A>();
    lanes<A>(begin, end, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(in + l, n) * tap[0];
      for (i64 j = 1; j < count; ++j) v += ld(in + l + j * down, n) * tap[j];
      st(out + l, v, n);
      top.add(v + ld(around + l, n), ramp + Index<A>(l));
    });
    *to = top;
  }
  template <int TAPS, int K>
  INLINE void along_w(i64 begin, i64 end, A* best, Index<A>* at, Index<A> channel, bool first) const {
    const i64 count = TAPS ? TAPS : 2 * p + 1;
    const Taps<A, TAPS> tap(taps);
    const A* in[2] = {column[0].data(), column[1].data()};
    lanes<A>(begin, end, [&](i64 l, auto n) FLAT {
      Peak<A> top;
      if (!first) {
        top.value = ld(best + l, n);
        std::memcpy(&top.index, at + l, kBytes);
      }
      for (int k = 0; k < K; ++k) {
        Vec<A> v = ld(in[k] + l, n) * tap[0];
        for (i64 j = 1; j < count; ++j) v += ld(in[k] + l + j, n) * tap[j];
        top.add(v, Int<A>{} + (channel + k));
      }
      st(best + l, top.value, n);
      std::memcpy(at + l, &top.index, kBytes);
    });
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

  // Filters image row h of a sample along H, and what that leaves along W, p positions behind, while it is
  // in cache. Each channel's maximum so far, with its position, is in best and at (none: null), of which
  // nothing is there yet if `first`; top (none: null) and where: each position's maximum over the channels.
  void maxima(const T* xn, i64 h, A* best, Index<A>* at, bool first, A* top, int32_t* where) {
    i64 k0 = std::max<i64>(0, p - h), k1 = std::min(k, m.h + p - h);
    for (i64 w = 0; w < m.w + p; ++w) {
      const T* in = xn + ((h + k0 - p) * m.w + w) * m.c;
      A* out = column + (w + p) * pitch;
      const Index<A> position(h * m.w + w);
      if (w < m.w && k1 - k0 == 5) along_h<5>(in, taps + k0, 5, out, position, best, at, first && w == 0);
      else if (w < m.w) along_h<0>(in, taps + k0, k1 - k0, out, position, best, at, first && w == 0);
      if (top && w >= p) k == 5 ? along_w<5>(w - p, top, where) : along_w<0>(w - p, top, where);
    }
  }
  template <int TAPS>
  INLINE void along_h(const T* in, const A* taps_, i64 count, A* out, Index<A> position, A* best,
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

  template <int TAPS> INLINE void along_w(i64 w, A* best, int32_t* at) const {
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
    top.best(best + w, at + w);
  }
};

}  // namespace
