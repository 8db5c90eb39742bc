from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register_gate

from .checks import (
    check_choice,
    check_flags,
    check_int,
    check_number,
    check_odd,
    check_range,
    check_subset,
)
from .gate import (
    Gate,
    SpatialConv,
    as_input_of,
    is_plain,
    listened_to,
    mlp,
    mlp_weights,
    runs_kernels,
    tensor,
)

ARRANGEMENTS = ('parallel', 'channel', 'spatial', 'channel-spatial', 'spatial-channel')
FORMULAS = ('equation', 'algorithm')
POOLS = ('avg', 'max', 'ent')
FUSIONS = ('sum', 'concat')


def gaussian(size: int, sigma: float | None = None) -> Tensor:
    """`size` weights of sum 1. sigma None is OpenCV's rule, 0.3 * ((size - 1) / 2 - 1) + 0.8.

    They lie on the default device; on the CPU where that is the meta device, which has no values.
    """
    if sigma is None:
        sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    device = torch.empty(0).device
    cpu = torch.device('cpu')
    offsets = torch.arange(size, dtype=torch.float64, device=cpu) - (size - 1) / 2
    taps = torch.exp(-((offsets / sigma) ** 2) / 2)
    taps = (taps / taps.sum()).to(torch.get_default_dtype())
    return taps.to(cpu if device.type == 'meta' else device)


@register_gate
class CAT(Gate):
    """CAT: Learning to Collaborate Channel and Spatial Attention from Multi-Information Fusion

    IET Computer Vision, https://arxiv.org/abs/2212.06335

    Channel and spatial attention side by side, each from average, maximum and global entropy
    pooling, weighed by learned colla-factors: interior ones between the poolings (eq. 5 and 7),
    exterior ones between the two attentions (eq. 1). (N, C, H, W) -> (N, C, H, W).

    MLP and convolution have no biases and start from PyTorch's default initialisation, in every
    host. All colla-factors start from 0 (the exterior ones through a softmax, from 1/2 each).

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(1, C // r).
        arrangement (str): 'parallel' is CAT. 'channel' and 'spatial' are one attention alone,
            'channel-spatial' and 'spatial-channel' one after the other (Table 6); each of these
            multiplies by its sigmoid and has no exterior factors.
        formula (str): How 'parallel' joins its two. 'equation' is eq. 1,
            y = x * sigmoid(C'_A C_w) + x * sigmoid(S'_A S_w); S'_A is a sigmoid already (eq. 7).
            'algorithm' is Algorithm 1, y = x * (C_w sigmoid(C'_A) + S_w S'_A).
        pools (sequence of str): Which of 'avg', 'max', 'ent' to use; without 'ent' is "w/o GEP".
        entropy_range (tuple): Range of the normalised entropies: (0, 1) as eq. 4 gives, or
            (-1, 1) as the text says.
        gaussian_size (int): Size k of the zero-padded low-pass before each maximum, odd: k x 1 for
            the channel attention, k x k for the spatial one. 0 or 1 is no filter.
        gaussian_sigma (float, optional): In pixels; None is OpenCV's rule (1.1 for k = 5).
        spatial_kernel (int): Size of the spatial convolution, odd.
        spatial_fusion (str): What that convolution takes: the weighted 'sum' of the maps (eq. 7),
            one map, or the maps side by side, each times its interior factor, 'concat' (Fig. 3 b).
            The parameters and FLOPs of Table 3 are those of three maps.
        interior (bool): Whether to have interior factors; without, the poolings are summed.
        interior_softmax (bool): Whether to take the softmax of the interior factors.
        exterior (bool): Whether to have exterior factors; without, both are 1.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'cat'
    # Who changes one of these in a subclass is heard.
    taps: Tensor
    _PARTS = ('channel_attention', 'spatial_attention', '_pool', '_stack', '_weigh')

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        arrangement: str = 'parallel',
        formula: str = 'equation',
        pools: Sequence[str] = POOLS,
        entropy_range: Sequence[float] = (0, 1),
        gaussian_size: int = 5,
        gaussian_sigma: float | None = None,
        spatial_kernel: int = 7,
        spatial_fusion: str = 'sum',
        interior: bool = True,
        interior_softmax: bool = False,
        exterior: bool = True,
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_choice('arrangement', arrangement, ARRANGEMENTS)
        check_choice('formula', formula, FORMULAS)
        check_subset('pools', pools, POOLS)
        check_range('entropy_range', entropy_range)
        if gaussian_size != 0:
            check_odd('gaussian_size (or 0)', gaussian_size)
        if gaussian_sigma is not None:
            check_number('gaussian_sigma (or None)', gaussian_sigma, 0)
        check_odd('spatial_kernel', spatial_kernel)
        check_choice('spatial_fusion', spatial_fusion, FUSIONS)
        check_flags(interior=interior, interior_softmax=interior_softmax, exterior=exterior)

        self.arrangement = arrangement
        self.formula = formula
        self.pools = tuple(pool for pool in POOLS if pool in pools)
        low, high = entropy_range
        self.entropy_range = low, high
        self.spatial_fusion = spatial_fusion
        self.interior_softmax = interior_softmax
        self.channel_factors = self.spatial_factors = self.exterior_logits = None
        if arrangement != 'spatial':
            self.mlp = mlp(in_channels, max(1, in_channels // reduction), bias=False)
            if interior:
                self.channel_factors = nn.Parameter(torch.zeros(len(self.pools)))
        if arrangement != 'channel':
            self.conv = SpatialConv(
                1 if spatial_fusion == 'sum' else len(self.pools), spatial_kernel
            )
            if interior:
                self.spatial_factors = nn.Parameter(torch.zeros(len(self.pools)))
        if exterior and arrangement == 'parallel':
            self.exterior_logits = nn.Parameter(torch.zeros(2))
        # Not learned, so not in the state dict.
        self.gaussian = max(1, gaussian_size), gaussian_sigma
        self.register_buffer('taps', gaussian(*self.gaussian), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'CAT':
        """The taps are computed anew where they become another tensor: `to_empty` leaves them
        without values, and no state dict would bring any."""
        before = self.taps
        super()._apply(fn, recurse)
        if self.taps is not before and not self.taps.is_meta:
            with torch.no_grad():
                self.taps.copy_(gaussian(*self.gaussian))
        return self

    def gate(self, x: Tensor) -> Tensor:
        a = tensor(self, 'identity_scale')
        if self.arrangement == 'parallel':
            if (y := self._by_operator(x, a)) is not None:
                return y
            of_channels, of_positions = self._pool(x)
            channel = self.channel_attention(of_channels)
            spatial = self.spatial_attention(of_positions)
            c_w, s_w = self._exterior()
            if self.formula == 'equation':
                channel, spatial = (channel * c_w).sigmoid(), (spatial * s_w).sigmoid()
            else:
                channel, spatial = channel.sigmoid() * c_w, spatial * s_w
            return ops.sum_scale(x, channel, spatial, impl=self.impl, identity_scale=a)
        steps, y, factors = self.arrangement.split('-'), x, {}
        scale: Any
        for step in steps:
            if step == 'channel':
                stats, _ = self._pool(y, spatial=False)
                scale, factor = ops.channel_scale, self.channel_attention(stats).sigmoid()
            else:
                _, stats = self._pool(y, channel=False)
                scale, factor = ops.spatial_scale, self.spatial_attention(stats)
            factors[step] = factor
            if a is None or len(factors) < len(steps):
                y = scale(y, factor, impl=self.impl)
        if a is None:
            return y
        # The last factors, or both, with a share of the identity.
        scale = ops.product_scale if len(steps) == 2 else scale
        in_order = [factors[step] for step in ('channel', 'spatial') if step in factors]
        return scale(x, *in_order, impl=self.impl, identity_scale=a)

    def _by_operator(self, x: Tensor, a: Tensor | None) -> Tensor | None:
        """y, or None where no operator may stand in for the layers."""
        layers = mlp_weights(self.mlp)
        kind = type(self)
        own = kind is CAT or all(getattr(kind, name) is getattr(CAT, name) for name in self._PARTS)
        if not own or layers is None or listened_to() or not is_plain(self.conv, SpatialConv):
            return None
        w1, b1, w2, b2 = layers
        kernel, taps = tensor(self.conv, 'weight'), tensor(self, 'taps')
        given = [w1, w2, kernel, self.channel_factors, self.spatial_factors, self.exterior_logits]
        if any(t is not None for t in (b1, b2, self.conv.bias)) or taps.requires_grad:
            return None
        if kernel.shape[1] not in (1, len(self.pools)) or not runs_kernels(
            'cat', x, self.impl, given, a
        ):
            return None
        interior = self._interior(self.channel_factors), self._interior(self.spatial_factors)
        exterior = None if self.exterior_logits is None else self.exterior_logits.softmax(0)
        return ops.cat(
            x,
            taps,
            (w1, w2),
            kernel,
            interior,
            exterior,
            [pool in self.pools for pool in POOLS],
            self.entropy_range,
            self.formula == 'equation',
            a,
        )[0]

    def channel_attention(self, stats: Sequence[Tensor | None]) -> Tensor:
        """Eq. 2 and 5: the average, maximum, entropy (N, C) of each channel -> C'_A (N, C)."""
        vectors = as_input_of(self.mlp[0], self._stack(*stats))
        return self._weigh(self.mlp(vectors), self.channel_factors)

    def spatial_attention(self, stats: Sequence[Tensor | None]) -> Tensor:
        """Eq. 7: the average, maximum, entropy (N, H, W) of each position -> S'_A (N, H, W)."""
        avg, peak, ent = stats
        maps = as_input_of(self.conv, self._stack(None if avg is None else -avg, peak, ent))
        if self.spatial_fusion == 'sum':
            maps = self._weigh(maps, self.spatial_factors).unsqueeze(1)
        else:
            factors = self._interior(self.spatial_factors)
            maps = maps if factors is None else maps * factors[:, None, None]
        return self.conv(maps, impl=self.impl).squeeze(1).sigmoid()

    def colla_factors(self) -> dict[str, float]:
        """The learned factors as they act, by the paper's names: {'C_w': 0.5, 'C_alpha': 0.0, ...}.

        Alpha, beta, gamma are those of average, maximum, entropy. Factors that the arguments
        switched off are absent.
        """
        names = [dict(avg='alpha', max='beta', ent='gamma')[pool] for pool in self.pools]
        factors = {}
        if self.exterior_logits is not None:
            factors['C_w'], factors['S_w'] = self.exterior_logits.softmax(0).tolist()
        for axis, interior in (('C', self.channel_factors), ('S', self.spatial_factors)):
            acting = self._interior(interior)
            if acting is not None:
                values = acting.tolist()
                factors.update(zip([f'{axis}_{n}' for n in names], values, strict=True))
        return factors

    def _pool(
        self, x: Tensor, channel: bool = True, spatial: bool = True
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        wanted = {pool: pool in self.pools for pool in POOLS}
        return ops.entropy_pool(x, self.taps, channel, spatial, **wanted, impl=self.impl)

    def _stack(self, avg: Tensor | None, peak: Tensor | None, ent: Tensor | None) -> Tensor:
        if ent is not None:
            ent = ops.min_max(ent, *self.entropy_range, impl=self.impl)
        return torch.stack([stat for stat in (avg, peak, ent) if stat is not None], 1)

    def _weigh(self, stats: Tensor, factors: Tensor | None) -> Tensor:
        """Sum over the poolings, axis 1, each times its interior factor."""
        factors = self._interior(factors)
        return stats.sum(1) if factors is None else torch.einsum('np...,p->n...', stats, factors)

    def _interior(self, factors: Tensor | None) -> Tensor | None:
        """Interior factors as they act."""
        return factors.softmax(0) if self.interior_softmax and factors is not None else factors

    def _exterior(self) -> tuple[Tensor | int, Tensor | int]:
        if self.exterior_logits is None:
            return 1, 1
        c_w, s_w = self.exterior_logits.softmax(0).unbind()
        return c_w, s_w
