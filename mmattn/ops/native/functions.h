// The functions of other files that a gate's one is made of, as they are called from outside (abi.h).
#pragma once

#include "abi.h"

extern "C" {  // so that a definition of other arguments does not compile

enum Scales { kChannel, kPosition, kProduct, kSum, kDual, kAffine, kPartOfDual };

// scale.cpp
void mmattn_scale(int dtype, int kind, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w,
                  int last, const Sum* c0, const Sum* p0, const Sum* c1, const Sum* p1,
                  const Sum* c2, int threads);
void mmattn_scale_grad(int dtype, int kind, const Element* x, const Element* dy, Element* dx, i64 n,
                       i64 c, i64 h, i64 w, int last, const Sum* c0, const Sum* p0, const Sum* c1,
                       const Sum* p1, const Sum* c2, Sum* gc0, Sum* gp0, Sum* gc1, Sum* gp1,
                       Sum* gc2, int threads);

// pool.cpp
void mmattn_pool(int dtype, int of_channel, const Element* x, i64 n, i64 c, i64 h, i64 w, int last,
                 const Sum* factor, Sum* avg, Sum* max, int32_t* at, int threads);
void mmattn_spatial_pool_grad(int dtype, const Element* x, Element* dx, i64 n, i64 c, i64 h, i64 w,
                              int last, const Sum* factor, const Sum* gavg, const Sum* gmax,
                              const int32_t* at, Sum* dc, int threads);

// mlp.cpp
void mmattn_channel_factors(int dtype, Sum** descriptors, i64 n, i64 parts, i64 channels, i64 hidden,
                            Sum** weights, Sum* v, Sum* hiddens, Sum* c, int threads);
void mmattn_channel_factors_grad(int dtype, Sum** grads, const Sum* c, const Sum* v, const Sum* hiddens,
                                 i64 n, i64 parts, i64 channels, i64 hidden, Sum** weights, Sum** dv,
                                 Sum** dweights, int threads);

// entropy.cpp, entropy_grad.cpp
i64 mmattn_entropy(int dtype, const Element* x, i64 n, i64 c, i64 h, i64 w, int last, const Sum* taps,
                   i64 k, Sum** channel, int32_t* channel_at, Sum** spatial, int32_t* spatial_at,
                   Sum* refs, int threads);
void mmattn_entropy_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c,
                         i64 h, i64 w, int last, const Sum* taps, i64 k, Sum** channel,
                         const int32_t* channel_at, Sum** spatial, const int32_t* spatial_at,
                         const Sum* refs, const Sum* fc, const Sum* fp, const Sum* fv,
                         int threads);

}  // extern "C"

namespace {

// Of n values of a dtype's accumulator type: their bytes, and uninitialised memory for them.
inline size_t sum_bytes(int dtype, i64 n) { return n * (dtype == 1 ? sizeof(double) : sizeof(float)); }
struct SumScratch {
  std::unique_ptr<char[]> p;
  SumScratch(int dtype, i64 n) : p(new char[sum_bytes(dtype, n)]) {}
  operator Sum*() const { return (Sum*)p.get(); }
};

}  // namespace
