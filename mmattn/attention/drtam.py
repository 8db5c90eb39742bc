from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmattn import ops
from mmattn.ops import PLAIN
from mmattn.registry import register_gate

from .checks import check_flags, check_int
from .gate import (
    Gate,
    as_input_of,
    batch_norm,
    is_plain,
    is_plain_norm,
    listened_to,
    mlp,
    mlp_weights,
    norm_states,
    tensor,
)


def _normalise(v: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm of a vector (N, L) as of one channel."""
    return batch_norm(norm, as_input_of(norm, v).unsqueeze(1)).squeeze(1)


class _Kernel:
    """A layer that holds a weight for `ops.rank1_pool`, which applies it together with the pooling.

    It is called for its weight: so whatever makes weights when a layer is called (pruning, weight
    norm) makes this one, too. Being of a class of its own, it is not taken for a layer of PyTorch
    that another, of quantised weights, could replace.
    """

    weight: Tensor

    def forward(self) -> Tensor:
        return self.weight


class ChannelKernel(_Kernel, nn.Linear):
    """Eq. 5's convolution of kernel (1, 4S), over channels that lie last."""


class StripKernel(_Kernel, nn.Conv1d):
    """The convolution of the strips of height or width (eq. 10)."""


def _weight(layer: nn.Module, kind: type[nn.Module]) -> Tensor:
    if is_plain(layer, kind):
        return tensor(layer, 'weight')
    if not isinstance(layer, kind):
        raise TypeError(
            f'DRTAM takes the weight of its {kind.__name__}, which was replaced by a '
            f'{type(layer).__name__}; leave it out where layers are replaced or wrapped'
        )
    weight = layer()
    if type(weight) in PLAIN and not weight.untyped_storage().nbytes():
        raise RuntimeError(
            f"the weight of DRTAM's {kind.__name__} was freed after the layer was called, as "
            'sharding does with a layer wrapped on its own; wrap the whole gate instead'
        )
    return weight


class RTAM(nn.Module):
    """Rank-1 tensor attention (3.1): planes (N, C, H), (N, C, W), (N, H, W) -> factors c, h, w."""

    def __init__(
        self,
        num_chunks: int,
        num_channel_chunks: int,
        plane_max: bool = False,
        chunk_max: bool = False,
    ) -> None:
        super().__init__()
        self.chunks = (num_chunks, num_channel_chunks)
        self.maxima = (plane_max, chunk_max)
        strips = ops.rank1_strips(self.chunks, self.maxima)
        self.channel_conv = ChannelKernel(4 * num_chunks, 1, bias=False)
        self.channel_norm = nn.BatchNorm1d(1)
        self.height_conv = StripKernel(strips, 1, 3, padding=1, bias=False)
        self.height_norm = nn.BatchNorm1d(1)
        self.width_conv = StripKernel(strips, 1, 3, padding=1, bias=False)
        self.width_norm = nn.BatchNorm1d(1)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        layers: Any = self._modules  # in a tenth of the time that an attribute takes
        return (
            _weight(layers['channel_conv'], ChannelKernel),
            _weight(layers['height_conv'], StripKernel),
            _weight(layers['width_conv'], StripKernel),
        )

    @property
    def norms(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        layers: Any = self._modules
        return layers['channel_norm'], layers['height_norm'], layers['width_norm']

    def forward(
        self,
        planes: Sequence[Tensor],
        mlp: nn.Module,
        taken: Sequence[Tensor] | None = None,
        impl: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        descriptors = ops.rank1_pool(
            planes, self.weights, self.chunks, taken, self.maxima, impl=impl
        )
        c, h, w = (_normalise(v, norm) for v, norm in zip(descriptors, self.norms, strict=True))
        return mlp(c).sigmoid(), h.sigmoid(), w.sigmoid()


@register_gate
class DRTAM(Gate):
    """DRTAM: Dual Rank-1 Tensor Attention Module, https://arxiv.org/abs/2203.05893

    A rank-1 attention map A = c o h o w made of pooled planes of the feature map, and a second one
    that gives back a part of what the first took: y = x * (A + (1 - A) * A2) (eq. 1).
    (N, C, H, W) -> (N, C, H, W). Layers start from PyTorch's default initialisation, in every host.

    The two modules share the MLP (with biases) and nothing else. A batch norm precedes the MLP, as
    in the authors' release; the paper shows it for h and w only (eq. 11).

    That release belongs to the later "Dual Rank-1 Tensor Attention Module for Convolutional Neural
    Networks", ICASSP 2024, pages 3880-3884. Its gate is `reduction=16, min_hidden=1,
    plane_max=True, chunk_max=True`. No kernel knows these two maxima: with them, the pooling of the
    planes and the layers run as equations, between the fast passes over the feature map.

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(min_hidden, C // r).
        num_chunks (int): S, the chunks of the height and the width axis (`mmattn.ops.chunks`).
        num_channel_chunks (int): N, the chunks of the channel axis.
        dual (bool): False keeps the first attention map only: y = x * A.
        min_hidden (int): See `reduction`. 8 is what the paper's parameter counts say.
        plane_max (bool): Whether h and w are made of the maxima of the plane's S chunks as well as
            of their averages (eq. 7).
        chunk_max (bool): Whether the channels' maximum (eq. 9) is one of each of the N chunks.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """

    _abbr_ = 'drtam'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 32,
        num_chunks: int = 3,
        num_channel_chunks: int = 1,
        dual: bool = True,
        min_hidden: int = 8,
        plane_max: bool = False,
        chunk_max: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_int('num_chunks', num_chunks, 1)
        check_int('num_channel_chunks', num_channel_chunks, 1)
        check_int('min_hidden', min_hidden, 1)
        check_flags(dual=dual, plane_max=plane_max, chunk_max=chunk_max)
        rtam = num_chunks, num_channel_chunks, plane_max, chunk_max
        self.mlp = mlp(in_channels, max(min_hidden, in_channels // reduction), bias=True)
        self.initial = RTAM(*rtam)
        self.complement = RTAM(*rtam) if dual else None

    def gate(self, x: Tensor) -> Tensor:
        both: Any = self._modules['initial'], self._modules.get('complement')
        modules = [module for module in both if module is not None]
        norms: list[Any] = [module.norms for module in modules]
        a = tensor(self, 'identity_scale')
        if (layers := self._plain(modules, norms)) is not None:
            n, *lengths = x.shape
            flat = [norm for three in norms for norm in three]
            found = norm_states(flat, [n * length for length in lengths] * len(norms))
            states = [
                (module.weights, found[3 * i : 3 * i + 3]) for i, module in enumerate(modules)
            ]
            chunks, maxima = self.initial.chunks, self.initial.maxima
            return ops.rank1_attention(x, states, layers, chunks, maxima, self.impl, a)
        planes = ops.strip_pool(x, channel=True, impl=self.impl)
        factors: list[Any] = []
        for module in modules:  # eq. 12-14: the second sees what the first left of the planes
            factors.append(module(planes, self.mlp, *factors, impl=self.impl))
        return ops.rank1_scale(x, *factors, impl=self.impl, identity_scale=a)

    def _plain(
        self, modules: Sequence[nn.Module], norms: Sequence[Sequence[nn.Module]]
    ) -> Sequence[Tensor] | None:
        """The MLP's tensors where one op may stand for all layers, else None: one is changed
        (SyncBatchNorm) or listened to.

        `RTAM.weights` asks the layers that hold weights only.
        """
        layers = mlp_weights(self.mlp)
        plain = (
            layers is not None
            and all(t is not None for t in layers)
            and not listened_to()
            and all(is_plain(module, RTAM) for module in modules)
            and all(is_plain_norm(norm) for three in norms for norm in three)
        )
        return layers if plain else None
