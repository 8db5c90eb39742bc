// CAT's three pools of both axes.

#include "entropy_pool.h"
#include "functions.h"

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
    Map m{n, c, h, w};
    auto of_channels = side(channel, channel_at), of_positions = side(spatial, spatial_at);
    wide = !last && h * w <= kFew
               ? entropy_of_few<T>((const T*)x, m, (const A_*)taps, k, of_channels, of_positions,
                                   (A_*)refs, threads)
               : entropy_pool<T>((const T*)x, m, last, (const A_*)taps, k, of_channels, of_positions,
                                 (A_*)refs, threads);
  });
  return wide;
}

SHOW(ENTRY(entropy))
