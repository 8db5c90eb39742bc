"""--amp without a GPU: bfloat16 in the backbone, in training only."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from test_families import CONFIGS, FEW, scope_of
from torch import nn

from mmattn.runs import CPUAmpOptimWrapper

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason='here --amp uses the GPU')


@cpu_only
@pytest.mark.parametrize(
    'config',
    (
        'resnet18-cat_digits-cifar.py',
        'mask-rcnn_r18-drtam_fpn_digits-coco.py',
        'fcn_r18-d8-drtam-pool_digits-voc.py',
    ),
)
def test_train_and_resume(config, run_tool, tmp_path, monkeypatch):
    dtypes = set()
    convolve = nn.Conv2d.forward

    def forward(self, x):
        y = convolve(self, x)
        dtypes.add(y.dtype)
        return y

    monkeypatch.setattr(nn.Conv2d, 'forward', forward)
    options = [
        '--amp', '--no-validate', '--work-dir', tmp_path, '--cfg-options', *FEW[scope_of(config)],
        'custom_hooks=', 'train_dataloader.batch_size=6',
    ]  # fmt: skip
    run_tool('train', CONFIGS / config, *options)
    assert torch.bfloat16 in dtypes
    last = (tmp_path / 'last_checkpoint').read_text().strip()
    state = torch.load(last, weights_only=False)['state_dict']
    assert all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())
    longer = [
        option.replace('max_epochs=1', 'max_epochs=2').replace('max_iters=2', 'max_iters=4')
        if isinstance(option, str)
        else option
        for option in options
    ]
    run_tool('train', CONFIGS / config, '--resume', *longer)
    assert (tmp_path / 'last_checkpoint').read_text().strip() != last


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        y = self.conv(x)
        self.dtype = y.dtype
        return (y,)


def test_precision_of_the_backbone():
    """bfloat16 inside the context, what leaves it float32; full precision outside."""
    model = nn.Module()
    model.backbone = Backbone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    wrapper = CPUAmpOptimWrapper(optimizer=optimizer)
    assert isinstance(wrapper, OptimWrapper)
    x = torch.randn(1, 1, 4, 4)
    for _ in range(2):  # set up once
        with wrapper.optim_context(model):
            (feature,) = model.backbone(x)
        assert (model.backbone.dtype, feature.dtype) == (torch.bfloat16, torch.float32)
        model.backbone(x)
        assert model.backbone.dtype == torch.float32
    wrapper.update_params(feature.sum())


def wrapped():
    model = nn.Module()
    model.backbone = Backbone()
    return model, CPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1))


def test_a_model_is_copied_and_saved_as_ever(tmp_path):
    """Between two steps there is nothing of mixed precision on the model."""
    model, wrapper = wrapped()
    x = torch.randn(1, 1, 4, 4)
    with wrapper.optim_context(model):
        model.backbone(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.backbone.conv.weight.zero_()
        twin.backbone.conv.bias.zero_()
    assert not twin.backbone(x)[0].any() and model.backbone(x)[0].any()
    with wrapper.optim_context(twin):
        assert not twin.backbone(x)[0].any()
    torch.save(model, tmp_path / 'model.pth')
    again = torch.load(tmp_path / 'model.pth', weights_only=False)
    assert torch.equal(again.backbone(x)[0], model.backbone(x)[0])


def test_a_forward_of_the_users_own_is_kept():
    model, wrapper = wrapped()
    x = torch.randn(1, 1, 4, 4)
    forward = model.backbone.forward

    def twice(x):
        return tuple(2 * y for y in forward(x))

    model.backbone.forward = twice
    with pytest.raises(KeyError), wrapper.optim_context(model):
        (feature,) = model.backbone(x)
        assert model.backbone.dtype == torch.bfloat16
        raise KeyError
    assert model.backbone.forward is twice
    torch.testing.assert_close(feature, model.backbone(x)[0], rtol=0.02, atol=0.02)


def test_whatever_a_backbone_gives_is_float32():
    """Also a single tensor, which is not a tuple of its samples."""
    model, wrapper = wrapped()
    x = torch.randn(3, 1, 4, 4)
    conv, places = model.backbone.conv, torch.arange(3)
    for give, kinds in (
        (lambda y: y, torch.Tensor),
        (lambda y: [y, None], list),
        (lambda y: dict(features=(y,), places=places), dict),
    ):
        model.backbone.forward = lambda x, give=give: give(conv(x))
        with wrapper.optim_context(model):
            given = model.backbone(x)
        assert isinstance(given, kinds)
        if kinds is torch.Tensor:
            assert given.shape == (3, 2, 2, 2) and given.dtype == torch.float32
        elif kinds is list:
            assert given[0].dtype == torch.float32 and given[1] is None
        else:
            assert given['features'][0].dtype == torch.float32 and given['places'] is places
