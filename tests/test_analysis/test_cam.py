"""Class activation maps: ours against the package's own words, and against their definition."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmattn.analysis import cam, cam_figure
from mmattn.runs.errors import UserError

GRAD_CAM = pytest.mark.skipif(
    not cam.importlib.util.find_spec('pytorch_grad_cam'), reason='grad-cam is not installed'
)


class Classifier(nn.Module):
    """What `Cam` asks of mmpretrain's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layer1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.backbone.res_layers = ['layer1']
        self.fc = nn.Linear(6, 5)

    def forward(self, x, mode):
        assert mode == 'tensor'
        return self.fc(self.backbone.layer1(x).relu().mean((2, 3)))


class Segmentor(Classifier):
    def forward(self, x, mode):
        return self.fc(self.backbone.layer1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Detector(Classifier):
    def extract_feat(self, x):
        return (self.backbone.layer1(x),)


@pytest.fixture
def x():
    return torch.randn(1, 3, 16, 12)


def up(values, size):
    """As the package enlarges and normalises a map."""
    import cv2

    values = np.maximum(values, 0)
    for _ in range(2):
        values = (values - values.min()) / (1e-7 + values.max() - values.min())
        values = cv2.resize(np.float32(values), size)
    return values


@GRAD_CAM
def test_grad_cam_is_its_definition(x):
    """Channels of the layer, each times the mean of the score's gradient with regard to it."""
    model = Classifier()
    model.requires_grad_(False)  # as frozen stages are
    found, words = cam.Cam(model, 'mmpretrain').look(x, category=2)
    a = model.backbone.layer1(x).requires_grad_()
    (grad,) = torch.autograd.grad(model.fc(a.relu().mean((2, 3)))[0, 2], a)
    weighed = (grad.mean((2, 3), keepdim=True) * a).sum(1)[0].detach().numpy()
    np.testing.assert_allclose(found, up(weighed, (12, 16)), atol=1e-4)
    share = float(model(x, 'tensor').softmax(1)[0, 2])
    assert words == f'class 2 ({share:.0%})'


@GRAD_CAM
def test_of_a_segmentor_the_largest_class_but_background(x):
    camera = cam.Cam(Segmentor(), 'mmseg')
    scores = torch.zeros(5, 4, 4)
    scores[0], scores[3, :2], scores[4, 2, :3] = 1, 2, 2
    number, target = camera.target(scores)
    assert number == 3 and float(target(scores)) == 8 * 2
    found, words = camera.look(x)
    assert found.shape == (16, 12) and words.startswith('class ')


@GRAD_CAM
def test_of_a_detector_its_features(x):
    found, words = cam.Cam(Detector(), 'mmdet').look(x)
    assert found.shape == (16, 12) and words == 'EigenCAM' and 0 <= found.min() < found.max() <= 1
    with pytest.raises(UserError, match='GradCAM needs a score'):
        cam.Cam(Detector(), 'mmdet', 'GradCAM')
    with pytest.raises(UserError, match='faithfulness is asked of classifiers'):
        cam.faithfulness(cam.Cam(Detector(), 'mmdet'), Config(), 3)


@GRAD_CAM
def test_refusals(x):
    with pytest.raises(UserError, match='no method is called Cam; there are GradCAM, '):
        cam.Cam(Classifier(), 'mmpretrain', 'Cam')
    with pytest.raises(UserError, match='no layer is called layer9; there are backbone.layer1'):
        cam.Cam(Classifier(), 'mmpretrain', layer='layer9')
    with pytest.raises(UserError, match='--target must be from 0 to 4, got 9'):
        cam.Cam(Classifier(), 'mmpretrain').look(x, category=9)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(cam.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'pip install --no-deps -r requirements/visual\.txt'):
        cam.Cam(Classifier(), 'mmpretrain')


def test_the_table_s_difference_is_paired():
    """Two pictures of very unlike confidence, of which the second model changes each by 0.1."""
    before, gain = np.array([0.1, 0.9]), np.array([0.1, 0.1])
    first = cam.Faithfulness(before, before - 0.5, before)
    second = cam.Faithfulness(before + gain, before - 0.5, before)
    lines = cam.table(['bare', 'gated'], [first, second]).splitlines()
    assert lines[0] == '| model | ROAD | confidence | change | drop | increase |'
    assert lines[2].startswith('| bare | 0.500 ± 0.784 | ')
    assert lines[4].startswith('| second - first | 0.100 ± 0.000 | 0.000 ± 0.000 | ')
    assert list(first.drop) == pytest.approx([0.4, 0]) and list(first.increase) == [0, 1]


def test_a_figure_of_pictures_of_two_sizes():
    maps = [(np.random.rand(16, 16), 'class 1')] * 2
    rows = [
        cam_figure.CamRow(np.zeros((h, 12, 3), np.uint8), maps, 'test-3: class 4') for h in (12, 8)
    ]
    *axes, bar = cam_figure.cam_figure(['a', 'b'], rows).axes
    assert [text.get_text() for text in bar.get_yticklabels()] == ['least', 'most']
    assert axes[0].get_xlabel() == 'test-3: class 4' and axes[1].get_xlabel() == 'class 1'
    assert [axis.get_title() for axis in axes] == ['picture', 'a', 'b', '', '', '']
    assert axes[4].images[1].get_array().shape == (8, 12)  # without the padding
