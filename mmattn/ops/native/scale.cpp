// Scales: SE, ECA, CBAM and CAT.

#include "abi.h"
#include "scale.h"

namespace {

template <class F> void kinds(int kind, F&& f) {
  switch (kind) {
    case 0: return f(RowGate{});
    case 1: return f(LaneGate{});
    case 2: return f(ProductGate{});
    case 3: return f(SumGate{});
    default: return f(DualGate{});
  }
}

// --------------------------------------------------------------------------------------------------
// As they are called from outside.

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

}  // namespace

SHOW(
    ENTRY(gate),
    ENTRY(gate_grad))
