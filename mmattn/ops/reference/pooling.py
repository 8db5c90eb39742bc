"""A feature map into descriptors, in `stats_dtype`. A maximum's gradient goes to one arg-max."""
import torch.nn.functional as F

from ..dispatch import stats_dtype


def channel_pool(x, maximum=False):
    z = x.to(stats_dtype(x))
    avg = z.mean((2, 3))
    return (x, avg, z.flatten(2).max(-1).values) if maximum else (x, avg)


def spatial_pool(x, c):
    z = x.to(stats_dtype(x)) * c[:, :, None, None]
    return x, z.mean(1), z.max(1).values


def strip_pool(x, channel=False):
    z = x.to(stats_dtype(x))
    ch, cw = z.mean(3), z.mean(2)
    return (x, ch, cw, z.mean(1)) if channel else (x, ch, cw)


def _entropy(z, dim):
    log_p = F.log_softmax(z, dim)
    return -(log_p.exp() * log_p).sum(dim)


def _low_pass(z, taps, axis):
    """Convolve each channel with `taps` along `axis` (2 or 3), zero-padded."""
    channels = int(z.shape[1])  # a plain integer while tracing, too
    kernel = taps.reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
    return F.conv2d(z, kernel.expand(channels, -1, -1, -1), padding='same', groups=channels)


def entropy_pool(x, taps, channel=True, spatial=True, avg=True, max=True, ent=True):
    z = x.to(stats_dtype(x))
    c_avg = c_max = c_ent = s_avg = s_max = s_ent = None
    if avg:
        c_avg = z.mean((2, 3)) if channel else None
        s_avg = z.mean(1) if spatial else None
    if max:
        # CAT 3.2 and 3.3: k x 1 before the channel maximum, k x k before the spatial one.
        smooth = _low_pass(z, taps, 2)
        c_max = smooth.flatten(2).max(-1).values if channel else None
        s_max = _low_pass(smooth, taps, 3).max(1).values if spatial else None
    if ent:
        c_ent = _entropy(z.flatten(2), -1) if channel else None
        s_ent = _entropy(z, 1) if spatial else None
    return x, (c_avg, c_max, c_ent), (s_avg, s_max, s_ent)
