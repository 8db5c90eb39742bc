// The convolution of maps to one, and normalised entropies, each by itself.

#include "abi.h"
#include "convolution.h"
#include "min_max.h"

namespace {

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

}  // namespace

SHOW(
    ENTRY(spatial_conv),
    ENTRY(spatial_conv_grad),
    ENTRY(min_max),
    ENTRY(min_max_grad))
