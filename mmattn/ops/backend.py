"""What a kernel backend is: a module of functions on plain tensors that know nothing of autograd.

`mmattn.ops.native` is that of CPUs, `mmattn.ops.triton` that of CUDA. The operators
(`mmattn.ops.library`) call them, and nobody else.

What an operator guarantees to a backend
----------------------------------------
- `takes(x.device, x.dtype)`; x (N, C, H, W) is dense and not empty, contiguous or channels_last.
- `dy` and `dx` have x's shape, dtype and strides.
- Vectors (c, s, h, w, g*) are contiguous, on x's device and of the accumulator type `acc`: float64
  for float64 x, else float32. A `g*` may be None: zero.

What a backend guarantees
-------------------------
- Full-size results (y, dx) have x's dtype and strides; vectors are `acc` and contiguous.
- One element's arithmetic is done in `acc` and rounded once. NaN in, NaN out. Of tied maxima any
  one (the same one each time) gets the gradient. Two runs give the same bits: no atomics.
- What is kept for backward (`saved`) has the shapes and types of its `SAVED`.

The functions of a backend
--------------------------
Shapes: avg, max, c: (N, C) (of `spatial_pool` avg, max, at: (N, H, W)); s: (N, H, W);
ch, coord h: (N, C, H); cw, coord w: (N, C, W); hw: (N, H, W); rank-1 c: (N, C), h: (N, H),
w: (N, W). `at`: int32, where a maximum is.

    takes(device, dtype) -> bool        # device, dtype, toolchain; never raises
    works(device) -> bool               # whether there are kernels on a device
    IDENTITY: the operators whose kernels know the identity in part (`mmattn.ops.identity`): of
        cbam, coord, cat the functions below take what stands after `|`, None by default
    passes(op, x) -> bool               # may be left out: whether an operator passed its self-check
    operator(name) -> function | None   # may be left out: an operator of the library as a whole,
                                        # called with its arguments; NotImplemented: not for these
    declines(op, x, **options) -> bool  # whether PyTorch's own calls are quicker for this op and x
    left_to_compilers(op, dtype, **options) -> int  # may be left out: of less bytes of a map,
                                                    # compiled code has equations for this op
    SAVED: of an operator, a function of x and its options: [(shape, whether of integers), ...]

    channel_pool(x, maximum) -> avg, max | None, at | None
    channel_pool_grad(dx, gavg, gmax, at) -> dx         # dx: a buffer without values
    spatial_pool(x, c) -> avg, max, at                  # over the channels of x * c
    spatial_pool_grad(x, c, gavg, gmax, at, need_x) -> dx | None, dc
    strip_pool(x, channel) -> ch, cw, hw | None         # means over W, over H, over C
    strip_pool_grad(dx, gch, gcw, ghw) -> dx
    entropy_pool(x, taps, channel, spatial, avg, max, ent)
        -> (c_avg, c_max, c_ent, s_avg, s_max, s_ent), saved
        # None where not asked for; taps: 1-D, odd length
    entropy_pool_grad(x, taps, grads, saved) -> dx

    rank1_pool(planes, weights, chunks, taken) -> (c, h, w), saved
    rank1_pool_grad(planes, weights, chunks, taken, grads, saved) -> dplanes, dweights, dtaken
    spatial_conv(maps, weight) -> out                   # (N, M, H, W), (1, M, kh, kw) -> (N, H, W)
    spatial_conv_grad(maps, weight, dy) -> dmaps, dweight
    min_max(v, low, high) -> u
    min_max_grad(v, low, high, dy) -> dv

    channel_scale(x, c) -> y, channel_scale_grad(x, c, dy, need_x) -> dx, dc
    spatial_scale(x, s), product_scale(x, c, s), sum_scale(x, c, s), coord_scale(x, h, w | u),
    rank1_scale(x, c, h, w[, c2, h2, w2 | a]) and theirs: the same
    affine_scale(x, u, v, s) and its: the same      # x * (u + v s); u, v and a: (N, C)

    All of DRTAM, if `operator` does not give the whole; moments: as of the operator `drtam`
    rank1_attention(x, params, running, by_batch, eps, chunks | a) -> y, moments, saved
    rank1_attention_grad(x, params, by_batch, eps, chunks, saved | a, dy, need_x)
        -> dx, dparams | da
    rank1_attention_parts(x, params, chunks, saved) -> planes, [(descriptors, factors), ...]

A backend may have more, which take the place of several calls of PyTorch: functions of the names
that `mmattn.ops.layers.or_own` marks, as `channel_factors`, with what they are called with.

How a gate's backward ends
--------------------------
    channel_dx(dy, c, gavg, gmax, at) -> dx                             # SE, ECA
    cbam_dx(dy, c, s, ga, gm, at, gavg, gmax, channel_at | a) -> dx     # CBAM; no g* is None
    coord_dx(dy, h, w, gch, gcw | u) -> dx                              # coordinate attention
    entropy_dx(x, taps, dy, c, s, grads, saved | v) -> dx               # CAT, dy * (c + v s)

One pass reads dy, scales it, adds the pools' gradients and writes. The scale's gradient before it
was asked for those of the factors alone (`need_x` False).
"""
