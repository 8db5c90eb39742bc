// Strips, and all of coordinate attention that passes over the map.

#include "abi.h"
#include "strips.h"

namespace {

// y = x * (u + h w) with h (N, C, H), w (N, C, W), and u (N, C) or null; with dy also dx = dy * (u + h w)
// (if dx) and dh, dw, du.
template <bool Part, class T>
void coord_nchw(const T* x, const T* dy, T* out, Map m, const Acc<T>* fh, const Acc<T>* fw,
                const Acc<T>* fu, Acc<T>* dh, Acc<T>* dw, Acc<T>* du, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  parallel(m.n * m.c, m.n * m.c * m.h * m.w, threads, [&](i64 plane) {
    if (dy) std::fill_n(dh + plane * m.h, m.h, A(0));
    const V u = all<A>(Part ? fu[plane] : A(0));
    double total = 0;
    columns<A>(m.w, [&](i64 w, auto nv, auto last) FLAT {
      constexpr int NV = decltype(nv)::value;
      V f[NV], col[NV] = {};
      vectors<A, NV>(last, [&](int j, auto r) FLAT {
        f[j] = ld(fw + plane * m.w + w + j * Simd<A>::N, r);
      });
      for (i64 h = 0; h < m.h; ++h) {
        i64 o = (plane * m.h + h) * m.w + w;
        V down = all<A>(fh[plane * m.h + h]), row = {}, sum = {};
        vectors<A, NV>(last, [&](int j, auto r) FLAT {
          i64 at = o + j * Simd<A>::N;
          V v = ld(x + at, r);
          V factor = Part ? u + down * f[j] : down * f[j];
          if (!dy) return st(out + at, v * factor, r);
          V g = ld(dy + at, r);
          if (out) st(out + at, g * factor, r);
          v *= g;
          if (Part) sum += v;
          row += v * f[j];
          col[j] += v * down;
        });
        if (dy) dh[plane * m.h + h] += hsum(row);
        if (Part && dy) total += double(hsum(sum));
      }
      if (dy)
        vectors<A, NV>(last, [&](int j, auto r) FLAT {
          st(dw + plane * m.w + w + j * Simd<A>::N, col[j], r);
        });
    });
    if (Part && dy) du[plane] = A(total);
  });
}

// K positions of a channels_last map side by side, and the factors of each: of their image row, of their
// columns, of the channels. Of the gradients: of the row, of the columns (rows of `pitch`), of the channels.
template <class T> struct CoordStep {
  using A = Acc<T>;
  const A *down, *right, *plus;
  A *row, *col, *total;
  i64 c, pitch;

  // first: the first of their elements.
  template <bool Part, int K> INLINE void run(const T* x, const T* dy, T* out, i64 first) const {
    using V = Vec<A>;
    lanes<A>(0, c, [&](i64 l, auto r) FLAT {
      V d = ld(down + l, r), acc = dy ? ld(row + l, Full<A>{}) : V{}, sum = {};
      V b = Part ? ld(plus + l, r) : V{};
      for (int k = 0; k < K; ++k) {
        i64 o = first + k * c + l;
        V f = ld(right + k * c + l, r), v = ld(x + o, r);
        V factor = Part ? b + d * f : d * f;
        if (!dy) {
          st(out + o, v * factor, r);
          continue;
        }
        V g = ld(dy + o, r);
        if (out) st(out + o, g * factor, r);
        v *= g;
        if (Part) sum += v;
        acc += v * f;
        A* at = col + k * pitch + l;
        st(at, ld(at, Full<A>{}) + v * d, Full<A>{});
      }
      if (dy) st(row + l, acc, Full<A>{});
      if (Part && dy) st(total + l, ld(total + l, Full<A>{}) + sum, Full<A>{});
    });
  }
};

template <bool Part, class T>
void coord_nhwc(const T* x, const T* dy, T* out, Map m, const Acc<T>* fh, const Acc<T>* fw,
                const Acc<T>* fu, Acc<T>* dh, Acc<T>* dw, Acc<T>* du, int threads) {
  using A = Acc<T>;
  i64 pitch = padded<A>(m.c), wide = m.w * pitch;
  Cut cut(m.n, m.h, 1);
  i64 units = m.n * cut.parts;
  Scratch<A> hc(m.n * m.c * m.h), wc(m.n * m.c * m.w), cols(dy ? units * wide : 0);
  transpose<A>(fh, hc + 0, m.n, m.c, m.h, threads);
  transpose<A>(fw, wc + 0, m.n, m.c, m.w, threads);
  Scratch<A> rows(dy ? m.n * m.h * m.c : 0), sums(dy ? m.n * m.w * m.c : 0);
  const bool more = Part && dy;
  Scratch<A> totals(more ? units * pitch : 0);
  parallel(units, m.n * m.h * m.w * m.c, threads, [&](i64 u) {
    i64 n = u / cut.parts, h0 = u % cut.parts * cut.size, h1 = std::min(h0 + cut.size, m.h);
    A *col = cols + (dy ? u * wide : 0), *total = totals + (more ? u * pitch : 0);
    if (dy) std::fill_n(col, wide, A(0));
    if (more) std::fill_n(total, pitch, A(0));
    Scratch<A> row(pitch);
    for (i64 h = h0; h < h1; ++h) {
      if (dy) std::fill_n(row + 0, pitch, A(0));
      auto step = [&](i64 w, auto k) FLAT {
        i64 first = ((n * m.h + h) * m.w + w) * m.c;
        CoordStep<T> at{hc + (n * m.h + h) * m.c, wc + (n * m.w + w) * m.c, Part ? fu + n * m.c : nullptr,
                        row + 0, col + w * pitch, total, m.c, pitch};
        at.template run<Part, decltype(k)::value>(x, dy, out, first);
      };
      i64 w = 0;
      for (; long_rows<T>(m.c) && w + 4 <= m.w; w += 4) step(w, std::integral_constant<int, 4>{});
      for (; w < m.w; ++w) step(w, std::integral_constant<int, 1>{});
      if (dy) std::copy_n(row + 0, m.c, rows + (n * m.h + h) * m.c);
    }
  });
  if (!dy) return;
  join_columns(cols + 0, sums + 0, m, cut.parts, pitch, 1, threads);
  transpose<A>(rows + 0, dh, m.n, m.h, m.c, threads);
  transpose<A>(sums + 0, dw, m.n, m.w, m.c, threads);
  if (more) add_parts<A>(totals + 0, du, m.n, cut.parts, pitch, m.c, 1., threads);
}

// dx = dy * (u + h w) + gch / W + gcw / H: coordinate attention's map gradient; u, gch, gcw may be null.
template <class T>
void coord_dx(const T* dy, T* dx, Map m, bool last, const Acc<T>* fh, const Acc<T>* fw,
              const Acc<T>* fu, const Acc<T>* gch, const Acc<T>* gcw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A ih = A(1. / m.h), iw = A(1. / m.w);
  i64 size = m.n * m.c * m.h * m.w;
  if (!last) {
    parallel(m.n * m.c, size, threads, [&](i64 plane) {
      const A *right = fw + plane * m.w, *down = fh + plane * m.h;
      const V u = all<A>(fu ? fu[plane] : A(0));
      columns<A>(m.w, [&](i64 w, auto nv, int count) FLAT {
        constexpr int NV = decltype(nv)::value;
        V f[NV], t[NV];
        vectors<A, NV>(count, [&](int j, auto r) FLAT {
          f[j] = ld(right + w + j * Simd<A>::N, r);
          t[j] = gcw ? ld(gcw + plane * m.w + w + j * Simd<A>::N, r) * ih : V{};
        });
        for (i64 h = 0; h < m.h; ++h) {
          i64 o = (plane * m.h + h) * m.w + w;
          V d = all<A>(down[h]), g = all<A>(gch ? gch[plane * m.h + h] * iw : A(0));
          vectors<A, NV>(count, [&](int j, auto r) FLAT {
            i64 at = o + j * Simd<A>::N;
            st(dx + at, ld(dy + at, r) * (u + d * f[j]) + (g + t[j]), r);
          });
        }
      });
    });
    return;
  }
  Scratch<A> turned(2 * m.n * m.c * (m.h + m.w));
  A *hc = turned + 0, *wc = hc + m.n * m.c * m.h, *gh = wc + m.n * m.c * m.w,
    *gw = gh + m.n * m.c * m.h;
  transpose<A>(fh, hc, m.n, m.c, m.h, threads);
  transpose<A>(fw, wc, m.n, m.c, m.w, threads);
  if (gch) transpose<A>(gch, gh, m.n, m.c, m.h, threads);
  if (gcw) transpose<A>(gcw, gw, m.n, m.c, m.w, threads);
  parallel(m.n * m.h, size, threads, [&](i64 nh) {
    for (i64 w = 0; w < m.w; ++w) {
      i64 o = (nh * m.w + w) * m.c, nw = nh / m.h * m.w + w;
      lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
        V f = ld(hc + nh * m.c + c, r) * ld(wc + nw * m.c + c, r);
        if (fu) f += ld(fu + nh / m.h * m.c + c, r);
        V v = ld(dy + o + c, r) * f;
        if (gch) v += ld(gh + nh * m.c + c, r) * iw;
        if (gcw) v += ld(gw + nw * m.c + c, r) * ih;
        st(dx + o + c, v, r);
      });
    }
  });
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

void mmattn_strips(int dtype, const Element* x, i64 n, i64 c, i64 h, i64 w, int last, Sum* ch,
                   Sum* cw, Sum* hw, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    (last ? strips_nhwc<T> : strips_nchw<T>)((const T*)x, Map{n, c, h, w}, (A_*)ch, (A_*)cw, (A_*)hw,
                                             threads);
  });
}

void mmattn_strips_grad(int dtype, const Element* gx, Element* dx, i64 n, i64 c, i64 h, i64 w,
                        int last, const Sum* gch, const Sum* gcw, const Sum* ghw, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    strips_grad<false>(Plain<T>{(const T*)gx, last ? c : h * w}, (T*)dx, Map{n, c, h, w}, last,
                       (const A_*)gch, (const A_*)gcw, (const A_*)ghw, threads);
  });
}

// dy null: out = x * (fu + fh fw), fu null: zero. Else out = dx (or null), and dh, dw, du are written.
void mmattn_coord(int dtype, const Element* x, const Element* dy, Element* out, i64 n, i64 c, i64 h,
                  i64 w, int last, const Sum* fh, const Sum* fw, const Sum* fu, Sum* dh, Sum* dw,
                  Sum* du, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto f = fu ? (last ? coord_nhwc<true, T> : coord_nchw<true, T>)
                : (last ? coord_nhwc<false, T> : coord_nchw<false, T>);
    f((const T*)x, (const T*)dy, (T*)out, Map{n, c, h, w}, (const A_*)fh, (const A_*)fw,
      (const A_*)fu, (A_*)dh, (A_*)dw, (A_*)du, threads);
  });
}

void mmattn_coord_dx(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                     const Sum* fh, const Sum* fw, const Sum* fu, const Sum* gch, const Sum* gcw,
                     int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    coord_dx<T>((const T*)dy, (T*)dx, Map{n, c, h, w}, last, (const A_*)fh, (const A_*)fw,
                (const A_*)fu, (const A_*)gch, (const A_*)gcw, threads);
  });
}

void mmattn_outer(int dtype, i64 n, i64 h, i64 w, const Sum* fh, const Sum* fw, Sum* q, int) {
  typed(dtype, [&](auto tag) {
    outer<A_>((const A_*)fh, (const A_*)fw, (A_*)q, Map{n, 0, h, w});
  });
}

void mmattn_outer_grad(int dtype, i64 n, i64 h, i64 w, const Sum* fh, const Sum* fw, const Sum* dq,
                       Sum* dh, Sum* dw, int) {
  typed(dtype, [&](auto tag) {
    outer_grad<A_>((const A_*)fh, (const A_*)fw, (const A_*)dq, (A_*)dh, (A_*)dw, Map{n, 0, h, w});
  });
}

}  // namespace

SHOW(
    ENTRY(strips),
    ENTRY(strips_grad),
    ENTRY(coord),
    ENTRY(coord_dx),
    ENTRY(outer),
    ENTRY(outer_grad))
