// Scales: SE, ECA, CBAM and CAT.

#include "functions.h"
#include "scale.h"

namespace {

template <class F> void kinds(int kind, bool last, F&& f) {
  switch (kind) {
    case kChannel: return last ? f(LaneScale{}) : f(RowScale{});
    case kPosition: return last ? f(RowScale{}) : f(LaneScale{});
    case kProduct: return f(ProductScale{});
    case kSum: return f(SumScale{});
    case kDual: return f(DualScale{});
    case kAffine: return last ? f(Either<Affine, true>{}) : f(Either<Affine, false>{});
    default: return last ? f(Either<PartDual, true>{}) : f(Either<PartDual, false>{});
  }
}

}  // namespace

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

// Factors and their gradients come as (channel 0, position 0, channel 1, position 1, channel 2); kind:
// one of `Scales`.
void mmattn_scale(int dtype, int kind, const Element* x, Element* y, i64 n, i64 c, i64 h, i64 w,
                 int last, const Sum* c0, const Sum* p0, const Sum* c1, const Sum* p1,
                 const Sum* c2, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    const A_* fc[3] = {(const A_*)c0, (const A_*)c1, (const A_*)c2};
    const A_* fp[3] = {(const A_*)p0, (const A_*)p1};
    auto a = last ? fp : fc, b = last ? fc : fp;
    kinds(kind, last, [&](auto g) { scale<decltype(g)>((const T*)x, (T*)y, s, a, b, threads); });
  });
}

void mmattn_scale_grad(int dtype, int kind, const Element* x, const Element* dy, Element* dx, i64 n,
                      i64 c, i64 h, i64 w, int last, const Sum* c0, const Sum* p0, const Sum* c1,
                      const Sum* p1, const Sum* c2, Sum* gc0, Sum* gp0, Sum* gc1, Sum* gp1,
                      Sum* gc2, int threads) {
  SHAPE;
  typed(dtype, [&](auto tag) {
    using T = decltype(tag);
    const A_* fc[3] = {(const A_*)c0, (const A_*)c1, (const A_*)c2};
    const A_* fp[3] = {(const A_*)p0, (const A_*)p1};
    auto a = last ? fp : fc, b = last ? fc : fp;
    A_ *gc[3] = {(A_*)gc0, (A_*)gc1, (A_*)gc2}, *gp[3] = {(A_*)gp0, (A_*)gp1};
    auto da = last ? gp : gc, db = last ? gc : gp;
    kinds(kind, last, [&](auto g) {
      scale_grad<decltype(g)>((const T*)x, (const T*)dy, (T*)dx, s, a, b, da, db, threads);
    });
  });
}

SHOW(
    ENTRY(scale),
    ENTRY(scale_grad))
