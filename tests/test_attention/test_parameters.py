"""Parameters the gates add to the papers' networks, against the differences of their tables.

One gate a block; the channel lists are those of the networks, whose own counts the papers print.
"""

import pytest

from mmattn.attention import CAT, CBAM, DRTAM, ECA, SE, CoordAttention


def bottlenecks(*blocks):
    """Output channels of a ResNet's bottlenecks."""
    return [
        channels
        for channels, count in zip((256, 512, 1024, 2048), blocks, strict=True)
        for _ in range(count)
    ]


R50, R101 = bottlenecks(3, 4, 6, 3), bottlenecks(3, 4, 23, 3)
STAGES = [256, 512, 1024, 2048]
# Depthwise widths of MobileNetV2's 17 blocks.
MOBILE = [32, 96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
MOBILE_075 = [24, 96, *[144] * 5, *[288] * 4, *[432] * 3, *[720] * 3]
# Block outputs of MobileNetV2, right branches of ShuffleNetV2.
MOBILE_OUT = [16, 24, 24, 32, 32, 32, *[64] * 4, *[96] * 3, *[160] * 3, 320]
SHUFFLE = [58] * 4 + [116] * 8 + [232] * 4


def added(gate, channels, **kwargs):
    return sum(p.numel() for c in channels for p in gate(c, **kwargs).parameters())


@pytest.mark.parametrize(
    'gate, kwargs, channels, exact',
    (
        (DRTAM, dict(reduction=32), R50, 1_274_584),
        (DRTAM, dict(reduction=16), R50, 2_532_528),
        (DRTAM, dict(reduction=32), R101, 2_408_280),
        (DRTAM, dict(reduction=16), R101, 4_780_880),
        (DRTAM, dict(reduction=32), STAGES, 352_504),
        (DRTAM, dict(reduction=32), MOBILE, 296_760),
        (CBAM, dict(reduction=16), R50, 2_532_592),
        (CBAM, dict(reduction=16), R101, 4_781_012),
        (CBAM, dict(reduction=16), MOBILE, 573_314),
        (CoordAttention, dict(reduction=32), R50, 1_917_832),
        (CoordAttention, dict(reduction=16), R50, 3_805_456),
        (CoordAttention, dict(reduction=32), R101, 3_625_448),
        (CoordAttention, dict(reduction=16), R101, 7_185_872),
        (CoordAttention, dict(reduction=32), MOBILE, 446_632),
        (CAT, dict(reduction=16), R50, 2_515_856),
        (CAT, dict(reduction=16), R101, 4_745_049),
        (SE, dict(reduction=16), R50, 2_514_944),
        (ECA, dict(), R50, 3 * 5 + 4 * 5 + 6 * 5 + 3 * 7),
    ),
)
def test_exact_counts(gate, kwargs, channels, exact):
    assert added(gate, channels, **kwargs) == exact


@pytest.mark.parametrize(
    'gate, kwargs, channels, bare, printed',
    (
        # DRTAM, tables 3 and 4, in 10^6
        (DRTAM, dict(reduction=32), R50, 25.557032, 26.83),
        (DRTAM, dict(reduction=16), R50, 25.557032, 28.09),
        (CBAM, dict(reduction=32), R50, 25.557032, 26.83),
        (CBAM, dict(reduction=16), R50, 25.557032, 28.09),
        (CoordAttention, dict(reduction=32), R50, 25.557032, 27.47),
        (CoordAttention, dict(reduction=16), R50, 25.557032, 29.36),
        (DRTAM, dict(reduction=32), R101, 44.54916, 46.96),
        (DRTAM, dict(reduction=16), R101, 44.54916, 49.33),
        (CBAM, dict(reduction=32), R101, 44.54916, 46.96),
        (CBAM, dict(reduction=16), R101, 44.54916, 49.33),
        (CoordAttention, dict(reduction=32), R101, 44.54916, 48.17),
        (CoordAttention, dict(reduction=16), R101, 44.54916, 51.74),
        (DRTAM, dict(reduction=32, num_channel_chunks=4), MOBILE, 3.504872, 3.80),
        (DRTAM, dict(reduction=16, num_channel_chunks=4), MOBILE, 3.504872, 4.08),
        (CBAM, dict(reduction=16), MOBILE, 3.504872, 4.08),
        (CoordAttention, dict(reduction=32), MOBILE, 3.504872, 3.95),
        (DRTAM, dict(reduction=32, num_channel_chunks=4), MOBILE_075, 2.63612, 2.81),
        (CBAM, dict(reduction=16), MOBILE_075, 2.63612, 2.96),
        (CoordAttention, dict(reduction=32), MOBILE_075, 2.63612, 2.89),
        # CAT, table 3, in 10^6
        (CAT, dict(), R50, 23.705, 26.22),
        (SE, dict(), R50, 23.705, 26.22),
        (CBAM, dict(bias=False), R50, 23.705, 26.22),
        (SE, dict(), R101, 42.697, 47.44),
        (CBAM, dict(bias=False), R101, 42.697, 47.44),
        (CAT, dict(), MOBILE_OUT, 2.369, 2.40),
        (SE, dict(), MOBILE_OUT, 2.369, 2.40),
        (CBAM, dict(bias=False), MOBILE_OUT, 2.369, 2.40),
        (CAT, dict(), SHUFFLE, 1.361, 1.40),
        (SE, dict(), SHUFFLE, 1.361, 1.40),
        (CBAM, dict(bias=False), SHUFFLE, 1.361, 1.40),
        (ECA, dict(), SHUFFLE, 1.361, 1.36),
    ),
)
def test_printed_counts(gate, kwargs, channels, bare, printed):
    assert round(bare + added(gate, channels, **kwargs) / 1e6, 2) == printed
