// Matrices turned.
#pragma once

#include "work.h"

namespace {

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

}  // namespace
