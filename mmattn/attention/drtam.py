from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from mmattn import ops
from mmattn.registry import register

from .checks import check_flags, check_int
from .gate import Gate, batch_norm, is_plain, mlp, norm_state


def _normalise(v: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm of a vector (N, L) as of one channel."""
    return batch_norm(norm, v.to(norm.weight.dtype).unsqueeze(1)).squeeze(1)


class RTAM(nn.Module):
    """Rank-1 tensor attention (3.1): planes (N, C, H), (N, C, W), (N, H, W) -> factors c, h, w."""

    def __init__(self, num_chunks: int, num_channel_chunks: int) -> None:
        super().__init__()
        self.chunks = (num_chunks, num_channel_chunks)
        strips = sum(self.chunks) + 1
        # These layers hold weights; `ops.rank1_pool` applies them together with the pooling.
        # Eq. 5's convolution of kernel (1, 4S) is over channels that lie last.
        self.channel_conv = nn.Linear(4 * num_chunks, 1, bias=False)
        self.channel_norm = nn.BatchNorm1d(1)
        self.height_conv = nn.Conv1d(strips, 1, 3, padding=1, bias=False)
        self.height_norm = nn.BatchNorm1d(1)
        self.width_conv = nn.Conv1d(strips, 1, 3, padding=1, bias=False)
        self.width_norm = nn.BatchNorm1d(1)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.channel_conv.weight, self.height_conv.weight, self.width_conv.weight

    @property
    def norms(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.channel_norm, self.height_norm, self.width_norm

    def forward(
        self,
        planes: Sequence[Tensor],
        mlp: nn.Module,
        taken: Sequence[Tensor] | None = None,
        impl: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        descriptors = ops.rank1_pool(planes, self.weights, self.chunks, taken, impl=impl)
        c, h, w = (_normalise(v, norm) for v, norm in zip(descriptors, self.norms, strict=True))
        return mlp(c).sigmoid(), h.sigmoid(), w.sigmoid()


@register(MODELS)
class DRTAM(Gate):
    """DRTAM: Dual Rank-1 Tensor Attention Module

    A rank-1 attention map A = c o h o w made of pooled planes of the feature map, and a second one
    that gives back a part of what the first took: y = x * (A + (1 - A) * A2) (eq. 1).
    (N, C, H, W) -> (N, C, H, W). Layers start from PyTorch's default initialisation.

    The two modules share the MLP (with biases) and nothing else. A batch norm precedes the MLP, as
    in the authors' release; the paper shows it for h and w only (eq. 11).

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(8, C // r).
        num_chunks (int): S, the chunks of the height and the width axis (`mmattn.ops.chunks`).
        num_channel_chunks (int): N, the chunks of the channel axis.
        dual (bool): False keeps the first attention map only: y = x * A.
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
        impl: str | None = None,
    ) -> None:
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_int('num_chunks', num_chunks, 1)
        check_int('num_channel_chunks', num_channel_chunks, 1)
        check_flags(dual=dual)
        self.mlp = mlp(in_channels, max(8, in_channels // reduction), bias=True)
        self.initial = RTAM(num_chunks, num_channel_chunks)
        self.complement = RTAM(num_chunks, num_channel_chunks) if dual else None

    def gate(self, x: Tensor) -> Tensor:
        modules = [self.initial] if self.complement is None else [self.initial, self.complement]
        norms = [module.norms for module in modules]
        if self._is_plain(modules, norms):
            n, *lengths = x.shape
            states = [
                (
                    module.weights,
                    [
                        norm_state(norm, n * length)
                        for norm, length in zip(three, lengths, strict=True)
                    ],
                )
                for module, three in zip(modules, norms, strict=True)
            ]
            first, _, second = self.mlp
            layers = first.weight, first.bias, second.weight, second.bias
            return ops.rank1_attention(x, states, layers, self.initial.chunks, impl=self.impl)
        x, *planes = ops.strip_pool(x, channel=True, impl=self.impl)
        factors = []
        for module in modules:  # eq. 12-14: the second sees what the first left of the planes
            factors.append(module(planes, self.mlp, *factors, impl=self.impl))
        return ops.rank1_gate(x, *factors, impl=self.impl)

    def _is_plain(self, modules, norms):
        """Whether one op may stand for all layers: none replaced (SyncBatchNorm) or listened to."""
        return (
            is_plain(self.mlp, nn.Sequential)
            and [type(layer) for layer in self.mlp] == [nn.Linear, nn.ReLU, nn.Linear]
            and all(is_plain(layer, type(layer)) for layer in self.mlp)
            and all(is_plain(module, RTAM) for module in modules)
            and all(is_plain(norm, nn.BatchNorm1d) for three in norms for norm in three)
        )
