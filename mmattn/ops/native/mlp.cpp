// A factor of each channel, made of its descriptors: SE's and CBAM's layers.

#include "functions.h"
#include "mlp.h"
#include "sigmoid.h"

namespace {

// weights, dweights: w1, b1, w2, b2, of which b1 and b2 may be null.
template <class A> Mlp<A> mlp_of(i64 n, i64 parts, i64 channels, i64 hidden, A* const* w) {
  return {n, parts, channels, hidden, w[0], w[1], w[2], w[3], nullptr};
}

}  // namespace

// From P descriptors (N, C): them side by side v (N, P, C), the hidden values (N, P, K), and the factors
// c = sigmoid(sum over p of MLP(v[p])).
void mmattn_channel_factors(int dtype, Sum** descriptors, i64 n, i64 parts, i64 channels, i64 hidden,
                            Sum** weights, Sum* v, Sum* hiddens, Sum* c, int threads) {
  typed(dtype, [&](auto tag) {
    auto from = (const A_* const*)descriptors;
    for (i64 i = 0; i < n * parts; ++i)
      std::copy_n(from[i % parts] + i / parts * channels, channels, (A_*)v + i * channels);
    mlp(mlp_of(n, parts, channels, hidden, (A_**)weights), (const A_*)v, (A_*)hiddens, (A_*)c, threads);
    sigmoid((const A_*)c, (A_*)c, n * channels);
  });
}

// grads: three of c to be added up, of which two may be null. dv: of the P descriptors, (N, C).
void mmattn_channel_factors_grad(int dtype, Sum** grads, const Sum* c, const Sum* v, const Sum* hiddens,
                                 i64 n, i64 parts, i64 channels, i64 hidden, Sum** weights, Sum** dv,
                                 Sum** dweights, int threads) {
  typed(dtype, [&](auto tag) {
    Scratch<A_> g(n * channels), side_by_side(n * parts * channels);
    add_up((const A_* const*)grads, 3, g + 0, n * channels);
    sigmoid_grad((const A_*)(g + 0), (const A_*)c, g + 0, n * channels);
    mlp_grad(mlp_of(n, parts, channels, hidden, (A_**)weights), (const A_*)v, (const A_*)hiddens,
             (const A_*)(g + 0), side_by_side + 0, (A_**)dweights, (A_*)nullptr, false, threads);
    for (i64 i = 0; i < n * parts; ++i)
      std::copy_n(side_by_side + i * channels, channels, (A_*)dv[i % parts] + i / parts * channels);
  });
}

SHOW(
    ENTRY(channel_factors),
    ENTRY(channel_factors_grad))
