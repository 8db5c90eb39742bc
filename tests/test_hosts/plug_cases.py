"""A small network with each kind of place: layers, blocks, sequences, tokens, channels last."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.skip = nn.Identity() if stride == 1 else nn.AvgPool2d(2)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.skip(x))


class Mixer(nn.Module):
    """Tokens with a class token, as in a ViT: nothing in its output says the grid."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x):
        return x + self.fc(self.norm(x))


class Gridded(nn.Module):
    """A stage that gives (tokens, (H, W)), as Swin's do."""

    def __init__(self, channels):
        super().__init__()
        self.block = Mixer(channels)

    def forward(self, x, size):
        return self.block(x), size


class Last(nn.Module):
    """A stage with the channels last."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        return x + self.fc(x)


class SelfRunning(nn.Module):
    """A stage that runs whatever children it has, as timm's RegNet."""

    def __init__(self, channels):
        super().__init__()
        self.b1, self.b2 = Block(channels), Block(channels)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.layer2 = Block(width, stride=2)
        self.own = SelfRunning(width)
        self.last = Last(width)
        self.patch = nn.Conv2d(width, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.mixers = nn.ModuleList([Mixer(width), Mixer(width)])
        self.gridded = Gridded(width)
        self.unused = nn.ReLU()
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.own(self.layer2(self.layer1(self.stem(x))))
        x = self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.patch(x)
        size = (x.shape[2], x.shape[3])
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), 1)
        for mixer in self.mixers:
            x = mixer(x)
        x, _ = self.gridded(x[:, 1:], size)
        return self.head(x.mean(1))


# Each way in which a gate is held and run.
EVERYWHERE = (
    'stem',
    'stem.1',
    'layer1',
    'layer1.0.bn2',
    'layer2',
    'layer2.conv2',
    'own',
    'last',
    'mixers.*',
    'gridded',
)
# One of each: a layer that is wrapped, a block with a hook, and wrapped, channels last, tokens.
EACH_WAY = ('stem.1', 'layer2', 'own', 'last', 'mixers.1', 'gridded')


def images(batch=2, size=(32, 64)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


class Times(nn.Module):
    """A gate whose place shows: it is no function of the whole map."""

    _abbr_ = 'times'

    def __init__(self, in_channels, scale=1.5):
        super().__init__()
        self.scale = nn.Parameter(torch.full((in_channels,), scale))

    def forward(self, x):
        return x * self.scale.view(1, -1, 1, 1)
