// Vectors of every dtype: loads, stores, exponentials, running maxima.
#pragma once

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

// The largest of a vector's values, and its index, of equals the smallest: halves compared, then theirs.
template <class A, class V, class I> INLINE void first_of(V v, I i, A* top, int32_t* at) {
  auto better = [](auto& a, auto& k, auto b, auto l) FLAT {
    auto take = (b > a) | ((b != b) & (a == a)) | ((b == a) & (l < k));
    a = take ? b : a;
    k = take ? l : k;
  };
  if constexpr (sizeof v == 2 * sizeof(A)) {  // with vectors still: a branch would be a guess
    better(v, i, V{v[1], v[0]}, I{i[1], i[0]});
    *top = v[0];
    *at = int32_t(i[0]);
  } else {
    typedef A HalfV __attribute__((vector_size(sizeof(V) / 2)));
    typedef Index<A> HalfI __attribute__((vector_size(sizeof(I) / 2)));
    HalfV v2[2];
    HalfI i2[2];
    std::memcpy(v2, &v, sizeof v);  // all at once, or the compiler keeps v in memory
    std::memcpy(i2, &i, sizeof i);
    better(v2[0], i2[0], v2[1], i2[1]);
    first_of<A>(v2[0], i2[0], top, at);
  }
}

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
  INLINE void best(A* top, int32_t* at) const { first_of(value, index, top, at); }  // over the lanes
};
template <class A> INLINE Vec<A> outside(Vec<A> v, int n) {  // lanes from n on: -infinity
  return iota<A>() < Int<A>{} + n ? v : all<A>(-std::numeric_limits<A>::infinity());
}

}  // namespace
