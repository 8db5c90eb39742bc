"""The example of configs/README.md, run as it is printed."""

import re
import sys

import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

from mmattn import papers  # noqa: E402
from mmattn.analysis import complexity  # noqa: E402


@pytest.fixture
def example(tmp_path, monkeypatch):
    text = (papers.config_root() / 'README.md').read_text(encoding='utf-8')
    files = dict(re.findall(r'<!-- example: (\S+) -->\n```python\n(.*?)```', text, re.S))
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (tmp_path / 'configs').symlink_to(papers.config_root())
    monkeypatch.syspath_prepend(tmp_path)
    yield files, tmp_path
    sys.modules.pop('my_gate', None)
    from mmengine.registry import MODELS

    MODELS.module_dict.pop('ContextGate', None)


def test_a_gate_of_ones_own(example):
    files, folder = example
    gate, classifier, detector = files
    assert gate == 'my_gate.py'
    all_blocks = dict(layer1=3, layer2=4, layer3=6, layer4=3)
    last_blocks = dict(layer3=6, layer4=3)
    for name, parent, blocks in (
        (classifier, 'cat/resnet50_8xb32_in1k.py', all_blocks),
        (detector, 'cat/faster-rcnn_r50_fpn_4xb2-18k_voc0712.py', last_blocks),
    ):
        assert len([line for line in files[name].splitlines() if line]) <= 6
        # reading the config imports the module it names
        model = complexity.build(Config.fromfile(folder / name))
        bare = complexity.build(papers.config_root() / parent)
        added = {
            key: value for key, value in model.state_dict().items() if key not in bare.state_dict()
        }
        layers = [key.split('.')[1] for key in added if key.endswith('weight')]
        assert {layer: layers.count(layer) for layer in layers} == blocks
        widths = dict(layer1=256, layer2=512, layer3=1024, layer4=2048)
        for key, value in added.items():
            width = widths[key.split('.')[1]]
            assert '.context' in key
            assert value.shape == ((width, width) if key.endswith('weight') else (width,))
        assert any(key.endswith('bias') for key in added) == (name == detector)


def test_the_gate_itself(example):
    import my_gate

    gate = my_gate.ContextGate(8)
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(
        gate(x), x * torch.sigmoid(gate.fc(x.mean((2, 3))))[:, :, None, None]
    )
