"""The benchmark tool: its rows, its files, its refusals."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmattn.analysis import benchmark, checkouts

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'benchmark.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_modules(tool, tmp_path):
    rows, table = tmp_path / 'rows.json', tmp_path / 'table.md'
    tool.main(
        ['modules', '--shapes', '2x16x9x8', '--gates', 'SE', 'CAT', '--dtypes', 'fp32', 'bf16']
        + ['--rounds', '1', '--json', str(rows), '--markdown', str(table)]
    )
    found = json.loads(rows.read_text())
    assert found['machine']['torch'] == torch.__version__
    assert [(r['gate'], r['impl']) for r in found['rows'][:5]] == [
        ('mul', ''),
        ('SE', 'reference'),
        ('SE', 'fast'),
        ('CAT', 'reference'),
        ('CAT', 'fast'),
    ]
    assert len(found['rows']) == 10 and {r['dtype'] for r in found['rows']} == {'fp32', 'bf16'}
    assert all(r['ms'] > 0 for r in found['rows'])
    assert len(table.read_text().splitlines()) == 12


def test_gates_in_a_chain(tool, tmp_path):
    """Figures are those of one gate; a compiled `mul` would be one product."""
    saved = {}
    for depth in (1, 3):
        rows = tmp_path / 'rows.json'
        tool.main(
            ['modules', '--shapes', '2x16x5x4', '--gates', 'ECA', '--rounds', '1']
            + ['--depth', str(depth), '--json', str(rows), '--against', 'identity', 'timm']
        )
        found = json.loads(rows.read_text())['rows']
        saved[depth] = {f'{row["gate"]} {row["impl"]}': row['saved'] for row in found}
    assert saved[1] == pytest.approx(saved[3])
    chain = benchmark.candidates(['SE'], 16, ['compiled'], depth=3)
    assert len(chain['SE fast']) == 3 and 'mul compiled' not in chain
    assert 'mul compiled' in benchmark.candidates(['SE'], 16, ['compiled'])


def test_inference_saves_nothing(tool, capsys):
    tool.main(['modules', '--shapes', '1x16x4x4', '--gates', 'ECA', '--rounds', '1', '--inference'])
    header = capsys.readouterr().out.splitlines()[0]
    assert 'ms' in header and 'saved' not in header


def test_network(tmp_path):
    config = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='PluginResNet',
                    depth=18,
                    plugins=[dict(cfg=dict(type='SE'), position='after_conv2')],
                ),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(
                    type='LinearClsHead',
                    num_classes=3,
                    in_channels=512,
                    topk=(1,),
                    loss=dict(type='CrossEntropyLoss'),
                ),
            ),
        )
    )
    pytest.importorskip('mmpretrain')
    assert 'plugins' not in benchmark.bare(config).model.backbone
    assert 'plugins' in config.model.backbone
    rows = benchmark.network(config, 2, (32, 32), rounds=1)
    modes = [(mode, name) for mode in ('training', 'inference') for name in ('bare', 'plugins')]
    assert [(r['mode'], r['network']) for r in rows] == modes
    assert all(r['images_per_s'] > 0 for r in rows) and rows[0]['share'] == 1


@pytest.mark.parametrize(
    'argv',
    (
        ['modules', '--shapes', '8x256'],
        ['modules', '--shapes', '8x0x5x5'],
        ['modules', '--rounds', '0'],
        ['modules', '--gates', 'XYZ'],
        ['modules', '--clock', 'cpu'],
        ['modules', '--depth', '0'],
        ['network'],
        [],
    ),
)
def test_refusals(tool, argv):
    with pytest.raises(SystemExit) as stop:
        tool.parse_args(argv)
    assert stop.value.code == 2


def test_named_shapes(tool):
    assert tool.shapes('resnet50')[0] == (8, 256, 56, 56)
    assert (8, 960, 7, 7) in tool.shapes('mobilenetv2')


def test_ratio_is_of_the_same_round():
    assert benchmark.ratio(dict(a=[2, 20, 6], b=[1, 10, 2]), 'a', 'b') == 2


def test_saved_bytes():
    x = torch.zeros(2, 3, 4, 5, requires_grad=True)
    assert benchmark.saved_bytes(benchmark.Mul(), x) == 0
    assert benchmark.saved_bytes(torch.nn.Sigmoid(), x) == x.numel() * 4
    assert benchmark.saved_bytes(torch.nn.Conv2d(3, 1, 1), x) == x.numel() * 4  # not the weight


def test_plain_cat_is_cat():
    """What CAT is measured against computes the same."""
    torch.manual_seed(0)
    plain = benchmark.candidates(['CAT'], 16, ['plain'])['CAT plain'].double()
    ours = benchmark.candidates(['CAT'], 16)['CAT reference'].double()
    with torch.no_grad():
        for p in plain.parameters():
            p.normal_()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(x), ours(x))


def test_against_plain(tool, tmp_path):
    rows = tmp_path / 'rows.json'
    tool.main(
        ['modules', '--shapes', '1x8x6x5', '--gates', 'CAT', '--rounds', '1']
        + ['--against', 'plain', '--json', str(rows)]
    )
    found = {r['impl']: r for r in json.loads(rows.read_text())['rows']}
    assert list(found) == ['', 'reference', 'fast', 'plain']
    assert found['plain']['fast'] > 0 and 'fast' not in found['reference']


def test_against_timm(tool, tmp_path):
    rows = tmp_path / 'rows.json'
    tool.main(
        [
            'modules',
            '--shapes',
            '1x32x6x5',
            '--rounds',
            '1',
            '--against',
            'timm',
            '--dtypes',
            'fp32',
            'bf16',
            '--json',
            str(rows),
        ]
    )
    found = [r for r in json.loads(rows.read_text())['rows'] if r['impl'] == 'timm']
    assert [r['gate'] for r in found] == 2 * ['SE', 'ECA', 'CBAM', 'CoordAttention']
    assert all(r['ms'] > 0 and r['fast'] > 0 for r in found)


@pytest.mark.slow
def test_checkouts(tool, capsys):
    """This one before and after is the same, within what a busy machine does."""
    tool.main(
        [
            'checkouts',
            str(TOOL.parents[2]),
            '--gates',
            'ECA',
            '--shapes',
            '2x16x4x4',
            '--rounds',
            '2',
        ]
    )
    *_, row = capsys.readouterr().out.splitlines()
    shape, gate, *numbers = (cell.strip() for cell in row.strip('|').split('|'))
    before, after, ratio = map(float, numbers)
    assert (shape, gate) == ('2x16x4x4', 'ECA')
    assert before > 0 and after > 0 and 0.2 < ratio < 5


@pytest.mark.slow
def test_a_checkout_that_is_none(tmp_path, capfd):
    """Its own code would be the installed one's: refused, and so is what cannot run a gate."""
    (tmp_path / 'mmattn').mkdir()
    with pytest.raises(RuntimeError, match='could not run SE|ran the code of'):
        checkouts.Worker(tmp_path).ms('SE', (1, 8, 4, 4), 1)


def test_a_folder_that_is_no_checkout(tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(['checkouts', str(tmp_path)])
    assert stop.value.code == 2 and 'no checkout' in capsys.readouterr().err
