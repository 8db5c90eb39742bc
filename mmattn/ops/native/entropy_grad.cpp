// The gradient of CAT's three pools of both axes, alone or with that of the factors.

#include "entropy_grad.h"
#include "functions.h"

// channel, spatial: pointers to g_avg, g_ent, g_max, entropy, log s, ref. With factors c, p of a sum
// gate dx = dy * (c + p) + ..., with a share v of the identity dy * (c + v p); dy null: no such term.
void mmattn_entropy_grad(int dtype, const Element* x, const Element* dy, Element* dx, i64 n, i64 c,
                         i64 h, i64 w, int last, const Sum* taps, i64 k, Sum** channel,
                         const int32_t* channel_at, Sum** spatial, const int32_t* spatial_at,
                         const Sum* refs, const Sum* fc, const Sum* fp, const Sum* fv,
                         int threads) {
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
    const A_ *channels[2] = {(const A_*)fc, (const A_*)fv}, *positions[1] = {(const A_*)fp};
    const A_ *const *a = last ? positions : channels, *const *b = last ? channels : positions;
    if (!fc) return run(Plain<T>{(const T*)dy, s.lanes});
    if (!fv) run(Scaled<SumScale, T>{(const T*)dy, s, a, b});
    else if (last) run(Scaled<Either<Affine, true>, T>{(const T*)dy, s, a, b});
    else run(Scaled<Either<Affine, false>, T>{(const T*)dy, s, a, b});
  });
}

SHOW(ENTRY(entropy_grad))
