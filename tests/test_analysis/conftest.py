from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmattn.analysis.pictures import enter_scope

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors of these tests are tiny: threads would cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network():
    """Builds a config's model with gates that do something: `network('digits/....py')` gives the
    config and the model, in eval mode."""

    def build(name, **options):
        from mmengine.registry import MODELS

        cfg = Config.fromfile(ROOT / 'configs' / name)
        cfg.merge_from_dict(options)
        enter_scope(cfg)
        described = cfg.model.copy()
        if 'data_preprocessor' in cfg:
            described.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(described).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith(('factors', 'logits')):
                    parameter.normal_(0, 0.5)
        return cfg, model

    return build
