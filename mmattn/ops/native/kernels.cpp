// The CPU kernels of mmattn's fast ops: plain C++17 behind a C ABI, no torch headers.
//
// Two memory layouts, one code: a sample is a matrix of R rows by L contiguous lanes, (C, H*W) for
// a contiguous tensor and (H*W, C) for a channels_last one. A gate whose factor is a function of
// channel and position is then a function of row and lane, and swapping the layout swaps the two.
//
// Deterministic: work is cut by shape alone (never by the number of threads), every cut writes its
// own partial result, and these are added in order. Sums run in float inside a cut and in double
// across cuts, so that no running sum gets long.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <vector>

#ifdef __SSE__
#include <xmmintrin.h>
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define MASKED 1
#endif

#define FLAT __attribute__((always_inline))
#define INLINE inline FLAT

namespace {

using i64 = int64_t;

// ---------------------------------------------------------------------------------- vectors

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class A> struct Simd;
template <> struct Simd<float> {
  static constexpr int N = kBytes / 4;
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  typedef uint32_t U __attribute__((vector_size(kBytes)));
  typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
};
template <> struct Simd<double> {
  static constexpr int N = kBytes / 8;
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
};
template <class A> using Vec = typename Simd<A>::V;
template <class A> using Int = typename Simd<A>::I;
template <class A> using Full = std::integral_constant<int, Simd<A>::N>;
template <class A> using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
using VF = Vec<float>;
using UF = Simd<float>::U;

// The accumulator type of a storage type.
template <class T> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <class T> using Acc = typename AccOf<T>::type;

INLINE VF widen(Simd<float>::Half h, bf16) {
  return (VF)(__builtin_convertvector(h, UF) << 16);
}
INLINE Simd<float>::Half narrow(VF v, bf16) {  // to nearest even; a NaN stays one
  UF u = (UF)v;
  UF r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  r = v != v ? (r & 0u) + 0x7fc0u : r;
  return __builtin_convertvector(r, Simd<float>::Half);
}
INLINE VF widen(Simd<float>::Half h, f16) {
  UF u = __builtin_convertvector(h, UF);
  UF o = (u & 0x7fffu) << 13, e = o & 0x0f800000u;
  o += 112u << 23;                                      // rebias the exponent
  o = e == 0x0f800000u ? o + (112u << 23) : o;          // infinity, NaN
  VF sub = (VF)(o + (1u << 23)) - (VF)(o * 0u + (113u << 23));  // denormal
  o = e == 0u ? (UF)sub : o;
  return (VF)(o | ((u & 0x8000u) << 16));
}
INLINE Simd<float>::Half narrow(VF v, f16) {  // to nearest even
  UF u = (UF)v, sign = u & 0x80000000u;
  u ^= sign;
  UF magic = u * 0u + (126u << 23);
  UF small = (UF)((VF)u + (VF)magic) - magic;           // denormal: the adder rounds
  UF normal = (u + 0xc8000fffu + ((u >> 13) & 1u)) >> 13;
  UF large = u > (255u << 23) ? u * 0u + 0x7e00u : u * 0u + 0x7c00u;
  UF o = u >= (143u << 23) ? large : (u < (113u << 23) ? small : normal);
  return __builtin_convertvector(o | (sign >> 16), Simd<float>::Half);
}

template <class T, class A = Acc<T>> INLINE Vec<A> ld(const T* p, Full<A>) {
  if constexpr (std::is_same_v<T, A>) {
    Vec<A> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else {
    Simd<float>::Half h;
    std::memcpy(&h, p, sizeof h);
    return widen(h, T{});
  }
}
template <class T, class A = Acc<T>> INLINE void st(T* p, Vec<A> v, Full<A>) {
  if constexpr (std::is_same_v<T, A>) {
    std::memcpy(p, &v, sizeof v);
  } else {
    auto h = narrow(v, T{});
    std::memcpy(p, &h, sizeof h);
  }
}
// The last n lanes of a row; the vector's others are zero.
template <class T, class A = Acc<T>> INLINE Vec<A> ld(const T* p, int n) {
#ifdef MASKED
  if constexpr (std::is_same_v<T, float>) return (VF)_mm512_maskz_loadu_ps((1u << n) - 1u, p);
  if constexpr (sizeof(T) == 2)
    return widen((Simd<float>::Half)_mm256_maskz_loadu_epi16((1u << n) - 1u, p), T{});
#endif
  T buf[Simd<A>::N] = {};
  for (int i = 0; i < n; ++i) buf[i] = p[i];
  return ld(buf, Full<A>{});
}
template <class T, class A = Acc<T>> INLINE void st(T* p, Vec<A> v, int n) {
#ifdef MASKED
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, (1u << n) - 1u, (__m512)v);
  if constexpr (sizeof(T) == 2)
    return _mm256_mask_storeu_epi16(p, (1u << n) - 1u, (__m256i)narrow(v, T{}));
#endif
  T buf[Simd<A>::N];
  st(buf, v, Full<A>{});
  for (int i = 0; i < n; ++i) p[i] = buf[i];
}

// A store past the caches: a line that is written whole need not be fetched first. For results that
// the caches cannot keep, of aligned rows (`streams`); the loop ends with a `fence`.
constexpr i64 kKept = 16 << 20;  // bytes
#ifdef MASKED
template <class T> bool streams(const T* to, i64 total, i64 lanes_) {
  return total * i64(sizeof(T)) >= kKept && (reinterpret_cast<uintptr_t>(to) & 63) == 0 &&
         lanes_ * i64(sizeof(T)) % 64 == 0;
}
template <class T, class A = Acc<T>> INLINE void stream(T* p, Vec<A> v, Full<A>) {
  if constexpr (std::is_same_v<T, A>)
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
  else
    _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v, T{}));
}
inline void fence() { _mm_sfence(); }
#else
template <class T> bool streams(const T*, i64, i64) { return false; }
template <class T, class A = Acc<T>> INLINE void stream(T* p, Vec<A> v, Full<A> n) { st(p, v, n); }
inline void fence() {}
#endif
template <class T, class A = Acc<T>> INLINE void stream(T* p, Vec<A> v, int n) { st(p, v, n); }
template <bool Past, class T, class N> INLINE void store(T* p, Vec<Acc<T>> v, N n) {
  if constexpr (Past) stream(p, v, n);
  else st(p, v, n);
}

template <class T> INLINE Acc<T> get(const T* p) { return ld(p, 1)[0]; }
template <class T> INLINE void put(T* p, Acc<T> v) { st(p, Vec<Acc<T>>{} + v, 1); }

// f(first lane, number of lanes): full vectors, then the rest.
template <class A, class F> INLINE void lanes(i64 begin, i64 end, F&& f) {
  i64 l = begin;
  for (; l + Simd<A>::N <= end; l += Simd<A>::N) f(l, Full<A>{});
  if (l < end) f(l, int(end - l));
}

template <class A> INLINE Vec<A> all(A v) { return Vec<A>{} + v; }
template <class A> INLINE Int<A> iota() {
  Int<A> i;
  for (int k = 0; k < Simd<A>::N; ++k) i[k] = k;
  return i;
}
// A vector's halves added until it has so many bytes.
template <size_t Bytes, class V> INLINE auto folded(V v) {
  if constexpr (sizeof v == Bytes) {
    return v;
  } else {
    typedef std::remove_reference_t<decltype(v[0])> Half __attribute__((vector_size(sizeof(V) / 2)));
    Half h[2];
    std::memcpy(h, &v, sizeof v);
    return folded<Bytes>(Half(h[0] + h[1]));
  }
}
template <class V> INLINE auto hsum(V v) {
  auto pair = folded<2 * sizeof(v[0])>(v);
  return pair[0] + pair[1];
}

// The four sums are added to `to`.
template <class V, class A> INLINE void add_hsums(const V* v, A* to) {
#ifdef __SSE__
  if constexpr (std::is_same_v<A, float>) {
    __m128 a = (__m128)folded<16>(v[0]), b = (__m128)folded<16>(v[1]), c = (__m128)folded<16>(v[2]),
           d = (__m128)folded<16>(v[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_storeu_ps(to, _mm_loadu_ps(to) + ((a + c) + (b + d)));
  }
#endif
  for (int i = 0; i < 4; ++i) to[i] += hsum(v[i]);
}

// e^x, relative error below 2e-7 (float); below -87 the smallest normal number stands for zero.
INLINE VF vexp(VF x) {
  const VF lo = all<float>(-87.3f), hi = all<float>(88.7f);
  x = x < lo ? lo : x;
  x = x > hi ? hi : x;
  const VF shift = all<float>(12582912.f);              // 1.5 * 2^23: rounds to an integer
  VF k = x * 1.44269504088896f + shift;
  UF bits = (UF)k;
  k -= shift;
  VF r = x - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  VF p = all<float>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return p * (VF)((bits + 127u) << 23);
}
INLINE Vec<double> vexp(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < Simd<double>::N; ++i) y[i] = std::exp(x[i]);
  return y;
}

template <class A> INLINE bool beats(A v, A than) { return v > than || (v != v && than == than); }

// Running maximum with its index; a NaN, once seen, stays.
template <class A> struct Peak {
  Vec<A> value = all<A>(-std::numeric_limits<A>::infinity());
  Int<A> index = {};
  INLINE void add(Vec<A> v, Int<A> at) {
    Int<A> take = (v > value) | (v != v);
    value = take ? v : value;
    index = take ? at : index;
  }
  INLINE void raise(Vec<A> v, Int<A> at) {  // where no NaN comes, or need not stay
    Int<A> take = v > value;
    value = take ? v : value;
    index = take ? at : index;
  }
  INLINE void best(A* top, int32_t* at) const {  // over the lanes, the first of equals
    A v = value[0];
    Index<A> i = index[0];
    for (int k = 1; k < Simd<A>::N; ++k)
      if (beats(A(value[k]), v) || (value[k] == v && index[k] < i)) v = value[k], i = index[k];
    *top = v;
    *at = int32_t(i);
  }
};
template <class A> INLINE Vec<A> outside(Vec<A> v, int n) {  // lanes from n on: -infinity
  return iota<A>() < Int<A>{} + n ? v : all<A>(-std::numeric_limits<A>::infinity());
}

// ------------------------------------------------------------------------------------- work

struct Shape { i64 n, rows, lanes; };

// Each thread takes an equal run of the units. An exception may not leave a parallel region: it is
// carried out, one of several. It is caught outside the loop over the units, which it would slow down.
template <class F> void parallel(i64 units, i64 elements, int threads, F&& f) {
  if (threads > units) threads = int(units);
  if (elements < 65536) threads = 1;  // waking a thread costs more
  std::exception_ptr failure;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; ++t) {
    try {
      for (i64 u = units * t / threads, end = units * (t + 1) / threads; u < end; ++u) f(u);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
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

// Several rows at once only where each lies in pages of its own: the prefetchers follow one stream in
// a page, and short rows are a single stream anyway.
template <class T> bool long_rows(i64 lanes_) { return lanes_ * i64(sizeof(T)) >= 4096; }

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

// ------------------------------------------------------------------------------------- gates

// y = x * f(a, b): a belongs to the row, b to the lane. `back` adds P * df/da to ra and
// P * df/db to lb, with P = dy * x.
struct RowGate {
  static constexpr int rows = 1, lanes = 0;
  template <class V> static INLINE V f(const V* a, const V*) { return a[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V* ra, V*) { ra[0] += p; }
};
struct LaneGate {
  static constexpr int rows = 0, lanes = 1;
  template <class V> static INLINE V f(const V*, const V* b) { return b[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V*, V* lb) { lb[0] += p; }
};
struct ProductGate {
  static constexpr int rows = 1, lanes = 1;
  template <class V> static INLINE V f(const V* a, const V* b) { return a[0] * b[0]; }
  template <class V> static INLINE void back(V p, const V* a, const V* b, V* ra, V* lb) {
    ra[0] += p * b[0];
    lb[0] += p * a[0];
  }
};
struct SumGate {
  static constexpr int rows = 1, lanes = 1;
  template <class V> static INLINE V f(const V* a, const V* b) { return a[0] + b[0]; }
  template <class V> static INLINE void back(V p, const V*, const V*, V* ra, V* lb) {
    ra[0] += p;
    lb[0] += p;
  }
};
struct DualGate {  // A + (1 - A) * A2 with A = a0 b0, A2 = a1 b1: DRTAM, eq. (1)
  static constexpr int rows = 2, lanes = 2;
  template <class V> static INLINE V f(const V* a, const V* b) {
    V u = a[0] * b[0], v = a[1] * b[1];
    return u + (1 - u) * v;
  }
  template <class V> static INLINE void back(V p, const V* a, const V* b, V* ra, V* lb) {
    V pu = p * (1 - a[1] * b[1]), pv = p * (1 - a[0] * b[0]);
    ra[0] += pu * b[0];
    lb[0] += pu * a[0];
    ra[1] += pv * b[1];
    lb[1] += pv * a[1];
  }
};

// K rows at once, so that a lane's factors are fetched once for all of them.
template <class G, int K, bool Past, class T>
INLINE void gate_rows(const T* x, T* y, i64 n_lanes, const Acc<T>* const* a,
                      const Acc<T>* const* b) {
  using A = Acc<T>;
  using V = Vec<A>;
  V av[K][2], bv[2];
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) av[k][i] = all<A>(a[i][k]);
  lanes<A>(0, n_lanes, [&](i64 l, auto n) FLAT {
    for (int i = 0; i < G::lanes; ++i) bv[i] = ld(b[i] + l, n);
    for (int k = 0; k < K; ++k)
      store<Past>(y + k * n_lanes + l, ld(x + k * n_lanes + l, n) * G::f(av[k], bv), n);
  });
}

template <class G, class T>
void gate(const T* x, T* y, Shape s, const Acc<T>* const* a, const Acc<T>* const* b, int threads) {
  constexpr i64 K = 4;
  bool together = G::lanes && long_rows<T>(s.lanes);
  bool past = streams(y, s.n * s.rows * s.lanes, s.lanes);
  i64 groups = (s.rows + K - 1) / K;
  parallel(s.n * groups, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / groups, r = n * s.rows + u % groups * K, end = std::min(r + K, (n + 1) * s.rows);
    const Acc<T>*ar[2], *br[2];
    auto step = [&](auto k) FLAT {
      for (int i = 0; i < G::rows; ++i) ar[i] = a[i] + r;
      for (int i = 0; i < G::lanes; ++i) br[i] = b[i] + n * s.lanes;
      auto f = past ? gate_rows<G, decltype(k)::value, true, T>
                    : gate_rows<G, decltype(k)::value, false, T>;
      f(x + r * s.lanes, y + r * s.lanes, s.lanes, ar, br);
      r += decltype(k)::value;
    };
    if (together && r + K == end) step(std::integral_constant<int, K>{});
    while (r < end) step(std::integral_constant<int, 1>{});
    if (past) fence();
  });
}

// The same for the gradients.
template <class G, int K, class T>
INLINE void gate_grad_rows(const T* x, const T* dy, T* dx, i64 pitch, i64 begin, i64 end,
                           const Acc<T>* const* a, const Acc<T>* const* b, double (*row_sum)[2],
                           Acc<T>* const* lane_sum) {
  using A = Acc<T>;
  using V = Vec<A>;
  V av[K][2], ra[K][2];
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) av[k][i] = all<A>(a[i][k]), ra[k][i] = V{};
  lanes<A>(begin, end, [&](i64 l, auto n) FLAT {
    V bv[2], lb[2];
    for (int i = 0; i < G::lanes; ++i) {
      bv[i] = ld(b[i] + l, n);
      lb[i] = ld(lane_sum[i] + l, Full<A>{});
    }
    for (int k = 0; k < K; ++k) {
      V g = ld(dy + k * pitch + l, n);
      V p = ld(x + k * pitch + l, n) * g;
      if (dx) st(dx + k * pitch + l, g * G::f(av[k], bv), n);
      G::back(p, av[k], bv, ra[k], lb);
    }
    for (int i = 0; i < G::lanes; ++i) st(lane_sum[i] + l, lb[i], Full<A>{});
  });
  for (int k = 0; k < K; ++k)
    for (int i = 0; i < G::rows; ++i) row_sum[k][i] += hsum(ra[k][i]);
}

template <class G, class T>
void gate_grad(const T* x, const T* dy, T* dx, Shape s, const Acc<T>* const* a,
               const Acc<T>* const* b, Acc<T>* const* da, Acc<T>* const* db, int threads) {
  using A = Acc<T>;
  Cut cut(s.n, s.rows);
  i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
  Scratch<A> partial(G::lanes * units * pitch);
  parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
    A* lane_sum[2];
    const A* br[2];
    for (int i = 0; i < G::lanes; ++i) {
      lane_sum[i] = partial + (i * units + u) * pitch;
      std::fill_n(lane_sum[i], pitch, A(0));
      br[i] = b[i] + n * s.lanes;
    }
    std::vector<double> sums(2 * (r1 - r0), 0.);
    auto row_sum = (double (*)[2])sums.data();
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      i64 l1 = std::min(l0 + kTile, s.lanes);
      i64 r = r0;
      auto step = [&](auto k) FLAT {
        i64 at = n * s.rows + r;
        const A* ar[2];
        for (int i = 0; i < G::rows; ++i) ar[i] = a[i] + at;
        i64 off = at * s.lanes;
        gate_grad_rows<G, decltype(k)::value>(x + off, dy + off, dx ? dx + off : dx, s.lanes, l0,
                                              l1, ar, br, row_sum + (r - r0), lane_sum);
        r += decltype(k)::value;
      };
      while (long_rows<T>(s.lanes) && r + 4 <= r1) step(std::integral_constant<int, 4>{});
      while (r < r1) step(std::integral_constant<int, 1>{});
    }
    for (int i = 0; i < G::rows; ++i)
      for (i64 r = r0; r < r1; ++r) da[i][n * s.rows + r] = A(row_sum[r - r0][i]);
  });
  for (int i = 0; i < G::lanes; ++i)
    add_parts<A>(partial + i * units * pitch, db[i], s.n, cut.parts, pitch, s.lanes, 1., threads);
}

// ------------------------------------------------------------------------------- row, lane pools

// Mean and maximum over the lanes of each row of x * b (b: lane factor or null).
template <class T>
void row_pool(const T* x, Shape s, const Acc<T>* b, Acc<T>* mean, Acc<T>* peak, int32_t* at,
              int threads) {
  using A = Acc<T>;
  using I = Index<A>;
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    const T* xr = x + r * s.lanes;
    const A* br = b ? b + r / s.rows * s.lanes : nullptr;
    double total = 0;
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      Vec<A> sum = {};
      lanes<A>(l0, std::min(l0 + kTile, s.lanes), [&](i64 l, auto n) FLAT {
        Vec<A> v = ld(xr + l, n);
        if (br) v *= ld(br + l, n);
        sum += v;
        if (peak) {
          if (n < Simd<A>::N) v = outside<A>(v, n);
          top.add(v, ramp + I(l));
        }
      });
      total += hsum(sum);
    }
    mean[r] = A(total / s.lanes);
    if (!peak) return;
    top.best(peak + r, at + r);
  });
}

// Mean and maximum over the rows of each lane of x * a (a: row factor or null).
template <class T>
void lane_pool(const T* x, Shape s, const Acc<T>* a, Acc<T>* mean, Acc<T>* peak, int32_t* at,
               int threads) {
  using A = Acc<T>;
  using I = Index<A>;
  Cut cut(s.n, s.rows);
  i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
  Scratch<A> sums(units * pitch), tops(peak ? units * pitch : 0);
  Scratch<I> where(peak ? units * pitch : 0);
  parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
    i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
    for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
      i64 l1 = std::min(l0 + kTile, s.lanes);
      for (i64 r = r0; r < r1;) {
        int k1 = long_rows<T>(s.lanes) ? int(std::min<i64>(4, r1 - r)) : 1;
        const T* xr = x + (n * s.rows + r) * s.lanes;
        A ar[4];
        for (int k = 0; k < k1; ++k) ar[k] = a ? a[n * s.rows + r + k] : A(1);
        lanes<A>(l0, l1, [&](i64 l, auto m) FLAT {
          Vec<A> sum = r == r0 ? Vec<A>{} : ld(sums + u * pitch + l, Full<A>{});
          Peak<A> top;
          if (peak && r != r0) {
            top.value = ld(tops + u * pitch + l, Full<A>{});
            std::memcpy(&top.index, where + u * pitch + l, kBytes);
          }
          for (int k = 0; k < k1; ++k) {
            Vec<A> v = ld(xr + k * s.lanes + l, m) * ar[k];
            sum += v;
            if (peak) top.add(v, Int<A>{} + I(r + k));
          }
          st(sums + u * pitch + l, sum, Full<A>{});
          if (peak) {
            st(tops + u * pitch + l, top.value, Full<A>{});
            std::memcpy(where + u * pitch + l, &top.index, kBytes);
          }
        });
        r += k1;
      }
    }
  });
  add_parts<A>(sums + 0, mean, s.n, cut.parts, pitch, s.lanes, 1. / s.rows, threads);
  if (!peak) return;
  for (i64 n = 0; n < s.n; ++n)
    for (i64 l = 0; l < s.lanes; ++l) {
      i64 i = n * cut.parts * pitch + l;
      A best = tops[i];
      I arg = where[i];
      for (i64 q = 1; q < cut.parts; ++q)
        if (beats(tops[i + q * pitch], best)) best = tops[i + q * pitch], arg = where[i + q * pitch];
      peak[n * s.lanes + l] = best;
      at[n * s.lanes + l] = int32_t(arg);
    }
}

// What comes in at a row of the sample matrices (the rows of all samples counted on), in vectors: dy * f
// of a gate's factors, or a gradient itself, or nothing (a null pointer).
template <class G, class T> struct Gated {
  using A = Acc<T>;
  using V = Vec<A>;
  struct Lanes { V b[2]; };  // of all rows of a sample
  struct Row {
    const T* dy;
    V a[2];
    const A* b[2];
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

// A maximum's gradient lands on single elements. They are worked out before the dense pass (which
// may overwrite gx) and written after it, so that each is rounded once.
struct Spot { i64 offset; double value; };

template <class T> void write_spots(T* dx, const std::vector<Spot>& spots) {
  for (const Spot& s : spots) put(dx + s.offset, Acc<T>(s.value));
}

// dx = incoming + a (row) + b (lane), either may be null, + the gradient of a maximum over the lanes of
// each row (at, g: one for each row) or over the rows of each lane (one for each lane).
template <class T, class F>
void pool_grad(const F& incoming, T* dx, Shape s, const Acc<T>* a, const Acc<T>* b, double scale,
               const Acc<T>* g, const int32_t* at, bool per_row, int threads) {
  using A = Acc<T>;
  std::vector<Spot> spots;
  if (g) {
    i64 each = per_row ? s.rows : s.lanes;
    spots.resize(s.n * each);
    for (i64 i = 0; i < s.n * each; ++i) {
      i64 n = i / each, r = per_row ? i % each : at[i], l = per_row ? at[i] : i % each;
      double v = double(single(incoming, n * s.rows + r, l)) + double(g[i]);
      if (a) v += double(a[n * s.rows + r]) * scale;
      if (b) v += double(b[n * s.lanes + l]) * scale;
      spots[i] = {(n * s.rows + r) * s.lanes + l, v};
    }
  }
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    Vec<A> av = all<A>(a ? A(a[r] * scale) : A(0));
    const A* br = b ? b + r / s.rows * s.lanes : nullptr;
    auto in = incoming(r);
    lanes<A>(0, s.lanes, [&](i64 l, auto n) FLAT {
      Vec<A> v = in(in.lanes(l, n), l, n) + av;
      if (br) v += ld(br + l, n) * A(scale);
      st(dx + r * s.lanes + l, v, n);
    });
  });
  write_spots(dx, spots);
}

// -------------------------------------------------------------------- CBAM's second pool, backward

// z = x * c; dx = c * (ga + [argmax] gm) (null: not wanted), dc = sum of x * (ga + [argmax] gm); ga, gm: one for
// each position, null for zero. c belongs to the rows if `row_c`, else to the lanes.
template <class T>
void spatial_pool_grad(const T* x, T* dx, Shape s, bool row_c, const Acc<T>* c,
                       const Acc<T>* ga, const Acc<T>* gm, const int32_t* at, Acc<T>* dc,
                       int threads) {
  using A = Acc<T>;
  i64 channels = row_c ? s.rows : s.lanes, positions = row_c ? s.lanes : s.rows;
  A scale = A(1. / channels);
  std::vector<double> total(s.n * channels, 0.);
  std::vector<Spot> spots;
  if (gm) {
    spots.resize(s.n * positions);
    for (i64 i = 0; i < s.n * positions; ++i) {
      i64 n = i / positions, p = i % positions, ch = at[i];
      i64 o = (n * s.rows + (row_c ? ch : p)) * s.lanes + (row_c ? p : ch);
      double g = double(gm[i]) + (ga ? double(ga[i]) * scale : 0.);
      spots[i] = {o, g * double(c[n * channels + ch])};
      total[n * channels + ch] += double(get(x + o)) * double(gm[i]);
    }
  }
  if (row_c) {
    parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
      const A* g = ga ? ga + r / s.rows * s.lanes : nullptr;
      Vec<A> cv = all<A>(c[r] * scale);
      for (i64 l0 = 0; l0 < s.lanes; l0 += kTile) {
        Vec<A> sum = {};
        lanes<A>(l0, std::min(l0 + kTile, s.lanes), [&](i64 l, auto n) FLAT {
          i64 o = r * s.lanes + l;
          Vec<A> gv = g ? ld(g + l, n) : Vec<A>{};
          sum += ld(x + o, n) * gv;
          if (dx) st(dx + o, cv * gv, n);
        });
        total[r] += double(hsum(sum)) * scale;
      }
    });
  } else {
    Cut cut(s.n, s.rows);
    i64 pitch = padded<A>(s.lanes), units = s.n * cut.parts;
    Scratch<A> partial(units * pitch);
    parallel(units, s.n * s.rows * s.lanes, threads, [&](i64 u) {
      i64 n = u / cut.parts, r0 = u % cut.parts * cut.size, r1 = std::min(r0 + cut.size, s.rows);
      A* sum = partial + u * pitch;
      std::fill_n(sum, pitch, A(0));
      for (i64 r = r0; r < r1; ++r) {
        Vec<A> g = all<A>(ga ? ga[n * s.rows + r] * scale : A(0));
        lanes<A>(0, s.lanes, [&](i64 l, auto m) FLAT {
          i64 o = (n * s.rows + r) * s.lanes + l;
          st(sum + l, ld(sum + l, Full<A>{}) + ld(x + o, m) * g, Full<A>{});
          if (dx) st(dx + o, g * ld(c + n * s.lanes + l, m), m);
        });
      }
    });
    for (i64 n = 0; n < s.n; ++n)
      for (i64 q = 0; q < cut.parts; ++q)
        for (i64 l = 0; l < s.lanes; ++l)
          total[n * s.lanes + l] += double(partial[(n * cut.parts + q) * pitch + l]);
  }
  for (i64 i = 0; i < s.n * channels; ++i) dc[i] = A(total[i]);
  if (dx) write_spots(dx, spots);
}

// All of CBAM's map gradient: y = z * s with z = x * c, of whose channels at each position mean and
// maximum were taken, as of the positions of each channel of x.
// dx = (dy * s + ga / C + [argmax] gm) * c + gavg / (H W) + [argmax] gmax.
template <class T> struct Cbam {
  using A = Acc<T>;
  const T* dy;
  const A *c, *s;                     // (N, C), (N, H W)
  const A *ga, *gm, *gavg, *gmax;     // (N, H W) twice, (N, C) twice; each may be null
  const int32_t *channel_at, *at;     // position of each channel's maximum, channel of each position's
};

template <class T>
void cbam_grad(const Cbam<T>& g, T* dx, Shape s, bool row_c, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 channels = row_c ? s.rows : s.lanes, positions = row_c ? s.lanes : s.rows;
  const A of_position = A(1. / channels), of_channel = A(1. / positions);
  // One element may be the maximum of its channel and of its position: both ways it is all of it.
  auto spot = [&](i64 n, i64 ch, i64 p) {
    i64 nc = n * channels + ch, np = n * positions + p;
    i64 o = (n * s.rows + (row_c ? ch : p)) * s.lanes + (row_c ? p : ch);
    double v = double(get(g.dy + o)) * double(g.s[np]);
    if (g.ga) v += double(g.ga[np]) * double(of_position);
    if (g.gm && g.at[np] == ch) v += double(g.gm[np]);
    v *= double(g.c[nc]);
    if (g.gavg) v += double(g.gavg[nc]) * double(of_channel);
    if (g.gmax && g.channel_at[nc] == p) v += double(g.gmax[nc]);
    return Spot{o, v};
  };
  std::vector<Spot> spots;
  spots.reserve((g.gm ? s.n * positions : 0) + (g.gmax ? s.n * channels : 0));
  for (i64 n = 0; n < s.n; ++n) {
    for (i64 p = 0; g.gm && p < positions; ++p) spots.push_back(spot(n, g.at[n * positions + p], p));
    for (i64 c = 0; g.gmax && c < channels; ++c)
      spots.push_back(spot(n, c, g.channel_at[n * channels + c]));
  }
  const A *rows = row_c ? g.c : g.s, *cols = row_c ? g.s : g.c;
  parallel(s.n * s.rows, s.n * s.rows * s.lanes, threads, [&](i64 r) {
    i64 first = r / s.rows * s.lanes;
    V factor = all<A>(rows[r]);
    const A *row_term = row_c ? g.gavg : g.ga, *lane_term = row_c ? g.ga : g.gavg;
    V term = all<A>(row_term ? row_term[r] * (row_c ? of_channel : of_position) : A(0));
    lanes<A>(0, s.lanes, [&](i64 l, auto n) FLAT {
      V d = ld(g.dy + r * s.lanes + l, n), f = ld(cols + first + l, n);
      V t = lane_term ? ld(lane_term + first + l, n) : V{};
      V v = row_c ? (d * f + t * of_position) * factor + term
                  : (d * factor + term) * f + t * of_channel;
      st(dx + r * s.lanes + l, v, n);
    });
  });
  write_spots(dx, spots);
}

// --------------------------------------------------------------- strips (DRTAM, coordinate attention)

struct Map { i64 n, c, h, w; };

// to[j][i] = from[i][j] (Add: is added to), whose rows are their pitch apart.
template <bool Add = false, class A>
INLINE void turn(const A* from, i64 from_pitch, A* to, i64 to_pitch, i64 rows, i64 cols) {
  auto one = [&](i64 i, i64 j) FLAT {
    A* t = to + j * to_pitch + i;
    *t = Add ? *t + from[i * from_pitch + j] : from[i * from_pitch + j];
  };
  i64 i = 0;
#ifdef __SSE__
  if constexpr (std::is_same_v<A, float>)
    for (; i + 4 <= rows; i += 4) {
      i64 j = 0;
      for (; j + 4 <= cols; j += 4) {
        const float* f = from + i * from_pitch + j;
        __m128 a[4] = {_mm_loadu_ps(f), _mm_loadu_ps(f + from_pitch), _mm_loadu_ps(f + 2 * from_pitch),
                       _mm_loadu_ps(f + 3 * from_pitch)};
        _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]);
        for (int k = 0; k < 4; ++k) {
          float* t = to + (j + k) * to_pitch + i;
          _mm_storeu_ps(t, Add ? _mm_add_ps(_mm_loadu_ps(t), a[k]) : a[k]);
        }
      }
      for (; j < cols; ++j)
        for (int k = 0; k < 4; ++k) one(i + k, j);
    }
#endif
  for (; i < rows; ++i)
    for (i64 j = 0; j < cols; ++j) one(i, j);
}

// out[n][j][i] = in[n][i][j]
template <class A> void transpose(const A* in, A* out, i64 n, i64 rows, i64 cols, int threads) {
  parallel(n, n * rows * cols, threads, [&](i64 b) {
    const A* s = in + b * rows * cols;
    A* d = out + b * rows * cols;
    for (i64 j = 0; j < cols; j += 16)  // whole cache lines on both sides
      turn(s + j, cols, d + j * rows, rows, rows, std::min<i64>(16, cols - j));
  });
}

// f(first column, number of vectors as a constant, columns in the last of them): the columns of a
// contiguous plane, as many at once as their sums have registers. A sum that went through memory from
// row to row would wait there: the end of one row is the beginning of the next.
template <class A, class F> INLINE void columns(i64 width, F&& f) {
  constexpr i64 N = Simd<A>::N;
  for (i64 w = 0; w < width; w += 4 * N) {
    i64 vectors = std::min<i64>(4, (width - w + N - 1) / N);
    int last = int(std::min(width - w, 4 * N) - (vectors - 1) * N);
    if (vectors == 4) f(w, std::integral_constant<int, 4>{}, last);
    if (vectors == 3) f(w, std::integral_constant<int, 3>{}, last);
    if (vectors == 2) f(w, std::integral_constant<int, 2>{}, last);
    if (vectors == 1) f(w, std::integral_constant<int, 1>{}, last);
  }
}
// f(offset, number of lanes) for each of NV vectors, of which the last has `last` lanes.
template <class A, int NV, class F> INLINE void vectors(int last, F&& f) {
  for (int j = 0; j + 1 < NV; ++j) f(j, Full<A>{});
  f(NV - 1, last);
}

// A contiguous map's three means: over W, over H and (hw not null) over C.
template <class T>
void strips_nchw(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* hw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr i64 N = Simd<A>::N;
  i64 area = m.h * m.w, pitch = padded<A>(area);
  i64 rows = std::max<i64>(1, 1024 / m.w);  // at once, of four planes: they stay in the next cache
  Cut cut(m.n, m.c);
  i64 units = m.n * cut.parts;
  Scratch<A> partial(hw ? units * pitch : 0);
  parallel(units, m.n * m.c * area, threads, [&](i64 u) {
    i64 n = u / cut.parts, c0 = u % cut.parts * cut.size, c1 = std::min(c0 + cut.size, m.c);
    A* sum = partial + u * pitch;
    if (hw) std::fill_n(sum, pitch, A(0));
    auto step = [&](i64 c, auto k_) FLAT {
      constexpr int K = decltype(k_)::value;
      i64 plane = n * m.c + c;
      const T* xp = x + plane * area;
      std::fill_n(ch + plane * m.h, K * m.h, A(0));
      std::fill_n(cw + plane * m.w, K * m.w, A(0));
      for (i64 h0 = 0; h0 < m.h; h0 += rows) {
        i64 h1 = std::min(h0 + rows, m.h);
        if (hw)
          lanes<A>(h0 * m.w, h1 * m.w, [&](i64 l, auto r) FLAT {
            V across = ld(sum + l, r);
            for (int k = 0; k < K; ++k) across += ld(xp + k * area + l, r);
            st(sum + l, across, r);
          });
        for (int k = 0; k < K; ++k)
          columns<A>(m.w, [&](i64 w, auto nv, int last) FLAT {
            constexpr int NV = decltype(nv)::value;
            V down[NV] = {};
            auto row = [&](i64 h) FLAT {
              V along = {};
              vectors<A, NV>(last, [&](int j, auto r) FLAT {
                V v = ld(xp + k * area + h * m.w + w + j * N, r);
                along += v;
                down[j] += v;
              });
              return along;
            };
            A* to = ch + (plane + k) * m.h;
            i64 h = h0;
            for (; h + 4 <= h1; h += 4) {
              const V four[4] = {row(h), row(h + 1), row(h + 2), row(h + 3)};
              add_hsums(four, to + h);
            }
            for (; h < h1; ++h) to[h] += hsum(row(h));
            vectors<A, NV>(last, [&](int j, auto r) FLAT {
              A* to = cw + (plane + k) * m.w + w + j * N;
              st(to, ld(to, r) + down[j], r);
            });
          });
      }
      for (i64 i = 0; i < K * m.h; ++i) ch[plane * m.h + i] /= A(m.w);
      for (i64 i = 0; i < K * m.w; ++i) cw[plane * m.w + i] /= A(m.h);
    };
    i64 c = c0;
    for (; long_rows<T>(area) && c + 4 <= c1; c += 4) step(c, std::integral_constant<int, 4>{});
    for (; c < c1; ++c) step(c, std::integral_constant<int, 1>{});
  });
  if (hw) add_parts<A>(partial + 0, hw, m.n, cut.parts, pitch, area, 1. / m.c, threads);
}

// The same of a channels_last map.
template <class T>
void strips_nhwc(const T* x, Map m, Acc<T>* ch, Acc<T>* cw, Acc<T>* hw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 pitch = padded<A>(m.c), wide = m.w * pitch;
  Cut cut(m.n, m.h, 1);
  i64 units = m.n * cut.parts;
  Scratch<A> cols(units * wide), rows(m.n * m.h * m.c), sums(m.n * m.w * m.c);
  parallel(units, m.n * m.h * m.w * m.c, threads, [&](i64 u) {
    i64 n = u / cut.parts, h0 = u % cut.parts * cut.size, h1 = std::min(h0 + cut.size, m.h);
    A* col = cols + u * wide;
    std::fill_n(col, wide, A(0));
    Scratch<A> row(pitch);
    for (i64 h = h0; h < h1; ++h) {
      std::fill_n(row + 0, pitch, A(0));
      auto step = [&](i64 w, auto k_) FLAT {
        constexpr int K = decltype(k_)::value;
        i64 p = (n * m.h + h) * m.w + w;
        V across[K] = {};
        lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
          V down = ld(row + c, Full<A>{});
          for (int k = 0; k < K; ++k) {
            V v = ld(x + (p + k) * m.c + c, r);
            A* d = col + (w + k) * pitch + c;
            across[k] += v;
            down += v;
            st(d, ld(d, Full<A>{}) + v, Full<A>{});
          }
          st(row + c, down, Full<A>{});
        });
        if (hw)
          for (int k = 0; k < K; ++k) hw[p + k] = hsum(across[k]) / A(m.c);
      };
      i64 w = 0;
      for (; long_rows<T>(m.c) && w + 4 <= m.w; w += 4) step(w, std::integral_constant<int, 4>{});
      for (; w < m.w; ++w) step(w, std::integral_constant<int, 1>{});
      for (i64 c = 0; c < m.c; ++c) rows[(n * m.h + h) * m.c + c] = row[c] / A(m.w);
    }
  });
  parallel(m.n * m.w, m.n * cut.parts * m.w * m.c, threads, [&](i64 i) {
    i64 n = i / m.w, w = i % m.w;
    for (i64 c = 0; c < m.c; ++c) {
      double s = 0;
      for (i64 q = 0; q < cut.parts; ++q) s += double(cols[(n * cut.parts + q) * wide + w * pitch + c]);
      sums[i * m.c + c] = A(s / m.h);
    }
  });
  transpose<A>(rows + 0, ch, m.n, m.h, m.c, threads);
  transpose<A>(sums + 0, cw, m.n, m.w, m.c, threads);
}

// dx = incoming + gch / W + gcw / H + ghw / C; a null gradient is zero. Past: stores past the caches.
template <bool Past, class T, class F>
void strips_grad(const F& incoming, T* dx, Map m, bool last, const Acc<T>* gch, const Acc<T>* gcw,
                 const Acc<T>* ghw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  A ih = A(1. / m.h), iw = A(1. / m.w), ic = A(1. / m.c);
  i64 size = m.n * m.c * m.h * m.w;
  if (!last) {
    // A plane is one long row: dx may be what comes in, and the rows of a plane would wait for each
    // other, as the end of one is the beginning of the next. What is added to a vector of it belongs to
    // two rows at most where these are as wide as a vector; of others it is laid out beforehand.
    constexpr i64 N = Simd<A>::N, each = 8;
    const bool wide = m.w >= N;
    i64 area = m.h * m.w, groups = (m.c + each - 1) / each, around = m.w + N;
    parallel(m.n * groups, size, threads, [&](i64 u) {
      i64 n = u / groups, plane = n * m.c + u % groups * each;
      const i64 end = std::min(plane + each, (n + 1) * m.c);
      const A* hw = ghw ? ghw + n * area : nullptr;
      Scratch<A> right(4 * around), down(4 * (m.h + 1)), term(wide ? 0 : 4 * (area + N));
      const Int<A> ramp = iota<A>();
      auto step = [&](auto k_) FLAT {
        constexpr int K = decltype(k_)::value;
        typename F::Row in[K];
        for (int k = 0; k < K; ++k) {
          A *r = right + k * around, *d = down + k * (m.h + 1);
          in[k] = incoming(plane + k);
          for (i64 w = 0; w < around; ++w) r[w] = gcw ? gcw[(plane + k) * m.w + w % m.w] * ih : A(0);
          for (i64 h = 0; h < m.h; ++h) d[h] = gch ? gch[(plane + k) * m.h + h] * iw : A(0);
          d[m.h] = 0;
          for (i64 h = 0; !wide && h < m.h; ++h)  // what is too much, the next row overwrites
            st(term + k * (area + N) + h * m.w, d[h] + ld(r, Full<A>{}), Full<A>{});
        }
        i64 h = 0, w = 0;
        lanes<A>(0, area, [&](i64 l, auto r) FLAT {
          V across = hw ? ld(hw + l, r) * ic : V{};
          auto shared = in[0].lanes(l, r);
          for (int k = 0; k < K; ++k) {
            V v = across;
            if (wide) {
              const A* d = down + k * (m.h + 1) + h;
              v += ld(right + k * around + w, Full<A>{});
              if (w + N <= m.w) v += d[0];
              else v += ramp < Int<A>{} + Index<A>(m.w - w) ? all<A>(d[0]) : all<A>(d[1]);
            } else {
              v += ld(term + k * (area + N) + l, Full<A>{});
            }
            store<Past>(dx + (plane + k) * area + l, in[k](shared, l, r) + v, r);
          }
          if (wide && (w += N) >= m.w) w -= m.w, ++h;
        });
        plane += K;
      };
      while (long_rows<T>(area) && plane + 4 <= end) step(std::integral_constant<int, 4>{});
      while (plane < end) step(std::integral_constant<int, 1>{});
      if (Past) fence();
    });
    return;
  }
  Scratch<A> hc(gch ? m.n * m.c * m.h : 0), wc(gcw ? m.n * m.c * m.w : 0);
  if (gch) transpose<A>(gch, hc + 0, m.n, m.c, m.h, threads);
  if (gcw) transpose<A>(gcw, wc + 0, m.n, m.c, m.w, threads);
  parallel(m.n * m.h, size, threads, [&](i64 nh) {
    const A* down = gch ? hc + nh * m.c : nullptr;
    for (i64 w = 0; w < m.w; ++w) {
      i64 p = nh * m.w + w;
      auto in = incoming(p);
      V across = all<A>(ghw ? ghw[p] * ic : A(0));
      const A* right = gcw ? wc + (nh / m.h * m.w + w) * m.c : nullptr;
      lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
        V v = in(in.lanes(c, r), c, r) + across;
        if (down) v += ld(down + c, r) * iw;
        if (right) v += ld(right + c, r) * ih;
        store<Past>(dx + p * m.c + c, v, r);
      });
    }
    if (Past) fence();
  });
}

// y = x * h * w with h (N, C, H), w (N, C, W); with dy also dx = dy * h * w (if dx) and dh, dw.
template <class T>
void coord_nchw(const T* x, const T* dy, T* out, Map m, const Acc<T>* fh, const Acc<T>* fw,
                Acc<T>* dh, Acc<T>* dw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  parallel(m.n * m.c, m.n * m.c * m.h * m.w, threads, [&](i64 plane) {
    if (dy) std::fill_n(dh + plane * m.h, m.h, A(0));
    columns<A>(m.w, [&](i64 w, auto nv, int last) FLAT {
      constexpr int NV = decltype(nv)::value;
      V f[NV], col[NV] = {};
      vectors<A, NV>(last, [&](int j, auto r) FLAT {
        f[j] = ld(fw + plane * m.w + w + j * Simd<A>::N, r);
      });
      for (i64 h = 0; h < m.h; ++h) {
        i64 o = (plane * m.h + h) * m.w + w;
        V down = all<A>(fh[plane * m.h + h]), row = {};
        vectors<A, NV>(last, [&](int j, auto r) FLAT {
          i64 at = o + j * Simd<A>::N;
          V v = ld(x + at, r);
          if (!dy) return st(out + at, v * (down * f[j]), r);
          V g = ld(dy + at, r);
          if (out) st(out + at, g * (down * f[j]), r);
          v *= g;
          row += v * f[j];
          col[j] += v * down;
        });
        if (dy) dh[plane * m.h + h] += hsum(row);
      }
      if (dy)
        vectors<A, NV>(last, [&](int j, auto r) FLAT {
          st(dw + plane * m.w + w + j * Simd<A>::N, col[j], r);
        });
    });
  });
}

template <class T>
void coord_nhwc(const T* x, const T* dy, T* out, Map m, const Acc<T>* fh, const Acc<T>* fw,
                Acc<T>* dh, Acc<T>* dw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 pitch = padded<A>(m.c), wide = m.w * pitch;
  Cut cut(m.n, m.h, 1);
  i64 units = m.n * cut.parts;
  Scratch<A> hc(m.n * m.c * m.h), wc(m.n * m.c * m.w), cols(dy ? units * wide : 0);
  transpose<A>(fh, hc + 0, m.n, m.c, m.h, threads);
  transpose<A>(fw, wc + 0, m.n, m.c, m.w, threads);
  Scratch<A> rows(dy ? m.n * m.h * m.c : 0), sums(dy ? m.n * m.w * m.c : 0);
  parallel(units, m.n * m.h * m.w * m.c, threads, [&](i64 u) {
    i64 n = u / cut.parts, h0 = u % cut.parts * cut.size, h1 = std::min(h0 + cut.size, m.h);
    A* col = cols + (dy ? u * wide : 0);
    if (dy) std::fill_n(col, wide, A(0));
    Scratch<A> row(pitch);
    for (i64 h = h0; h < h1; ++h) {
      if (dy) std::fill_n(row + 0, pitch, A(0));
      const A* down = hc + (n * m.h + h) * m.c;
      auto step = [&](i64 w, auto k_) FLAT {
        constexpr int K = decltype(k_)::value;
        i64 p = (n * m.h + h) * m.w + w;
        lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
          V d = ld(down + c, r), acc = dy ? ld(row + c, Full<A>{}) : V{};
          for (int k = 0; k < K; ++k) {
            i64 o = (p + k) * m.c + c;
            V f = ld(wc + (n * m.w + w + k) * m.c + c, r), v = ld(x + o, r);
            if (!dy) {
              st(out + o, v * (d * f), r);
              continue;
            }
            V g = ld(dy + o, r);
            if (out) st(out + o, g * (d * f), r);
            v *= g;
            acc += v * f;
            A* at = col + (w + k) * pitch + c;
            st(at, ld(at, Full<A>{}) + v * d, Full<A>{});
          }
          if (dy) st(row + c, acc, Full<A>{});
        });
      };
      i64 w = 0;
      for (; long_rows<T>(m.c) && w + 4 <= m.w; w += 4) step(w, std::integral_constant<int, 4>{});
      for (; w < m.w; ++w) step(w, std::integral_constant<int, 1>{});
      if (dy) std::copy_n(row + 0, m.c, rows + (n * m.h + h) * m.c);
    }
  });
  if (!dy) return;
  parallel(m.n * m.w, m.n * cut.parts * m.w * m.c, threads, [&](i64 i) {
    i64 n = i / m.w, w = i % m.w;
    for (i64 c = 0; c < m.c; ++c) {
      double s = 0;
      for (i64 q = 0; q < cut.parts; ++q) s += double(cols[(n * cut.parts + q) * wide + w * pitch + c]);
      sums[i * m.c + c] = A(s);
    }
  });
  transpose<A>(rows + 0, dh, m.n, m.h, m.c, threads);
  transpose<A>(sums + 0, dw, m.n, m.w, m.c, threads);
}

// dx = dy * h * w + gch / W + gcw / H: coordinate attention's map gradient; gch, gcw may be null.
template <class T>
void coord_dx(const T* dy, T* dx, Map m, bool last, const Acc<T>* fh, const Acc<T>* fw,
              const Acc<T>* gch, const Acc<T>* gcw, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A ih = A(1. / m.h), iw = A(1. / m.w);
  i64 size = m.n * m.c * m.h * m.w;
  if (!last) {
    parallel(m.n * m.c, size, threads, [&](i64 plane) {
      const A *right = fw + plane * m.w, *down = fh + plane * m.h;
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
            st(dx + at, ld(dy + at, r) * (d * f[j]) + (g + t[j]), r);
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
        V v = ld(dy + o + c, r) * (ld(hc + nh * m.c + c, r) * ld(wc + nw * m.c + c, r));
        if (gch) v += ld(gh + nh * m.c + c, r) * iw;
        if (gcw) v += ld(gw + nw * m.c + c, r) * ih;
        st(dx + o + c, v, r);
      });
    }
  });
}

// q[n][h][w] = h[n][h] * w[n][w], and its gradient.
template <class A> void outer(const A* h, const A* w, A* q, Map m) {
  for (i64 i = 0; i < m.n * m.h; ++i)
    for (i64 j = 0; j < m.w; ++j) q[i * m.w + j] = h[i] * w[i / m.h * m.w + j];
}
template <class A> void outer_grad(const A* h, const A* w, const A* dq, A* dh, A* dw, Map m) {
  std::vector<double> col(m.w);
  for (i64 n = 0; n < m.n; ++n) {
    std::fill(col.begin(), col.end(), 0.);
    for (i64 i = n * m.h; i < (n + 1) * m.h; ++i) {
      double row = 0;
      for (i64 j = 0; j < m.w; ++j) {
        row += double(dq[i * m.w + j]) * w[n * m.w + j];
        col[j] += double(dq[i * m.w + j]) * h[i];
      }
      dh[i] = A(row);
    }
    for (i64 j = 0; j < m.w; ++j) dw[n * m.w + j] = A(col[j]);
  }
}

// ------------------------------------------------------- DRTAM's descriptors of the three planes

struct Window { i64 begin, end; };

// Sizes of the planes ch (C, H), cw (C, W), hw (H, W), and what each axis is cut into.
struct Planes {
  i64 n, c, h, w, chunks, channel_chunks;
  const Window *in_h, *in_w, *in_c;
  i64 strips() const { return chunks + channel_chunks + 1; }
};

// chunks: the windows of height and width (S each), then of the channels (M).
inline Planes planes_of(Map m, i64 s, i64 channel_chunks, const void* chunks) {
  auto in = (const Window*)chunks;
  return {m.n, m.c, m.h, m.w, s, channel_chunks, in, in + s, in + 2 * s};
}

// One plane with channels, (C, L): L is the height or the width. `c` and `l` are the factors of an
// attention map whose share is taken from it, or null. `weights` are the channel convolution's, two
// (average, maximum) in every four. A row is short, so channels are worked on side by side, as the
// lanes of vectors: a tile holds a vector for each place along L.
template <class A> struct ChannelPlane {
  static constexpr int N = Simd<A>::N;
  using V = Vec<A>;
  const A *plane, *c, *l;
  i64 channels, length;
  const Window* in_l;
  const A* weights;

  // f(first channel, channels, how many as ld and st take it)
  template <class F> INLINE void blocks(F&& f) const {
    i64 at = 0;
    for (; at + N <= channels; at += N) f(at, N, Full<A>{});
    if (at < channels) f(at, int(channels - at), int(channels - at));
  }
  INLINE void load(i64 at, int n, A* tile) const {
    const A* from = plane + at * length;
    if (n < N) std::fill_n(tile, length * N, A(0));
    turn(from, length, tile, N, n, length);
  }
  INLINE V kept(i64 i, V cv) const { return c ? 1 - cv * l[i] : all<A>(1); }
};

template <class A> INLINE Vec<A> within(Window in, i64 at, Vec<A> v) {  // channels at, at + 1, ...
  Int<A> channel = iota<A>() + Index<A>(at);
  return (channel >= Index<A>(in.begin)) & (channel < Index<A>(in.end)) ? v : Vec<A>{};
}

// Adds to `out` (C), writes the strips avg (channel chunks, L) and peak (L) with its channel. A NaN passes
// through the averages to all that a maximum adds to: the maxima need not care.
template <class A>
void side_pool(const ChannelPlane<A>& side, const Planes& p, A* out, A* avg, A* peak, int32_t* at) {
  using V = Vec<A>;
  constexpr int N = Simd<A>::N;
  i64 length = side.length;
  Scratch<A> tile(length * N), sums(p.channel_chunks * length * N);
  std::fill_n(sums + 0, p.channel_chunks * length * N, A(0));
  std::vector<Peak<A>> tops(length);
  side.blocks([&](i64 first, int count, auto n) FLAT {
    side.load(first, count, tile + 0);
    V cv = side.c ? ld(side.c + first, n) : V{};
    for (i64 i = 0; i < length; ++i) {
      V v = ld(tile + i * N, Full<A>{}) * side.kept(i, cv);
      st(tile + i * N, v, Full<A>{});
      tops[i].raise(count < N ? outside<A>(v, count) : v, iota<A>() + Index<A>(first));
      for (i64 m = 0; m < p.channel_chunks; ++m) {
        A* sum = sums + (m * length + i) * N;
        st(sum, ld(sum, Full<A>{}) + within<A>(p.in_c[m], first, v), Full<A>{});
      }
    }
    V value = ld(out + first, n);
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = side.in_l[s];
      V sum = {}, top = ld(tile + in.begin * N, Full<A>{});
      for (i64 i = in.begin; i < in.end; ++i) {
        V v = ld(tile + i * N, Full<A>{});
        sum += v;
        top = v > top ? v : top;
      }
      value += sum * (side.weights[4 * s] / A(in.end - in.begin)) + top * side.weights[4 * s + 1];
    }
    st(out + first, value, n);
  });
  for (i64 i = 0; i < length; ++i) {
    for (i64 m = 0; m < p.channel_chunks; ++m)
      avg[m * length + i] = hsum(ld(sums + (m * length + i) * N, Full<A>{})) /
                            A(p.in_c[m].end - p.in_c[m].begin);
    tops[i].best(peak + i, at + i);
  }
}

// out[i] = sum of kernel[row][k] * strips[row][i + k - 1]
template <class A> void strip_conv(const A* strips, const A* kernel, i64 rows, i64 length, A* out) {
  for (i64 i = 0; i < length; ++i) {
    A sum = 0;
    for (i64 r = 0; r < rows; ++r)
      for (i64 k = std::max<i64>(0, 1 - i); k < std::min<i64>(3, length + 1 - i); ++k)
        sum += kernel[3 * r + k] * strips[r * length + i + k - 1];
    out[i] = sum;
  }
}

// c (N, C), h (N, H), w (N, W); for backward also the strips of h and w, (N, S + M + 1, H and W),
// and the channels of their maxima, (N, H and W). taken: c, h, w of an attention map, or null.
template <class A>
void rank1_pool(const A* ch, const A* cw, const A* hw, Planes p, const A* const* weights,
                const A* const* taken, A* const* out, A* const* strips, int32_t* const* at,
                int threads) {
  i64 rows = p.strips();
  parallel(p.n, p.n * p.c * (p.h + p.w), threads, [&](i64 n) {
    const A* t[3] = {};
    if (taken[0]) t[0] = taken[0] + n * p.c, t[1] = taken[1] + n * p.h, t[2] = taken[2] + n * p.w;
    A *sh = strips[0] + n * rows * p.h, *sw = strips[1] + n * rows * p.w;
    std::fill_n(out[0] + n * p.c, p.c, A(0));
    auto side = [&](const A* plane, i64 length, const A* l, const Window* in_l, const A* w, A* strip,
                    int32_t* where) {
      A* avg = strip + p.chunks * length;
      side_pool(ChannelPlane<A>{plane + n * p.c * length, t[0], l, p.c, length, in_l, w}, p,
                out[0] + n * p.c, avg, avg + p.channel_chunks * length, where + n * length);
    };
    side(cw, p.w, t[2], p.in_w, weights[0], sw, at[1]);
    side(ch, p.h, t[1], p.in_h, weights[0] + 2, sh, at[0]);
    std::vector<double> sums(p.chunks * p.w, 0.);
    Scratch<A> row(p.w);
    for (i64 h = 0; h < p.h; ++h) {
      for (i64 w = 0; w < p.w; ++w)
        row[w] = hw[(n * p.h + h) * p.w + w] * (t[0] ? 1 - t[1][h] * t[2][w] : A(1));
      for (i64 s = 0; s < p.chunks; ++s) {
        Window in = p.in_w[s];
        Vec<A> sum = {};
        lanes<A>(in.begin, in.end, [&](i64 w, auto r) FLAT { sum += ld(row + w, r); });
        sh[s * p.h + h] = hsum(sum) / A(in.end - in.begin);
        if (p.in_h[s].begin <= h && h < p.in_h[s].end)
          for (i64 w = 0; w < p.w; ++w) sums[s * p.w + w] += double(row[w]);
      }
    }
    for (i64 s = 0; s < p.chunks; ++s)
      for (i64 w = 0; w < p.w; ++w)
        sw[s * p.w + w] = A(sums[s * p.w + w] / double(p.in_h[s].end - p.in_h[s].begin));
    strip_conv(sh, weights[1], rows, p.h, out[1] + n * p.h);
    strip_conv(sw, weights[2], rows, p.w, out[2] + n * p.w);
  });
}

// The gradients of one side. `gc` (C) or null; gavg, gpeak: those of its strips. Writes the plane's (or
// adds to it), adds to those of the channel convolution's weights and of the factors taken.
template <class A>
void side_pool_grad(const ChannelPlane<A>& side, const Planes& p, const A* gc, const A* gavg,
                    const A* gpeak, const int32_t* at, A* dplane, bool add, double* dweights, A* dc,
                    double* dl) {
  using V = Vec<A>;
  using I = Int<A>;
  constexpr int N = Simd<A>::N;
  i64 length = side.length;
  Scratch<A> raw(length * N), tile(length * N), g(length * N), lost(length * N), level(length);
  std::fill_n(lost + 0, length * N, A(0));
  std::fill_n(level + 0, length, A(0));
  for (i64 s = 0; s < p.chunks; ++s) {
    Window in = side.in_l[s];
    for (i64 i = in.begin; i < in.end; ++i)
      level[i] += side.weights[4 * s] / A(in.end - in.begin);
  }
  Scratch<A> mean(p.channel_chunks * length);
  for (i64 m = 0; m < p.channel_chunks; ++m)
    for (i64 i = 0; i < length; ++i)
      mean[m * length + i] = gavg[m * length + i] / A(p.in_c[m].end - p.in_c[m].begin);
  std::vector<V> sums(2 * p.chunks, V{});
  side.blocks([&](i64 first, int count, auto n) FLAT {
    side.load(first, count, raw + 0);
    V cv = side.c ? ld(side.c + first, n) : V{}, gv = gc ? ld(gc + first, n) : V{};
    I channel = iota<A>() + Index<A>(first);
    for (i64 i = 0; i < length; ++i)
      st(tile + i * N, ld(raw + i * N, Full<A>{}) * side.kept(i, cv), Full<A>{});
    i64 done = 0;  // windows overlap on axes shorter than their number
    for (i64 s = 0; s < p.chunks; ++s) {
      Window in = side.in_l[s];
      V sum = {}, gm = gv * side.weights[4 * s + 1];
      Peak<A> top;
      for (i64 i = in.begin; i < in.end; ++i) {
        V v = ld(tile + i * N, Full<A>{});
        sum += v;
        top.raise(v, I{} + Index<A>(i));
      }
      for (i64 i = in.begin; i < in.end; ++i) {
        V gi = top.index == I{} + Index<A>(i) ? gm : V{};
        if (i < done) {
          gi += ld(g + i * N, Full<A>{});
        } else {
          gi += gv * level[i];
          for (i64 m = 0; m < p.channel_chunks; ++m)
            gi += within<A>(p.in_c[m], first, all<A>(mean[m * length + i]));
          gi += channel == I{} + Index<A>(at[i]) ? all<A>(gpeak[i]) : V{};
        }
        st(g + i * N, gi, Full<A>{});
      }
      done = std::max(done, in.end);
      if (!gc) continue;
      sums[2 * s] += gv * sum / A(in.end - in.begin);
      sums[2 * s + 1] += gv * top.value;
    }
    if (side.c) {
      V sum = {};
      for (i64 i = 0; i < length; ++i) {
        V gi = ld(g + i * N, Full<A>{}), gd = gi * ld(raw + i * N, Full<A>{});
        st(g + i * N, gi * side.kept(i, cv), Full<A>{});
        st(lost + i * N, ld(lost + i * N, Full<A>{}) + gd * cv, Full<A>{});
        sum += gd * side.l[i];
      }
      st(dc + first, ld(dc + first, n) - sum, n);
    }
    if (add) turn<true>(g + 0, N, dplane + first * length, length, length, count);
    else turn(g + 0, N, dplane + first * length, length, length, count);
  });
  for (i64 s = 0; s < p.chunks; ++s)
    for (int k = 0; k < 2; ++k) dweights[4 * s + k] += double(hsum(sums[2 * s + k]));
  if (side.c)
    for (i64 i = 0; i < length; ++i) dl[i] -= double(hsum(ld(lost + i * N, Full<A>{})));
}

// The gradients of the strips, and of the kernel, which are added.
template <class A>
void strip_conv_grad(const A* strips, const A* kernel, i64 rows, i64 length, const A* g, A* dstrips,
                     double* dkernel) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 i = 0; i < length; ++i) {
      A sum = 0;
      if (g)
        for (i64 k = std::max<i64>(0, i + 2 - length); k < std::min<i64>(3, i + 2); ++k) {
          sum += kernel[3 * r + k] * g[i + 1 - k];
          dkernel[3 * r + k] += double(g[i + 1 - k]) * double(strips[r * length + i]);
        }
      dstrips[r * length + i] = sum;
    }
}

// grads: of c, h, w, each may be null. dplanes (`add`: added to), dweights, dtaken: in the order of the
// arguments.
template <class A>
void rank1_pool_grad(const A* ch, const A* cw, const A* hw, Planes p, const A* const* weights,
                     const A* const* taken, const A* const* grads, const A* const* strips,
                     const int32_t* const* at, A* const* dplanes, bool add, A* const* dweights,
                     A* const* dtaken, int threads) {
  i64 rows = p.strips(), kernel = 3 * rows, each = 4 * p.chunks + 2 * kernel;
  std::vector<double> partial(p.n * each, 0.);
  parallel(p.n, p.n * p.c * (p.h + p.w), threads, [&](i64 n) {
    const A *t[3] = {}, *g[3];
    const i64 sizes[3] = {p.c, p.h, p.w};
    for (int i = 0; i < 3; ++i) {
      t[i] = taken[0] ? taken[i] + n * sizes[i] : nullptr;
      g[i] = grads[i] ? grads[i] + n * sizes[i] : nullptr;
    }
    double* dw = partial.data() + n * each;
    Scratch<A> gh(rows * p.h), gw(rows * p.w);
    strip_conv_grad(strips[0] + n * rows * p.h, weights[1], rows, p.h, g[1], gh + 0,
                    dw + 4 * p.chunks);
    strip_conv_grad(strips[1] + n * rows * p.w, weights[2], rows, p.w, g[2], gw + 0,
                    dw + 4 * p.chunks + kernel);
    A* dc = t[0] ? dtaken[0] + n * p.c : nullptr;
    if (dc) std::fill_n(dc, p.c, A(0));
    std::vector<double> dh(p.h, 0.), dv(p.w, 0.);
    auto side = [&](const A* plane, i64 length, const A* l, const Window* in_l, const A* w,
                    const A* gs, const int32_t* where, A* out, double* dws, double* dl) {
      const A* gavg = gs + p.chunks * length;
      side_pool_grad(ChannelPlane<A>{plane + n * p.c * length, t[0], l, p.c, length, in_l, w}, p, g[0], gavg,
                     gavg + p.channel_chunks * length, where + n * length, out + n * p.c * length,
                     add, dws, dc, dl);
    };
    side(cw, p.w, t[2], p.in_w, weights[0], gw + 0, at[1], dplanes[1], dw, dv.data());
    side(ch, p.h, t[1], p.in_h, weights[0] + 2, gh + 0, at[0], dplanes[0], dw + 2, dh.data());
    Scratch<A> row(p.w), across(p.w);
    std::fill_n(across + 0, p.w, A(0));
    for (i64 h = 0; h < p.h; ++h) {
      std::fill_n(row + 0, p.w, A(0));
      for (i64 s = 0; s < p.chunks; ++s) {
        Window in = p.in_w[s];
        A along = gh[s * p.h + h] / A(in.end - in.begin);
        for (i64 w = in.begin; w < in.end; ++w) row[w] += along;
        in = p.in_h[s];
        if (in.begin <= h && h < in.end)
          for (i64 w = 0; w < p.w; ++w) row[w] += gw[s * p.w + w] / A(in.end - in.begin);
      }
      i64 o = (n * p.h + h) * p.w;
      A* to = dplanes[2] + o;
      A share = t[0] ? t[1][h] : A(0);
      Vec<A> sum = {};
      lanes<A>(0, p.w, [&](i64 w, auto r) FLAT {
        Vec<A> g = ld(row + w, r), before = add ? ld(to + w, r) : Vec<A>{};
        Vec<A> b = t[0] ? ld(t[2] + w, r) : Vec<A>{};
        st(to + w, before + g * (1 - share * b), r);
        if (!t[0]) return;
        Vec<A> lost = g * ld(hw + o + w, r);
        sum += lost * b;
        st(across + w, ld(across + w, r) + lost * share, r);
      });
      dh[h] -= double(hsum(sum));
    }
    for (i64 w = 0; w < p.w; ++w) dv[w] -= double(across[w]);
    if (!t[0]) return;
    for (i64 h = 0; h < p.h; ++h) dtaken[1][n * p.h + h] = A(dh[h]);
    for (i64 w = 0; w < p.w; ++w) dtaken[2][n * p.w + w] = A(dv[w]);
  });
  const i64 sizes[3] = {4 * p.chunks, kernel, kernel};
  for (i64 i = 0, from = 0; i < 3; from += sizes[i++])
    add_samples(&partial[from], dweights[i], p.n, each, sizes[i]);
}

// -------------------------------------------------- the batch norms of DRTAM's three descriptors

// One of them: v (N, length), normalised as of one channel. By the batch's mean and variance, towards
// which mean and var move by `momentum`; with a negative momentum by mean and var.
template <class A> struct Norm {
  i64 length;
  const A *v, *weight, *bias;
  A *mean, *var;
  double momentum, eps;
  bool sigmoid;
};

// f(norm, sample, first element, one past the last) over the samples of each of the three norms.
template <class A, class F> void each_norm(const Norm<A>* norms, i64 n_, int threads, F&& f) {
  parallel(3 * n_, n_ * (norms[0].length + norms[1].length + norms[2].length), threads, [&](i64 u) {
    int i = int(u / n_);
    i64 n = u % n_, length = norms[i].length;
    f(i, n, n * length, (n + 1) * length);
  });
}

// The sum of f over all elements of each norm, in the order of the samples.
template <class A, class F>
void norm_sums(const Norm<A>* norms, i64 n_, double* sums, int threads, F&& f) {
  std::vector<double> partial(3 * n_, 0.);
  each_norm(norms, n_, threads, [&](int i, i64 sample, i64 begin, i64 end) {
    Vec<A> sum = {};
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      Vec<A> v = f(i, at, n);
      if (n < Simd<A>::N) v = iota<A>() < Int<A>{} + int(n) ? v : Vec<A>{};
      sum += v;
    });
    partial[i * n_ + sample] = double(hsum(sum));
  });
  for (int i = 0; i < 3; ++i) {
    sums[i] = 0;
    for (i64 n = 0; n < n_; ++n) sums[i] += partial[i * n_ + n];
  }
}

// out: of c, h and w, of the last two the sigmoid. moments (3, 2): mean, 1 / deviation.
template <class A>
void rank1_norm(const Norm<A>* norms, i64 n_, A* const* out, A* moments, int threads) {
  double mean[3], squares[3];
  A shift[3], scale[3];
  norm_sums(norms, n_, mean, threads, [&](int i, i64 at, auto n) FLAT { return ld(norms[i].v + at, n); });
  for (int i = 0; i < 3; ++i) {
    mean[i] = norms[i].momentum < 0 ? double(*norms[i].mean) : mean[i] / double(n_ * norms[i].length);
    shift[i] = A(mean[i]);
  }
  norm_sums(norms, n_, squares, threads, [&](int i, i64 at, auto n) FLAT {
    Vec<A> d = ld(norms[i].v + at, n) - shift[i];
    return d * d;
  });
  for (int i = 0; i < 3; ++i) {
    const Norm<A>& norm = norms[i];
    double count = double(n_ * norm.length), m = norm.momentum;
    double var = m < 0 ? double(*norm.var) : squares[i] / count;
    if (m >= 0) {
      *norm.mean = A((1 - m) * double(*norm.mean) + m * mean[i]);
      *norm.var = A((1 - m) * double(*norm.var) + m * squares[i] / (count - 1));
    }
    moments[2 * i] = shift[i];
    moments[2 * i + 1] = A(1 / std::sqrt(var + norm.eps));
    scale[i] = moments[2 * i + 1] * *norm.weight;
  }
  each_norm(norms, n_, threads, [&](int i, i64, i64 begin, i64 end) {
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      Vec<A> v = (ld(norms[i].v + at, n) - shift[i]) * scale[i] + *norms[i].bias;
      st(out[i] + at, norms[i].sigmoid ? 1 / (1 + vexp(-v)) : v, n);
    });
  });
}

// grads, out: of and as given by the function above. dv, and the gradients of weight and bias.
template <class A>
void rank1_norm_grad(const Norm<A>* norms, i64 n_, const A* const* out, const A* moments,
                     const A* const* grads, A* const* dv, A* const* dweight, A* const* dbias,
                     int threads) {
  using V = Vec<A>;
  double sum[3], dot[3];
  auto incoming = [&](int i, i64 at, auto n) FLAT {
    V g = ld(grads[i] + at, n);
    if (norms[i].sigmoid) {
      V y = ld(out[i] + at, n);
      g *= y * (1 - y);
    }
    return g;
  };
  auto unit = [&](int i, i64 at, auto n) FLAT {
    return (ld(norms[i].v + at, n) - moments[2 * i]) * moments[2 * i + 1];
  };
  norm_sums(norms, n_, sum, threads, incoming);
  norm_sums(norms, n_, dot, threads, [&](int i, i64 at, auto n) FLAT {
    return incoming(i, at, n) * unit(i, at, n);
  });
  A level[3], slope[3];
  for (int i = 0; i < 3; ++i) {
    double count = double(n_ * norms[i].length);
    *dbias[i] = A(sum[i]);
    *dweight[i] = A(dot[i]);
    level[i] = norms[i].momentum < 0 ? 0 : A(sum[i] / count);
    slope[i] = norms[i].momentum < 0 ? 0 : A(dot[i] / count);
  }
  each_norm(norms, n_, threads, [&](int i, i64, i64 begin, i64 end) {
    A scale = moments[2 * i + 1] * *norms[i].weight;
    lanes<A>(begin, end, [&](i64 at, auto n) FLAT {
      V g = incoming(i, at, n);
      if (norms[i].momentum >= 0) g -= level[i] + unit(i, at, n) * slope[i];
      st(dv[i] + at, g * scale, n);
    });
  });
}

// Two fully connected layers: v (N, C) -> relu -> hidden (N, K) -> sigmoid -> out (N, C).
template <class A> struct Mlp {
  i64 n, channels, hidden;
  const A *w1, *b1, *w2, *b2;  // (K, C), (K), (C, K), (C)
  i64 work() const { return n * channels * hidden / 4; }
};

// f(row, row . v) for the rows of a matrix (rows, length), four at once.
template <class A, class F>
INLINE void products(const A* matrix, i64 rows, i64 length, const A* v, F&& f) {
  i64 r = 0;
  auto step = [&](auto k_) FLAT {
    constexpr int K = decltype(k_)::value;
    Vec<A> sum[K] = {};
    lanes<A>(0, length, [&](i64 l, auto n) FLAT {
      Vec<A> b = ld(v + l, n);
      for (int k = 0; k < K; ++k) sum[k] += ld(matrix + (r + k) * length + l, n) * b;
    });
    for (int k = 0; k < K; ++k) f(r + k, hsum(sum[k]));
    r += K;
  };
  while (r + 4 <= rows) step(std::integral_constant<int, 4>{});
  while (r < rows) step(std::integral_constant<int, 1>{});
}

template <class A> void mlp(const Mlp<A>& m, const A* v, A* hidden, A* out, int threads) {
  parallel(m.n, m.work(), threads, [&](i64 n) {
    A *h = hidden + n * m.hidden, *o = out + n * m.channels;
    products(m.w1, m.hidden, m.channels, v + n * m.channels, [&](i64 k, A dot) FLAT {
      A u = dot + m.b1[k];
      h[k] = u < 0 ? 0 : u;  // a NaN stays one
    });
    products(m.w2, m.channels, m.hidden, h, [&](i64 c, A dot) FLAT { o[c] = dot + m.b2[c]; });
    lanes<A>(0, m.channels, [&](i64 c, auto k) FLAT { st(o + c, 1 / (1 + vexp(-ld(o + c, k))), k); });
  });
}

// to[l] += sum over i < count of a[i * step] * rows[i][l], the rows (count, length); returns sum of a.
template <class A>
INLINE A combine(const A* a, i64 step, i64 count, const A* rows, i64 length, A* to) {
  lanes<A>(0, length, [&](i64 l, auto n) FLAT {
    Vec<A> sum = ld(to + l, n);
    for (i64 i = 0; i < count; ++i) sum += a[i * step] * ld(rows + i * length + l, n);
    st(to + l, sum, n);
  });
  A sum = 0;
  for (i64 i = 0; i < count; ++i) sum += a[i * step];
  return sum;
}

// g: of out. Writes dv, adds to the gradients dw of w1, b1, w2, b2.
template <class A>
void mlp_grad(const Mlp<A>& m, const A* v, const A* hidden, const A* out, const A* g, A* dv,
              A* const* dw, int threads) {
  Scratch<A> outer(m.n * m.channels), inner(m.n * m.hidden);
  parallel(m.n, m.work(), threads, [&](i64 n) {
    A *go = outer + n * m.channels, *gh = inner + n * m.hidden;
    lanes<A>(n * m.channels, (n + 1) * m.channels, [&](i64 at, auto k) FLAT {
      Vec<A> y = ld(out + at, k);
      st(outer + at, ld(g + at, k) * y * (1 - y), k);
    });
    std::fill_n(gh, m.hidden, A(0));
    std::fill_n(dv + n * m.channels, m.channels, A(0));
    combine(go, 1, m.channels, m.w2, m.hidden, gh);
    for (i64 k = 0; k < m.hidden; ++k)
      if (hidden[n * m.hidden + k] <= 0) gh[k] = 0;
    combine(gh, 1, m.hidden, m.w1, m.channels, dv + n * m.channels);
  });
  parallel(m.hidden, m.work(), threads, [&](i64 k) {
    dw[1][k] += combine(inner + k, m.hidden, m.n, v, m.channels, dw[0] + k * m.channels);
  });
  parallel(m.channels, m.work(), threads, [&](i64 c) {
    dw[3][c] += combine(outer + c, m.channels, m.n, hidden, m.hidden, dw[2] + c * m.hidden);
  });
}

// ---------------------------------------------------------------------------------- all of DRTAM

// The parameters of one attention module, or their gradients: weights of the channels', the height's
// and the width's convolution, and of their norms weights and biases.
template <class A> struct Module {
  static constexpr int count = 9;
  A *const *conv, *const *weight, *const *bias;
  explicit Module(A* const* p) : conv(p), weight(p + 3), bias(p + 6) {}
};

// The descriptors on their way: what one attention module computes, and backward needs.
template <class A> struct Stage {
  A *vectors[3], *strips[2], *moments, *v, *hidden, *out[3];
  int32_t* at[2];
};

// x (N, C, H, W) -> y = x * A, or x * (A + (1 - A) * A2) with two modules.
template <class A> struct Rank1 {
  Map m;
  bool last;
  Planes p;
  i64 hidden;
  int modules;
  A* const* params;      // the MLP's four, then each module's
  A* const* running;     // mean and var of each norm
  const double* rules;   // momentum and eps of each norm
  A *ch, *cw, *hw;
  Stage<A> stages[2];

  // Cuts the floats and integers kept for backward into their parts; returns the number of floats.
  i64 lay_out(A* kept, int32_t* at) {
    i64 used = 0;
    auto take = [&](i64 size) { return kept + (used += size) - size; };
    ch = take(m.n * m.c * m.h), cw = take(m.n * m.c * m.w), hw = take(m.n * m.h * m.w);
    for (int i = 0; i < modules; ++i) {
      Stage<A>& s = stages[i];
      for (int k = 0; k < 3; ++k) {
        s.vectors[k] = take(m.n * length(k));
        s.out[k] = take(m.n * length(k));
      }
      s.strips[0] = take(m.n * p.strips() * m.h), s.strips[1] = take(m.n * p.strips() * m.w);
      s.moments = take(6), s.v = take(m.n * m.c), s.hidden = take(m.n * hidden);
      s.at[0] = at + i * m.n * (m.h + m.w), s.at[1] = s.at[0] + m.n * m.h;
    }
    return used;
  }
  Shape shape() const { return last ? Shape{m.n, m.h * m.w, m.c} : Shape{m.n, m.c, m.h * m.w}; }
  i64 length(int k) const { return k == 0 ? m.c : k == 1 ? m.h : m.w; }
  Module<A> module(int i) const { return Module<A>(params + 4 + i * Module<A>::count); }
  const A* const* taken(int i) const {
    static constexpr A* none[3] = {};
    return i ? stages[0].out : none;
  }
  Mlp<A> layers() const { return {m.n, m.c, hidden, params[0], params[1], params[2], params[3]}; }
  std::array<Norm<A>, 3> norms(int i) const {
    std::array<Norm<A>, 3> found;
    for (int k = 0; k < 3; ++k) {
      int j = 3 * i + k;
      found[k] = {length(k), stages[i].vectors[k], module(i).weight[k], module(i).bias[k],
                  running ? running[2 * j] : nullptr, running ? running[2 * j + 1] : nullptr,
                  rules[2 * j], rules[2 * j + 1], k > 0};
    }
    return found;
  }
  // f(gate, row factors, lane factors) with the maps q, q2 of the positions (N, H * W).
  template <class F> void gated(A* const* q, F&& f) const {
    A* c[2] = {stages[0].out[0], modules > 1 ? stages[1].out[0] : nullptr};
    if (modules > 1) f(DualGate{}, last ? q : c, last ? c : q);
    else f(ProductGate{}, last ? q : c, last ? c : q);
  }
};

template <class T> void rank1_attention(const T* x, T* y, const Rank1<Acc<T>>& r, int threads) {
  using A = Acc<T>;
  (r.last ? strips_nhwc<T> : strips_nchw<T>)(x, r.m, r.ch, r.cw, r.hw, threads);
  i64 places = r.m.n * r.m.h * r.m.w;
  Scratch<A> maps(r.modules * places);
  A* q[2] = {maps + 0, maps + (r.modules - 1) * places};
  for (int i = 0; i < r.modules; ++i) {
    const Stage<A>& s = r.stages[i];
    rank1_pool<A>(r.ch, r.cw, r.hw, r.p, r.module(i).conv, r.taken(i), s.vectors, s.strips, s.at,
                  threads);
    A* const to[3] = {s.v, s.out[1], s.out[2]};
    rank1_norm<A>(r.norms(i).data(), r.m.n, to, s.moments, threads);
    mlp<A>(r.layers(), s.v, s.hidden, s.out[0], threads);
    outer<A>(s.out[1], s.out[2], q[i], r.m);
  }
  Shape shape = r.shape();
  r.gated(q, [&](auto g, auto a, auto b) { gate<decltype(g)>(x, y, shape, a, b, threads); });
}

// dx may be null; dparams: as the parameters.
template <class T>
void rank1_attention_grad(const T* x, const T* dy, T* dx, const Rank1<Acc<T>>& r,
                          Acc<T>* const* dparams, int threads) {
  using A = Acc<T>;
  const Map& m = r.m;
  i64 places = m.n * m.h * m.w, sizes[3] = {m.n * m.c, m.n * m.h, m.n * m.w};
  i64 vectors = sizes[0] + sizes[1] + sizes[2];
  Scratch<A> maps(2 * r.modules * places), grads(2 * r.modules * vectors + sizes[0]);
  Scratch<A> planes(m.n * (m.c * (m.h + m.w) + m.h * m.w));
  A *q[2], *dq[2], *dout[2][3], *dv[3], *gv = grads + 2 * r.modules * vectors;
  for (int i = 0; i < r.modules; ++i) {
    q[i] = maps + 2 * i * places, dq[i] = q[i] + places;
    outer<A>(r.stages[i].out[1], r.stages[i].out[2], q[i], m);
    A* to = grads + i * vectors;
    for (int k = 0; k < 3; to += sizes[k++]) dout[i][k] = to;
  }
  Shape shape = r.shape();
  A* dc[2] = {dout[0][0], dout[r.modules - 1][0]};
  r.gated(q, [&](auto g, auto a, auto b) {
    gate_grad<decltype(g)>(x, dy, (T*)nullptr, shape, a, b, r.last ? dq : dc, r.last ? dc : dq, threads);
  });
  A* const dplanes[3] = {planes + 0, planes + m.n * m.c * m.h, planes + m.n * m.c * (m.h + m.w)};
  i64 weights = r.layers().channels * r.hidden;
  const i64 mlp_sizes[4] = {weights, r.hidden, weights, m.c};
  for (int k = 0; k < 4; ++k) std::fill_n(dparams[k], mlp_sizes[k], A(0));
  for (int i = 0; i < r.modules; ++i)
    outer_grad<A>(r.stages[i].out[1], r.stages[i].out[2], dq[i], dout[i][1], dout[i][2], m);
  for (int i = r.modules - 1; i >= 0; --i) {
    const Stage<A>& s = r.stages[i];
    Module<A> d(dparams + 4 + i * Module<A>::count);
    A* to = grads + (r.modules + i) * vectors;
    for (int k = 0; k < 3; to += sizes[k++]) dv[k] = to;
    mlp_grad<A>(r.layers(), s.v, s.hidden, s.out[0], dout[i][0], gv, dparams, threads);
    const A* const g[3] = {gv, dout[i][1], dout[i][2]};
    rank1_norm_grad<A>(r.norms(i).data(), m.n, s.out, s.moments, g, dv, d.weight, d.bias, threads);
    Scratch<A> lost(i ? vectors : 0);  // the first module's factors, taken from the planes
    A* const dtaken[3] = {lost + 0, lost + sizes[0], lost + sizes[0] + sizes[1]};
    rank1_pool_grad<A>(r.ch, r.cw, r.hw, r.p, r.module(i).conv, r.taken(i), dv, s.strips, s.at,
                       dplanes, i + 1 < r.modules, d.conv, dtaken, threads);
    for (i64 l = 0; i && l < vectors; ++l) grads[l] += lost[l];
  }
  if (!dx) return;
  bool past = streams(dx, shape.n * shape.rows * shape.lanes, shape.lanes);
  r.gated(q, [&](auto gate, auto a, auto b) {
    Gated<decltype(gate), T> incoming{dy, shape, a, b};
    auto finish = past ? strips_grad<true, T, decltype(incoming)>
                       : strips_grad<false, T, decltype(incoming)>;
    finish(incoming, dx, m, r.last, dplanes[0], dplanes[1], dplanes[2], threads);
  });
}

// --------------------------------------------------- the convolution of maps to one (CBAM, CAT)

// A plane within a frame of zeros, as a kernel (kh, kw) needs them, its rows far enough apart to be
// read in whole vectors.
template <class A> struct Framed {
  i64 pitch;
  Scratch<A> data;
  Framed(const A* plane, i64 h, i64 w, i64 kh, i64 kw)
      : pitch(padded<A>(w) + kw - 1), data((h + kh - 1) * pitch + Simd<A>::N) {
    std::fill_n(data + 0, (h + kh - 1) * pitch + Simd<A>::N, A(0));
    for (i64 i = 0; i < h; ++i)
      std::copy_n(plane + i * w, w, data + (i + kh / 2) * pitch + kw / 2);
  }
};

// Adds to `out` (H, W) the correlation of a framed plane with a kernel. K: both its sizes, or 0.
template <int K, class A>
void correlate(const Framed<A>& x, const A* kernel, i64 kh_, i64 kw_, i64 h, i64 w, A* out) {
  const i64 kh = K ? K : kh_, kw = K ? K : kw_;
  for (i64 i = 0; i < h; ++i)
    lanes<A>(0, w, [&](i64 j, auto n) FLAT {
      Vec<A> sum = ld(out + i * w + j, n);
      for (i64 a = 0; a < kh; ++a)
        for (i64 b = 0; b < kw; ++b)
          sum += kernel[a * kw + b] * ld(x.data + (i + a) * x.pitch + j + b, Full<A>{});
      st(out + i * w + j, sum, n);
    });
}

// Adds to `out` (kh, kw) the correlation of a framed plane with g (H, W).
template <int K, class A>
void correlate_grad(const Framed<A>& x, const A* g, i64 kh_, i64 kw_, i64 h, i64 w, double* out) {
  constexpr int most = K ? K : 8;  // columns of the kernel at a time
  const i64 kh = K ? K : kh_, kw = K ? K : kw_;
  for (i64 a = 0; a < kh; ++a)
    for (i64 b0 = 0; b0 < kw; b0 += most)
      for (i64 i0 = 0; i0 < h; i0 += 16) {  // no long sums in A
        Vec<A> sum[most] = {};
        for (i64 i = i0; i < std::min(i0 + 16, h); ++i)
          lanes<A>(0, w, [&](i64 j, auto n) FLAT {
            Vec<A> gv = ld(g + i * w + j, n);
            for (int b = 0; b < most; ++b)
              if (K || b0 + b < kw)
                sum[b] += gv * ld(x.data + (i + a) * x.pitch + j + b0 + b, Full<A>{});
          });
        for (int b = 0; b < most && b0 + b < kw; ++b) out[a * kw + b0 + b] += double(hsum(sum[b]));
      }
}

// maps (N, M, H, W), weights (M, kh, kw): out (N, H, W).
template <class A>
void spatial_conv(const A* maps, const A* weights, A* out, i64 n_, i64 m_, i64 h, i64 w, i64 kh,
                  i64 kw, int threads) {
  parallel(n_, n_ * m_ * h * w * kh, threads, [&](i64 n) {
    A* to = out + n * h * w;
    std::fill_n(to, h * w, A(0));
    for (i64 m = 0; m < m_; ++m) {
      Framed<A> x(maps + (n * m_ + m) * h * w, h, w, kh, kw);
      auto f = kh == 7 && kw == 7 ? correlate<7, A> : correlate<0, A>;
      f(x, weights + m * kh * kw, kh, kw, h, w, to);
    }
  });
}

template <class A>
void spatial_conv_grad(const A* maps, const A* weights, const A* dy, A* dmaps, A* dweights, i64 n_,
                       i64 m_, i64 h, i64 w, i64 kh, i64 kw, int threads) {
  const i64 size = kh * kw;
  const bool seven = kh == 7 && kw == 7;
  std::vector<double> partial(n_ * m_ * size, 0.);
  std::vector<A> flipped(weights, weights + m_ * size);
  for (i64 m = 0; m < m_; ++m)
    std::reverse(flipped.begin() + m * size, flipped.begin() + (m + 1) * size);
  parallel(n_, n_ * m_ * h * w * kh, threads, [&](i64 n) {
    const A* g = dy + n * h * w;
    Framed<A> framed(g, h, w, kh, kw);
    for (i64 m = 0; m < m_; ++m) {
      i64 at = (n * m_ + m) * h * w;
      std::fill_n(dmaps + at, h * w, A(0));
      Framed<A> x(maps + at, h, w, kh, kw);
      auto f = seven ? correlate<7, A> : correlate<0, A>;
      f(framed, flipped.data() + m * size, kh, kw, h, w, dmaps + at);
      auto grad = seven ? correlate_grad<7, A> : correlate_grad<0, A>;
      grad(x, g, kh, kw, h, w, &partial[(n * m_ + m) * size]);
    }
  });
  add_samples(partial.data(), dweights, n_, m_ * size, m_ * size);
}

// ------------------------------------------------------------------------------ CAT's three pools

// Entropy of softmax(z) = log s - t / s with d = z - ref, s = sum e^d, t = sum d e^d. One e^(z - ref)
// serves the rows and the lanes of a sample as long as the sample keeps within kReach of its ref;
// a sample that does not takes each row's and each lane's own maximum for ref (`wide`).
constexpr double kReach = 24;

struct Sums { double x, s, t; };

template <class A> struct Lanes {  // running sums of every lane, and the largest |d| met
  A *x, *s, *t;
  Vec<A> reach = {};
};

template <int K, class T>
INLINE void entropy_rows(const T* z, i64 pitch, i64 n_lanes, Acc<T> ref, Lanes<Acc<T>>& acc,
                         Sums* rows) {
  using A = Acc<T>;
  using V = Vec<A>;
  for (i64 l0 = 0; l0 < n_lanes; l0 += kTile) {
    V x[K] = {}, s[K] = {}, t[K] = {}, reach = acc.reach;
    lanes<A>(l0, std::min(l0 + kTile, n_lanes), [&](i64 l, auto n) FLAT {
      V lx = ld(acc.x + l, Full<A>{}), ls = ld(acc.s + l, Full<A>{}), lt = ld(acc.t + l, Full<A>{});
      for (int k = 0; k < K; ++k) {
        V v = ld(z + k * pitch + l, n), d = v - ref, e = vexp(d);
        if (n < Simd<A>::N) {
          auto in = iota<A>() < Int<A>{} + int(n);
          d = in ? d : V{};
          e = in ? e : V{};
        }
        V far = d < 0 ? -d : d, de = d * e;
        reach = far > reach ? far : reach;
        x[k] += v, s[k] += e, t[k] += de;
        lx += v, ls += e, lt += de;
      }
      st(acc.x + l, lx, Full<A>{});
      st(acc.s + l, ls, Full<A>{});
      st(acc.t + l, lt, Full<A>{});
    });
    acc.reach = reach;
    for (int k = 0; k < K; ++k) {
      rows[k].x += hsum(x[k]);
      rows[k].s += hsum(s[k]);
      rows[k].t += hsum(t[k]);
    }
  }
}

// One side's statistics (of the rows or of the lanes): where they go. Null: not asked for.
template <class A> struct Side {
  A *avg, *max, *ent, *log, *ref;
  int32_t* at;
};

template <class A> INLINE void finish(const Side<A>& o, i64 i, double s, double t) {
  double log_s = std::log(s);
  o.ent[i] = A(log_s - t / s);
  o.log[i] = A(log_s);
}

// A sample whose values lie too far apart for one reference.
template <class T>
void entropy_wide(const T* x, i64 n, Shape s, const Side<Acc<T>>& row, const Side<Acc<T>>& lane,
                  int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  const A low = -std::numeric_limits<A>::infinity();
  const T* xn = x + n * s.rows * s.lanes;
  if (row.ent)
    parallel(s.rows, s.rows * s.lanes, threads, [&](i64 r) {
      const T* z = xn + r * s.lanes;
      V top = all<A>(low);
      lanes<A>(0, s.lanes, [&](i64 l, auto k) FLAT {
        V v = ld(z + l, k);
        if (k < Simd<A>::N) v = outside<A>(v, k);
        top = v > top ? v : top;
      });
      A ref = top[0];
      for (int k = 1; k < Simd<A>::N; ++k) ref = std::max<A>(ref, top[k]);
      double sum = 0, dot = 0;
      for (i64 l0 = 0; l0 < s.lanes; l0 += 512) {
        V sv = {}, tv = {};
        lanes<A>(l0, std::min<i64>(l0 + 512, s.lanes), [&](i64 l, auto k) FLAT {
          V d = ld(z + l, k) - ref, e = vexp(d);
          if (k < Simd<A>::N) e = iota<A>() < Int<A>{} + int(k) ? e : V{}, d = e == 0 ? V{} : d;
          sv += e;
          tv += d * e;
        });
        sum += hsum(sv), dot += hsum(tv);
      }
      row.ref[n * s.rows + r] = ref;
      finish(row, n * s.rows + r, sum, dot);
    });
  if (lane.ent) {
    constexpr i64 kBlock = 8 * Simd<A>::N;
    parallel((s.lanes + kBlock - 1) / kBlock, s.rows * s.lanes, threads, [&](i64 b) {
      i64 l0 = b * kBlock, l1 = std::min(l0 + kBlock, s.lanes);
      lanes<A>(l0, l1, [&](i64 l, auto k) FLAT {
        V ref = all<A>(low);
        for (i64 r = 0; r < s.rows; ++r) {
          V v = ld(xn + r * s.lanes + l, k);
          ref = v > ref ? v : ref;
        }
        double sum[Simd<A>::N] = {}, dot[Simd<A>::N] = {};
        for (i64 r0 = 0; r0 < s.rows; r0 += 64) {
          V sv = {}, tv = {};
          for (i64 r = r0; r < std::min(r0 + 64, s.rows); ++r) {
            V d = ld(xn + r * s.lanes + l, k) - ref, e = vexp(d);
            sv += e;
            tv += d * e;
          }
          for (int j = 0; j < k; ++j) sum[j] += sv[j], dot[j] += tv[j];
        }
        for (int j = 0; j < k; ++j) {
          lane.ref[n * s.lanes + l + j] = ref[j];
          finish(lane, n * s.lanes + l + j, sum[j], dot[j]);
        }
      });
    });
  }
}

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
    Peak<A> top;
    const Int<A> ramp = iota<A>();
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(plane.data() + l, n) * taps[0];
      for (int k = 1; k < k1; ++k) v += ld(plane.data() + l + k * pitch, n) * taps[k];
      st(column.data() + p + l, v, n);
      top.add(v + ld(frame.data() + l, n), ramp + Index<A>(l));
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
    lanes<A>(0, size, [&](i64 l, auto n) FLAT {
      Vec<A> v = ld(column.data() + l, n) * taps[0];
      for (int k = 1; k < k1; ++k) v += ld(column.data() + l + k, n) * taps[k];
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

// A typical value of a sample: the shared reference.
template <class T> Acc<T> typical(const T* x, i64 n) {
  i64 step = std::max<i64>(n / 64, 1);
  double s = 0;
  i64 k = 0;
  for (i64 i = 0; i < n && k < 64; i += step, ++k) s += double(get(x + i));
  s /= double(k);
  return std::isfinite(s) ? Acc<T>(s) : Acc<T>(0);
}

template <class A> struct Partials {  // of the lanes, one set for each unit
  i64 pitch, wide;
  Scratch<A> x, s, t, top;
  Scratch<Index<A>> at;
  Partials(i64 units, i64 lanes_, i64 wide_)
      : pitch(padded<A>(lanes_)), wide(wide_), x(units * pitch), s(units * pitch), t(units * pitch),
        top(units * wide), at(units * wide) {}
};

template <class T>
i64 entropy_pool(const T* x, Map m, bool last, const Acc<T>* taps, i64 k, Side<Acc<T>> chan,
                 Side<Acc<T>> spat, Acc<T>* refs, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 area = m.h * m.w, p = k / 2, size = m.n * m.c * area;
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  Side<A>& row = last ? spat : chan;
  Side<A>& lane = last ? chan : spat;
  bool ent = chan.ent || spat.ent, dense = ent || chan.avg || spat.avg;
  Cut cut(m.n, last ? m.h : m.c, last ? 1 : 4);
  i64 units = m.n * cut.parts;
  i64 wide = last ? padded<A>(m.c) : padded<A>(m.h * (m.w + 2 * p));
  Partials<A> part(units, s.lanes, lane.max ? wide : 0);
  Scratch<A> reach(units);
  for (i64 n = 0; n < m.n; ++n) refs[n] = typical(x + n * m.c * area, m.c * area);

  parallel(units, size, threads, [&](i64 u) {
    i64 n = u / cut.parts, q0 = u % cut.parts * cut.size, q1 = q0 + cut.size;
    q1 = std::min(q1, last ? m.h : m.c);
    Lanes<A> acc{part.x + u * part.pitch, part.s + u * part.pitch, part.t + u * part.pitch};
    for (A* a : {acc.x, acc.s, acc.t}) std::fill_n(a, part.pitch, A(0));
    auto sums = [&](i64 r, auto k_) FLAT {
      constexpr int K = decltype(k_)::value;
      Sums out[K] = {};
      i64 i = n * s.rows + r;
      entropy_rows<K>(x + i * s.lanes, s.lanes, s.lanes, refs[n], acc, out);
      for (int j = 0; j < K; ++j) {
        if (row.avg) row.avg[i + j] = A(out[j].x / s.lanes);
        if (row.ent) finish(row, i + j, out[j].s, out[j].t);
      }
    };
    if (!last) {
      Filter<A> filter(m, taps, k);
      auto maxima = [&](i64 c) {
        int32_t at;
        filter.load(x + (n * m.c + c) * area);
        A best = filter.vertical(&at);
        if (chan.max) chan.max[n * m.c + c] = best, chan.at[n * m.c + c] = at;
        if (spat.max) filter.horizontal(part.top + u * wide, part.at + u * wide, c, c == q0);
      };
      for (i64 c = q0; c < q1;) {
        i64 c1 = std::min(c + (long_rows<T>(area) ? 2 : 1), q1);
        if (dense) {
          if (c1 - c == 2) sums(c, std::integral_constant<int, 2>{});
          else sums(c, std::integral_constant<int, 1>{});
        }
        if (chan.max || spat.max)
          for (i64 i = c; i < c1; ++i) maxima(i);
        c = c1;
      }
    } else {
      i64 pitch = padded<A>(m.c);
      Scratch<A> column((m.w + 2 * p) * pitch);
      std::fill_n(column + 0, (m.w + 2 * p) * pitch, A(0));
      const T* xn = x + n * area * m.c;
      for (i64 h = q0; h < q1; ++h) {
        if (dense) {
          i64 w = 0;
          for (; long_rows<T>(m.c) && w + 2 <= m.w; w += 2) sums(h * m.w + w, std::integral_constant<int, 2>{});
          for (; w < m.w; ++w) sums(h * m.w + w, std::integral_constant<int, 1>{});
        }
        if (!chan.max && !spat.max) continue;
        i64 k0 = std::max<i64>(0, p - h), k1 = std::min(k, m.h + p - h);
        for (i64 w = 0; w < m.w; ++w) {
          const T* in = xn + ((h + k0 - p) * m.w + w) * m.c;
          A* out = column + (w + p) * pitch;
          bool first = h == q0 && w == 0;
          auto down = [&](auto taps_) FLAT {
            constexpr int TAPS = decltype(taps_)::value;
            i64 kn = TAPS ? TAPS : k1 - k0;
            lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
              V v = ld(in + c, r) * taps[k0];
              for (i64 j = 1; j < kn; ++j) v += ld(in + j * m.w * m.c + c, r) * taps[k0 + j];
              st(out + c, v, Full<A>{});
              if (!chan.max) return;
              Peak<A> top;
              A* best = part.top + u * wide + c;
              Index<A>* at = part.at + u * wide + c;
              if (!first) {
                top.value = ld(best, Full<A>{});
                std::memcpy(&top.index, at, kBytes);
              }
              top.add(v, Int<A>{} + Index<A>(h * m.w + w));
              st(best, top.value, Full<A>{});
              std::memcpy(at, &top.index, kBytes);
            });
          };
          if (k1 - k0 == 5) down(std::integral_constant<int, 5>{});
          else down(std::integral_constant<int, 0>{});
        }
        if (!spat.max) continue;
        for (i64 w = 0; w < m.w; ++w) {
          Peak<A> top;
          const Int<A> ramp = iota<A>();
          auto across = [&](auto taps_) FLAT {
            constexpr int TAPS = decltype(taps_)::value;
            i64 kn = TAPS ? TAPS : k;
            lanes<A>(0, m.c, [&](i64 c, auto r) FLAT {
              V v = ld(column + w * pitch + c, Full<A>{}) * taps[0];
              for (i64 j = 1; j < kn; ++j)
                v += ld(column + (w + j) * pitch + c, Full<A>{}) * taps[j];
              if (r < Simd<A>::N) v = outside<A>(v, r);
              top.add(v, ramp + Index<A>(c));
            });
          };
          if (k == 5) across(std::integral_constant<int, 5>{});
          else across(std::integral_constant<int, 0>{});
          i64 position = n * area + h * m.w + w;
          top.best(spat.max + position, spat.at + position);
        }
      }
    }
    reach[u] = acc.reach[0];
    for (int j = 1; j < Simd<A>::N; ++j) reach[u] = std::max<A>(reach[u], acc.reach[j]);
  });

  // Across the cuts.
  parallel(m.n, units * s.lanes * 4, threads, [&](i64 n) {
    for (i64 l = 0; l < s.lanes; ++l) {
      Sums sum = {};
      for (i64 q = n * cut.parts; q < (n + 1) * cut.parts; ++q) {
        i64 i = q * part.pitch + l;
        sum.x += double(part.x[i]), sum.s += double(part.s[i]), sum.t += double(part.t[i]);
      }
      if (lane.avg) lane.avg[n * s.lanes + l] = A(sum.x / s.rows);
      if (lane.ent) finish(lane, n * s.lanes + l, sum.s, sum.t);
      if (!lane.max) continue;
      i64 i = n * cut.parts * wide + (last ? l : l / m.w * (m.w + 2 * p) + l % m.w + p);
      A best = part.top[i];
      Index<A> at = part.at[i];
      for (i64 q = 1; q < cut.parts; ++q)
        if (beats(part.top[i + q * wide], best)) {
          best = part.top[i + q * wide];
          at = part.at[i + q * wide];
        }
      lane.max[n * s.lanes + l] = best;
      lane.at[n * s.lanes + l] = int32_t(at);
    }
  });
  i64 n_wide = 0;
  if (ent)
    for (i64 n = 0; n < m.n; ++n) {
      A far = 0;
      for (i64 q = 0; q < cut.parts; ++q) far = std::max(far, reach[n * cut.parts + q]);
      if (far <= kReach) continue;
      entropy_wide(x, n, s, row, lane, threads);
      refs[n] = std::numeric_limits<A>::quiet_NaN();
      ++n_wide;
    }
  return n_wide;
}

// What one side contributes to dx: g_avg / count, and of the entropy, with p = e^(d - log s),
// -g_ent p (d - log s + H) = e^d (slope d + level).
template <class A> struct Terms {
  const A *avg, *ent, *max;              // the gradients, or null
  const A *h, *log, *ref;                // the saved entropy, log s and reference (wide samples)
  const int32_t* at;
  i64 count;
  INLINE A mean(i64 i) const { return avg ? avg[i] / A(count) : A(0); }
  INLINE A slope(i64 i) const { return ent ? -ent[i] * std::exp(-log[i]) : A(0); }
  INLINE A level(i64 i) const { return slope(i) * (ent ? h[i] - log[i] : A(0)); }
};

// The positions of one sample, sorted by key: those of key k are order[start[k]] ... order[start[k + 1]].
struct Buckets {
  std::vector<i64> start;
  std::vector<int32_t> order;
  template <class F> Buckets(i64 n, i64 keys, F&& key) : start(keys + 1, 0), order(n) {
    for (i64 i = 0; i < n; ++i) ++start[key(i) + 1];
    for (i64 j = 0; j < keys; ++j) start[j + 1] += start[j];
    std::vector<i64> next(start.begin(), start.end() - 1);
    for (i64 i = 0; i < n; ++i) order[next[key(i)]++] = int32_t(i);
  }
};

template <class T, class F>
void entropy_grad(const T* x, const F& incoming, T* dx, Map m, bool last, const Acc<T>* taps, i64 k,
                  Terms<Acc<T>> chan, Terms<Acc<T>> spat, const Acc<T>* refs, int threads) {
  using A = Acc<T>;
  using V = Vec<A>;
  i64 area = m.h * m.w, p = k / 2, size = m.n * m.c * area;
  Shape s = last ? Shape{m.n, area, m.c} : Shape{m.n, m.c, area};
  const Terms<A>& row = last ? spat : chan;
  const Terms<A>& lane = last ? chan : spat;
  bool ent = row.ent || lane.ent;
  // The lanes' terms: mean, slope, level.
  Scratch<A> lm(m.n * s.lanes), ls(m.n * s.lanes), ll(m.n * s.lanes);
  parallel(m.n, m.n * s.lanes * 8, threads, [&](i64 n) {
    for (i64 i = n * s.lanes; i < (n + 1) * s.lanes; ++i)
      lm[i] = lane.mean(i), ls[i] = lane.slope(i), ll[i] = lane.level(i);
  });
  auto dense = [&](i64 r, A* out_acc) FLAT {  // row r of all; into out_acc, or dx where null
    i64 n = r / s.rows, o = r * s.lanes, b = n * s.lanes;
    auto in = incoming(r);
    A ref = refs ? refs[n] : A(0);
    V mean = all<A>(row.mean(r));
    auto save = [&](i64 l, V v, auto j) FLAT {
      if constexpr (std::is_same_v<T, A>) st(dx + o + l, v, j);
      else st(out_acc + l, v, j);
    };
    if (!ent) {
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        save(l, in(in.lanes(l, j), l, j) + mean + ld(lm + b + l, j), j);
      });
    } else if (ref == ref) {
      V slope = all<A>(row.slope(r)), level = all<A>(row.level(r));
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        V d = ld(x + o + l, j) - ref;
        V e = vexp(d) * (d * (slope + ld(ls + b + l, j)) + (level + ld(ll + b + l, j)));
        save(l, in(in.lanes(l, j), l, j) + (mean + ld(lm + b + l, j) + e), j);
      });
    } else {
      lanes<A>(0, s.lanes, [&](i64 l, auto j) FLAT {
        V z = ld(x + o + l, j), v = mean + ld(lm + b + l, j);
        if (row.ent) {
          V d = z - row.ref[r] - row.log[r];
          v -= vexp(d) * (d + row.h[r]) * row.ent[r];
        }
        if (lane.ent) {
          V d = z - ld(lane.ref + b + l, j) - ld(lane.log + b + l, j);
          v -= vexp(d) * (d + ld(lane.h + b + l, j)) * ld(lane.ent + b + l, j);
        }
        save(l, in(in.lanes(l, j), l, j) + v, j);
      });
    }
  };
  // The maxima: 5 and 25 elements around each arg-max, added while the plane (image row) is in cache.
  std::vector<std::unique_ptr<Buckets>> hits(m.n);
  auto narrow_out = [&](const A* acc, T* out, i64 n) FLAT {
    if constexpr (!std::is_same_v<T, A>)
      lanes<A>(0, n, [&](i64 l, auto j) FLAT { st(out + l, ld(acc + l, j), j); });
  };
  if (!last) {
    if (spat.max)
      parallel(m.n, size, threads, [&](i64 n) {
        hits[n] = std::make_unique<Buckets>(area, m.c, [&](i64 i) { return spat.at[n * area + i]; });
      });
    parallel(m.n * m.c, size, threads, [&](i64 plane) {
      i64 n = plane / m.c, c = plane % m.c;
      Scratch<A> acc(std::is_same_v<T, A> ? 0 : area);
      A* out = std::is_same_v<T, A> ? (A*)(dx + plane * area) : acc + 0;
      dense(plane, out);
      if (chan.max) {
        i64 h = chan.at[plane] / m.w, w = chan.at[plane] % m.w;
        for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
          out[(h + i - p) * m.w + w] += chan.max[plane] * taps[i];
      }
      if (spat.max)
        for (i64 b = hits[n]->start[c]; b < hits[n]->start[c + 1]; ++b) {
          i64 at = hits[n]->order[b], h = at / m.w, w = at % m.w;
          A g = spat.max[n * area + at];
          i64 j0 = std::max<i64>(0, p - w), j1 = std::min(k, m.w + p - w);
          for (i64 i = std::max<i64>(0, p - h); i < std::min(k, m.h + p - h); ++i)
            for (i64 j = j0; j < j1; ++j)
              out[(h + i - p) * m.w + w + j - p] += g * taps[i] * taps[j];
        }
      narrow_out(out, dx + plane * area, area);
    });
    return;
  }
  if (chan.max)
    parallel(m.n, size, threads, [&](i64 n) {
      hits[n] = std::make_unique<Buckets>(m.c, m.h, [&](i64 i) { return chan.at[n * m.c + i] / m.w; });
    });
  parallel(m.n * m.h, size, threads, [&](i64 nh) {
    i64 n = nh / m.h, h = nh % m.h;
    Scratch<A> acc(std::is_same_v<T, A> ? 0 : m.w * m.c);
    T* to = dx + nh * m.w * m.c;
    A* out = std::is_same_v<T, A> ? (A*)to : acc + 0;
    for (i64 w = 0; w < m.w; ++w) dense(nh * m.w + w, out + w * m.c);
    for (i64 from = std::max<i64>(0, h - p); from < std::min(m.h, h + p + 1); ++from) {
      A tap = taps[h - from + p];
      if (chan.max)
        for (i64 b = hits[n]->start[from]; b < hits[n]->start[from + 1]; ++b) {
          i64 c = hits[n]->order[b], w = chan.at[n * m.c + c] % m.w;
          out[w * m.c + c] += chan.max[n * m.c + c] * tap;
        }
      if (spat.max)
        for (i64 w = 0; w < m.w; ++w) {
          i64 at = n * area + from * m.w + w, c = spat.at[at];
          A g = spat.max[at] * tap;
          for (i64 j = std::max<i64>(0, p - w); j < std::min(k, m.w + p - w); ++j)
            out[(w + j - p) * m.c + c] += g * taps[j];
        }
    }
    narrow_out(out, to, m.w * m.c);
  });
}

// ------------------------------------------------------------------- CAT's normalised entropies

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

// ------------------------------------------------------------------------------------- the ABI

template <class F> void typed(int dtype, F&& f) {
  switch (dtype) {
    case 0: return f(float{});
    case 1: return f(double{});
    case 2: return f(bf16{});
    default: return f(f16{});
  }
}

template <class F> void kinds(int kind, F&& f) {
  switch (kind) {
    case 0: return f(RowGate{});
    case 1: return f(LaneGate{});
    case 2: return f(ProductGate{});
    case 3: return f(SumGate{});
    default: return f(DualGate{});
  }
}

// Every function: dtype 0 float, 1 double, 2 bfloat16, 3 half; sizes (N, C, H, W) and whether the map
// is channels_last. Pointers may be null where the functions above say so. What they point to:
struct Element;  // the map's dtype
struct Sum;      // its accumulator type: double for double, else float
#define A_ Acc<decltype(tag)>
#define SHAPE Shape s = last ? Shape{n, h * w, c} : Shape{n, c, h * w}

// Factors and their gradients come as (channel 0, position 0, channel 1, position 1); the kind is that
// of a contiguous map: 0 channel, 1 position, 2 product, 3 sum, 4 dual.
void mmattn_gate(int dtype, int kind, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w,
                 int last, const Sum* c0, const Sum* p0, const Sum* c1, const Sum* p1, int threads) {
  SHAPE;
  if (last && kind < 2) kind = 1 - kind;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    const A_* a[2] = {(const A_*)(last ? p0 : c0), (const A_*)(last ? p1 : c1)};
    const A_* b[2] = {(const A_*)(last ? c0 : p0), (const A_*)(last ? c1 : p1)};
    kinds(kind, [&](auto g) { gate<decltype(g)>((const T*)x, (T*)y, s, a, b, threads); });
  });
}

void mmattn_gate_grad(int dtype, int kind, const Element* x, const Element* dy, Element* dx, i64 n,
                      i64 c, i64 h, i64 w, int last, const Sum* c0, const Sum* p0, const Sum* c1,
                      const Sum* p1, Sum* gc0, Sum* gp0, Sum* gc1, Sum* gp1, int threads) {
  SHAPE;
  if (last && kind < 2) kind = 1 - kind;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    const A_* a[2] = {(const A_*)(last ? p0 : c0), (const A_*)(last ? p1 : c1)};
    const A_* b[2] = {(const A_*)(last ? c0 : p0), (const A_*)(last ? c1 : p1)};
    A_* da[2] = {(A_*)(last ? gp0 : gc0), (A_*)(last ? gp1 : gc1)};
    A_* db[2] = {(A_*)(last ? gc0 : gp0), (A_*)(last ? gc1 : gp1)};
    kinds(kind, [&](auto g) {
      gate_grad<decltype(g)>((const T*)x, (const T*)dy, (T*)dx, s, a, b, da, db, threads);
    });
  });
}

// Over the positions (of_channel: avg, max are (N, C)) of x, or over the channels of x * factor.
void mmattn_pool(int dtype, int of_channel, const Element* x, i64 n, i64 c, i64 h, i64 w, int last,
                 const Sum* factor, Sum* avg, Sum* max, int32_t* at, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto f = bool(of_channel) != bool(last) ? row_pool<T> : lane_pool<T>;
    f((const T*)x, s, (const A_*)factor, (A_*)avg, (A_*)max, (int32_t*)at, threads);
  });
}

// dx = dy * factor + gavg / (H W) + [argmax] gmax of each channel; factor (N, C) null: dx = dy + ...,
// dy null: no such term.
void mmattn_pool_grad(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                      const Sum* factor, const Sum* gavg, const Sum* gmax, const int32_t* at,
                      int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto g = (const A_*)gavg;
    const A_* f[1] = {(const A_*)factor};
    auto run = [&](const auto& incoming) {
      pool_grad<T>(incoming, (T*)dx, s, last ? nullptr : g, last ? g : nullptr, 1. / (h * w),
                   (const A_*)gmax, (const int32_t*)at, !last, threads);
    };
    if (!factor) run(Plain<T>{(const T*)dy, s.lanes});
    else if (last) run(Gated<LaneGate, T>{(const T*)dy, s, f, f});
    else run(Gated<RowGate, T>{(const T*)dy, s, f, f});
  });
}

void mmattn_spatial_pool_grad(int dtype, const Element* x, Element* dx, i64 n, i64 c, i64 h, i64 w,
                              int last, const Sum* factor, const Sum* gavg, const Sum* gmax,
                              const int32_t* at, Sum* dc, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    spatial_pool_grad<T>((const T*)x, (T*)dx, s, !last, (const A_*)factor, (const A_*)gavg,
                         (const A_*)gmax, (const int32_t*)at, (A_*)dc, threads);
  });
}

void mmattn_cbam_grad(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                      const Sum* channel, const Sum* spatial, const Sum* ga, const Sum* gm,
                      const int32_t* at, const Sum* gavg, const Sum* gmax, const int32_t* channel_at,
                      int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    Cbam<T> g{(const T*)dy, (const A_*)channel, (const A_*)spatial, (const A_*)ga, (const A_*)gm,
              (const A_*)gavg, (const A_*)gmax, channel_at, at};
    cbam_grad<T>(g, (T*)dx, s, !last, threads);
  });
}

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

// dy null: out = x * fh * fw. Else out = dx (or null), and dh, dw are written.
void mmattn_coord(int dtype, const Element* x, const Element* dy, Element* out, i64 n, i64 c, i64 h,
                  i64 w, int last, const Sum* fh, const Sum* fw, Sum* dh, Sum* dw, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    (last ? coord_nhwc<T> : coord_nchw<T>)((const T*)x, (const T*)dy, (T*)out, Map{n, c, h, w},
                                           (const A_*)fh, (const A_*)fw, (A_*)dh, (A_*)dw, threads);
  });
}

void mmattn_coord_dx(int dtype, const Element* dy, Element* dx, i64 n, i64 c, i64 h, i64 w, int last,
                     const Sum* fh, const Sum* fw, const Sum* gch, const Sum* gcw, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    coord_dx<T>((const T*)dy, (T*)dx, Map{n, c, h, w}, last, (const A_*)fh, (const A_*)fw,
                (const A_*)gch, (const A_*)gcw, threads);
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

// chunks: pairs of begin and end, for height and width (S each) and the channels (M). weights, taken,
// out, strips, at, grads: pointers as the functions above take them.
void mmattn_rank1_pool(int dtype, const Sum* ch, const Sum* cw, const Sum* hw, i64 n, i64 c, i64 h,
                       i64 w, i64 s, i64 m, const i64* chunks, Sum** weights, Sum** taken, Sum** out,
                       Sum** strips, int32_t** at, int threads) {
  Planes p = planes_of({n, c, h, w}, s, m, chunks);
  typed(dtype, [&](auto tag) {
    rank1_pool<A_>((const A_*)ch, (const A_*)cw, (const A_*)hw, p, (const A_**)weights,
                   (const A_**)taken, (A_**)out, (A_**)strips, (int32_t**)at, threads);
  });
}

void mmattn_rank1_pool_grad(int dtype, const Sum* ch, const Sum* cw, const Sum* hw, i64 n, i64 c,
                            i64 h, i64 w, i64 s, i64 m, const i64* chunks, Sum** weights, Sum** taken,
                            Sum** grads, Sum** strips, int32_t** at, Sum** dplanes, Sum** dweights,
                            Sum** dtaken, int threads) {
  Planes p = planes_of({n, c, h, w}, s, m, chunks);
  typed(dtype, [&](auto tag) {
    rank1_pool_grad<A_>((const A_*)ch, (const A_*)cw, (const A_*)hw, p, (const A_**)weights,
                        (const A_**)taken, (const A_**)grads, (const A_**)strips,
                        (const int32_t**)at, (A_**)dplanes, false, (A_**)dweights, (A_**)dtaken,
                        threads);
  });
}

// chunks: as above; params, running, rules, dparams: as `Rank1` has them; kept, at: what forward leaves
// for backward. The first returns the number of floats of `kept`; without y that is all it does.
i64 mmattn_rank1_attention(int dtype, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w,
                           int last, i64 s, i64 m, const i64* chunks, i64 hidden, int modules,
                           Sum** params, Sum** running, const double* rules, Sum* kept, int32_t* at,
                           int threads) {
  i64 size = 0;
  typed(dtype, [&](auto tag) {
    Rank1<A_> r{{n, c, h, w}, bool(last), planes_of({n, c, h, w}, s, m, chunks), hidden, modules,
                (A_**)params, (A_**)running, rules};
    size = r.lay_out((A_*)kept, (int32_t*)at);
    if (y) rank1_attention((const decltype(tag)*)x, (decltype(tag)*)y, r, threads);
  });
  return size;
}

void mmattn_rank1_attention_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n,
                                 i64 c, i64 h, i64 w, int last, i64 s, i64 m, const i64* chunks,
                                 i64 hidden, int modules, Sum** params, const double* rules,
                                 Sum* kept, int32_t* at, Sum** dparams, int threads) {
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    Rank1<A_> r{{n, c, h, w}, bool(last), planes_of({n, c, h, w}, s, m, chunks), hidden, modules,
                (A_**)params, nullptr, rules};
    r.lay_out((A_*)kept, (int32_t*)at);
    rank1_attention_grad((const T*)x, (const T*)dy, (T*)dx, r, (A_**)dparams, threads);
  });
}

void mmattn_spatial_conv(int dtype, const Sum* maps, const Sum* weights, Sum* out, i64 n, i64 m,
                         i64 h, i64 w, i64 kh, i64 kw, int threads) {
  typed(dtype, [&](auto tag) {
    spatial_conv<A_>((const A_*)maps, (const A_*)weights, (A_*)out, n, m, h, w, kh, kw, threads);
  });
}

void mmattn_spatial_conv_grad(int dtype, const Sum* maps, const Sum* weights, const Sum* dy,
                              Sum* dmaps, Sum* dweights, i64 n, i64 m, i64 h, i64 w, i64 kh, i64 kw,
                              int threads) {
  typed(dtype, [&](auto tag) {
    spatial_conv_grad<A_>((const A_*)maps, (const A_*)weights, (const A_*)dy, (A_*)dmaps,
                          (A_*)dweights, n, m, h, w, kh, kw, threads);
  });
}

void mmattn_min_max(int dtype, const Sum* v, Sum* out, i64 n, i64 length, double low, double high,
                    int threads) {
  typed(dtype, [&](auto tag) {
    min_max<A_>((const A_*)v, (A_*)out, n, length, A_(low), A_(high), threads);
  });
}

void mmattn_min_max_grad(int dtype, const Sum* v, const Sum* g, Sum* dv, i64 n, i64 length,
                         double stretch, int threads) {
  typed(dtype, [&](auto tag) {
    min_max_grad<A_>((const A_*)v, (const A_*)g, (A_*)dv, n, length, A_(stretch), threads);
  });
}

// channel, spatial: pointers to avg, max, ent, log s, ref. Returns the number of wide samples.
i64 mmattn_entropy(int dtype, const Element* x, i64 n, i64 c, i64 h, i64 w, int last, const Sum* taps,
                   i64 k, Sum** channel, int32_t* channel_at, Sum** spatial, int32_t* spatial_at,
                   Sum* refs, int threads) {
  i64 wide = 0;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto side = [](Sum** v, int32_t* at) {
      return Side<A_>{(A_*)v[0], (A_*)v[1], (A_*)v[2], (A_*)v[3], (A_*)v[4], at};
    };
    wide = entropy_pool<T>((const T*)x, Map{n, c, h, w}, last, (const A_*)taps, k,
                           side(channel, channel_at), side(spatial, spatial_at), (A_*)refs, threads);
  });
  return wide;
}

// channel, spatial: pointers to g_avg, g_ent, g_max, entropy, log s, ref. With factors c, p of a sum
// gate dx = dy * (c + p) + ...; dy null: no such term.
void mmattn_entropy_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c,
                         i64 h, i64 w, int last, const Sum* taps, i64 k, Sum** channel,
                         const int32_t* channel_at, Sum** spatial, const int32_t* spatial_at,
                         const Sum* refs, const Sum* fc, const Sum* fp, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    auto terms = [](Sum** v, const int32_t* at, i64 count) {
      return Terms<A_>{(const A_*)v[0], (const A_*)v[1], (const A_*)v[2], (const A_*)v[3],
                       (const A_*)v[4], (const A_*)v[5], at,              count};
    };
    auto run = [&](const auto& incoming) {
      entropy_grad<T>((const T*)x, incoming, (T*)dx, Map{n, c, h, w}, last, (const A_*)taps, k,
                      terms(channel, channel_at, h * w), terms(spatial, spatial_at, c),
                      (const A_*)refs, threads);
    };
    const A_ *a[1] = {(const A_*)(last ? fp : fc)}, *b[1] = {(const A_*)(last ? fc : fp)};
    if (fc) run(Gated<SumGate, T>{(const T*)dy, s, a, b});
    else run(Plain<T>{(const T*)dy, s.lanes});
  });
}

// How a function is called: a letter for each argument, made from its type.
template <class T> constexpr char kLetter = 0;
template <> constexpr char kLetter<int> = 'i';
template <> constexpr char kLetter<i64> = 'n';
template <> constexpr char kLetter<double> = 'd';
template <> constexpr char kLetter<Element*> = 'x';
template <> constexpr char kLetter<Sum*> = 's';
template <> constexpr char kLetter<int32_t*> = 'k';
template <> constexpr char kLetter<Sum**> = 'S';
template <> constexpr char kLetter<int32_t**> = 'K';
template <> constexpr char kLetter<double*> = 'D';
template <> constexpr char kLetter<i64*> = 'N';
template <class T> constexpr char kLetter<const T*> = kLetter<T*>;

// A function as it is called from outside: no exception leaves it, a negative result stands for one.
constexpr i64 kNoMemory = -1, kFailed = -2;
template <auto F> struct Outside;
template <class R, class... Args, R (*F)(Args...)> struct Outside<F> {
  static_assert((... && (kLetter<Args> != 0)), "an argument of a type that has no letter");
  static constexpr char letters[] = {kLetter<Args>..., 0};
  static i64 call(Args... args) noexcept {
    try {
      if constexpr (std::is_void_v<R>) return F(args...), 0;
      else return F(args...);
    } catch (const std::bad_alloc&) {
      return kNoMemory;
    } catch (const std::length_error&) {  // a std::vector larger than any memory
      return kNoMemory;
    } catch (...) {
      return kFailed;
    }
  }
};

struct Entry {
  const char *name, *letters;
  void* call;
};
#define ENTRY(name) Entry{#name, Outside<mmattn_##name>::letters, (void*)Outside<mmattn_##name>::call}

const Entry entries[] = {
    ENTRY(gate), ENTRY(gate_grad), ENTRY(pool), ENTRY(pool_grad), ENTRY(spatial_pool_grad), ENTRY(cbam_grad), ENTRY(coord_dx),
    ENTRY(strips), ENTRY(strips_grad), ENTRY(coord), ENTRY(outer), ENTRY(outer_grad),
    ENTRY(rank1_pool), ENTRY(rank1_pool_grad), ENTRY(rank1_attention),
    ENTRY(rank1_attention_grad), ENTRY(spatial_conv), ENTRY(spatial_conv_grad), ENTRY(min_max),
    ENTRY(min_max_grad), ENTRY(entropy), ENTRY(entropy_grad), Entry{},
};

}  // namespace

// All that the library shows: its functions, up to one without a name.
extern "C" __attribute__((visibility("default"))) const Entry* mmattn_entries() { return entries; }
