"""The figure of recorded gates: its colours say no more than the numbers do."""

import numpy as np
import pytest
import torch
from torch import nn

from mmattn.analysis.attention_figure import Shot, attention_figure, save_parts, span_of
from mmattn.analysis.gates import gates_of, recording
from mmattn.analysis.outputs import titles_of
from mmattn.analysis.panels import Panel
from mmattn.attention import CAT, DRTAM
from mmattn.runs.errors import UserError


@pytest.fixture
def shots():
    """Of a CAT that is nearly the same everywhere, and of a DRTAM: a picture of 6 x 8, padded."""
    found = []
    for gate in (CAT(16, reduction=4), DRTAM(16)):
        places = gates_of(nn.Sequential(gate.eval()))
        with torch.no_grad(), recording(places) as seen:
            gate(torch.randn(1, 16, 4, 4))
        rgb = np.zeros((6, 8, 3), np.uint8)
        found.append(Shot(type(gate).__name__, rgb, (8, 8), [(places[0], seen['0'])]))
    return found


def panel(key, *values):
    return Panel(key, key, 'map', np.array([values], np.float32))


def test_a_flat_factor_has_one_colour_and_a_pool_all():
    assert span_of(panel('gate', 1.10, 1.14)) == pytest.approx((1.07, 1.17))
    assert span_of(panel('gate', 0.2, 0.7)) == pytest.approx((0.2, 0.7))
    assert span_of(panel('s_max', 1.10, 1.14)) == pytest.approx((1.10, 1.14))
    assert span_of(panel('gate', 1.10, 1.14), stretch=True) == pytest.approx((1.10, 1.14))


def cells(figure):
    """Of each model its axes by their titles."""
    return [{axis.get_title(): axis for axis in part.axes} for part in figure.subfigs]


def test_a_column_a_map_with_its_scale(shots):
    cat, drtam = cells(attention_figure(shots))
    assert [*cat] == [
        'picture', '$S_{Avg}$', '$-S_{Avg}$', '$S_{Max}$', '$S_{Ent}$', 'spatial factor',
        'channel factor', 'gate', 'overlay',
    ]  # fmt: skip
    assert [*drtam][-4:] == ['$A_I$', '$A_C$', 'gate', 'overlay']
    scale, drawn = cat['gate'].images
    low, high = drawn.get_clim()
    assert high - low == pytest.approx(0.1)  # fresh, CAT multiplies by one number
    assert scale.get_clim() == drawn.get_clim()
    ends = float(drawn.get_array().min()), float(drawn.get_array().max())
    assert (scale.get_array()[0, 0], scale.get_array()[0, -1]) == pytest.approx(ends)
    # The padding is no part of the picture.
    assert cat['gate'].get_xlim() == (-0.5, 7.5) and cat['gate'].get_ylim() == (5.5, -0.5)
    told = [text.get_text() for text in cat['$S_{Max}$'].texts]
    assert [float(text) for text in told] == pytest.approx(
        [float(f(cat['$S_{Max}$'].images[1].get_array())) for f in (np.min, np.max)], rel=0.01
    )


def test_bars_of_factors_are_of_one(shots):
    cat, drtam = cells(attention_figure(shots))
    assert cat['channel factor'].get_ylim() == pytest.approx((0, 1.05))
    assert cat['channel factor'].get_xlabel().endswith('(of 0 … 1)')
    assert 'of' not in drtam['descriptor $h$'].get_xlabel()


def test_single_files_have_the_same_colours(shots, tmp_path):
    from PIL import Image

    for stretch in (False, True):
        save_parts(tmp_path / str(stretch), shots[1], stretch)
    flat, all_colours = (
        np.asarray(Image.open(tmp_path / str(stretch) / '0' / 'a_i.png')).reshape(-1, 3)
        for stretch in (False, True)
    )
    assert len(np.unique(all_colours, axis=0)) >= len(np.unique(flat, axis=0))
    assert np.abs(all_colours.astype(int)[:, None] - flat[0]).sum(-1).max() > 100


@pytest.mark.parametrize(
    'name, lines',
    [
        ('0', ['0']),
        ('backbone.layer1.0.drtam', ['layer1.0.drtam']),
        ('backbone.layer1.after_stage.drtam', ['layer1.', 'after_stage.', 'drtam']),
        ('backbone.stages.3.blocks.2.cat', ['stages.3.blocks.', '2.cat']),
        ('neck.a_layer_of_a_long_name', ['neck.', 'a_layer_of_a_lon', 'g_name']),
    ],
)
def test_no_name_is_cut_off(shots, name, lines):
    (place, seen), *_ = shots[0].rows
    figure = attention_figure([shots[0]._replace(rows=[(place._replace(name=name), seen)])])
    label = figure.subfigs[0].axes[0].yaxis.label
    assert label.get_text().splitlines() == [*lines, '16 x 4 x 4']
    figure.canvas.draw()
    assert label.get_window_extent().x0 >= 0


def test_two_models_of_one_config_are_called_by_their_runs():
    of_one = [('a/cat.py', 'runs/sum/epoch_9.pth'), ('b/cat.py', 'runs/concat/epoch_9.pth')]
    assert titles_of(of_one) == ['cat: sum', 'cat: concat']
    assert titles_of([('a/cat.py', 'x.pth'), ('se.py', 'x.pth')]) == ['cat', 'se']
    assert titles_of(of_one, ['a', 'b']) == ['a', 'b']
    with pytest.raises(UserError, match='1 --titles for 2 models'):
        titles_of(of_one, ['a'])
