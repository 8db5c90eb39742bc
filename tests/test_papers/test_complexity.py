import csv
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn import papers  # noqa: E402
from mmattn.analysis import complexity  # noqa: E402

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'complexity.py'
spec = importlib.util.spec_from_file_location('complexity_tool', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

CAT4 = {('ResNet50', '+ CAT'), ('ResNet101', '+ CAT')}
# The only numbers allowed to differ from the papers', so that none slips onto the list unseen.
CONTRADICTIONS = {
    ('cat', 3, 'params'): {
        ('ResNet50', 'ResNet50'),
        ('ResNet101', 'ResNet101'),
        ('ResNet101', '+ ECANet'),
        ('Shufflenetv2', 'Shufflenetv2'),
    },
    ('cat', 4, 'params'): CAT4,
    ('cat', 4, 'gflops'): CAT4,
}


# Together where tables share configs, which are then counted once.
@pytest.mark.parametrize(
    'paper, tables',
    [('cat', (3,)), ('cat', (4,)), ('drtam', (1, 2, 3, 4)), ('drtam', (5,)), ('drtam', (7,))],
)
def test_the_columns_of_the_papers(paper, tables):
    for table in tables:
        check_columns(paper, table)


def check_columns(paper, table):
    """Parameters to the last digit, FLOPs to 1 % or the last digit, or a reason in the table."""
    rows = complexity.table_rows(paper, table)
    assert all(row.paper_params is not None and row.paper_flops is not None for row in rows)
    flops = 'gmac' if (paper, table) == ('cat', 3) else 'gflops'
    for metric, agree in (('params', 'params_agree'), (flops, 'flops_agree')):
        wrong = {(row.group, row.method) for row in rows if not getattr(row, agree)}
        assert wrong == CONTRADICTIONS.get((paper, table, metric), set()), metric
        assert wrong == {(row.group, row.method) for row in rows if metric in row.contradicts}


def test_no_table_is_left_out():
    columns = {'params', 'gflops', 'gmac'}
    assert set(complexity.CONVENTIONS) == {
        (entry.paper, entry.table) for entry in papers.entries() if columns & set(entry.values)
    }


def test_tables_without_the_columns_have_no_contradictions():
    for entry in papers.entries():
        if (entry.paper, entry.table) not in complexity.CONVENTIONS:
            assert not entry.contradicts
            assert not {'params', 'gflops', 'gmac'} & set(entry.values)


def test_tolerances():
    def row(params, paper_params, flops, paper_flops):
        return complexity.Row('cat', 4, 'g', 'm', 'c', params, paper_params, flops, paper_flops)

    assert row(26.77, 26.78, 1.0, 1.0).params_agree
    assert not row(26.77, 26.79, 1.0, 1.0).params_agree
    assert row(1.0, 1.0, 0.33, 0.32).flops_agree  # the last digit, 3 %
    assert not row(1.0, 1.0, 0.34, 0.32).flops_agree
    assert row(1.0, 1.0, 64.6, 64.0).flops_agree  # below 1 %
    assert not row(1.0, 1.0, 64.7, 64.0).flops_agree
    assert row(1.0, None, 1.0, None).params_agree and row(1.0, None, 1.0, None).flops_agree


def flops(run, *shapes, **kwargs):
    with complexity.FlopCounter(**kwargs) as counter, torch.no_grad():
        run(*(torch.empty(shape, device='meta') for shape in shapes))
    return counter.flops


def on_meta(module):
    return module.to('meta').eval()


@pytest.mark.parametrize(
    'module, shape, wanted',
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), (2, 3, 5, 7), 2 * 8 * 35 * 27),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), (1, 3, 6, 6), 8 * 9 * (27 + 1)),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), (1, 8, 4, 4), 8 * 16 * 9),
        (nn.Conv1d(1, 1, 5, padding=2, bias=False), (1, 1, 64), 64 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), (1, 4, 3, 3), 4 * 9 * 6 * 4),
        (nn.Linear(10, 4), (3, 10), 3 * 4 * 11),
        (nn.Linear(10, 4, bias=False), (2, 3, 10), 6 * 4 * 10),
        (nn.BatchNorm2d(4), (2, 4, 3, 3), 2 * 72),
        (nn.ReLU(), (2, 4, 3, 3), 72),
        (nn.ReLU6(inplace=True), (2, 4, 3, 3), 72),
        (nn.Sigmoid(), (2, 4, 3, 3), 0),
        (nn.MaxPool2d(2), (1, 4, 6, 6), 144),
        (nn.AdaptiveAvgPool2d(1), (1, 4, 6, 6), 144),
        (nn.AdaptiveAvgPool2d((None, 1)), (1, 4, 6, 6), 144),
        (nn.Upsample(scale_factor=2), (1, 4, 6, 6), 0),
    ],
)
def test_the_rule_of_counting(module, shape, wanted):
    assert flops(on_meta(module), shape) == wanted


def test_the_rule_of_counting_functions():
    assert flops(lambda x: x.amax(1), (2, 4, 3)) == 24
    assert flops(lambda x: x.max(-1), (2, 4, 3)) == 24
    assert flops(lambda x: x * x + 1, (2, 4, 3)) == 0
    assert flops(lambda x, y: x @ y, (2, 5), (5, 3)) == 30
    assert flops(lambda x, y: torch.einsum('npc,np->nc', x, y), (2, 3, 4), (2, 3)) == 24
    assert flops(lambda x: F.log_softmax(x, 1), (2, 4)) == 16
    assert flops(lambda x: F.log_softmax(x, 1), (2, 4), entropies=False) == 0
    assert flops(on_meta(nn.BatchNorm2d(4)), (2, 4, 3, 3), norms=False) == 0
    taps = torch.empty(1, 1, 5, 1, device='meta')
    x = (1, 1, 4, 4)
    assert flops(lambda x: F.conv2d(x, taps, padding=(2, 0)), x, fixed=[taps]) == 80
    assert flops(lambda x: F.conv2d(x, taps, padding=(2, 0)), x, fixed=[taps], entropies=False) == 0
    assert flops(lambda x: F.conv2d(x, taps, padding=(2, 0)), x, entropies=False) == 80


@pytest.mark.parametrize(
    'config, only, other',
    [
        # which parts a model is counted by; the auxiliary head of the FCN is none
        (
            'drtam/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py',
            {'backbone', 'decode_head'},
            'auxiliary_head',
        ),
        (
            'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py',
            {'backbone', 'neck', 'rpn_head', 'bbox_head', 'mask_head'},
            'head',
        ),
        ('cat/retinanet_r50_fpn_4xb2-90k_coco.py', {'backbone', 'neck', 'bbox_head'}, 'mask_head'),
        ('drtam/mobilenet-v2_4xb64_in1k.py', {'backbone', 'neck', 'head'}, 'decode_head'),
    ],
)
def test_the_parts_of_a_model(config, only, other):
    counted, convention = complexity.measure(str(papers.config_root() / config))
    assert set(counted.parts) == only and other not in only
    assert counted.flops == sum(counted.parts.values()) > 0
    model = complexity.build(papers.config_root() / config)
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert all(p.is_meta for p in model.parameters())
    assert (
        convention
        == complexity.DEFAULTS[
            {'fcn': 'mmseg', 'mob': 'mmpretrain'}.get(config.split('/')[1][:3], 'mmdet')
        ]
    )


def test_mask_rcnn_by_part():
    """Convolutions and linear layers of the parts of DRTAM's Table 5, known from their shapes."""
    convention = complexity.Convention(norms=False)
    config = str(papers.config_root() / 'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py')
    counted, _ = complexity.measure(config, convention)
    giga = {part: n / 1e9 for part, n in counted.parts.items()}
    assert giga['neck'] == pytest.approx(2.84, abs=0.01)
    assert giga['rpn_head'] == pytest.approx(2.48, abs=0.01)
    assert giga['bbox_head'] == pytest.approx(14.31, abs=0.01)
    assert giga['mask_head'] == pytest.approx(52.97, abs=0.15)


def test_the_convention_leaves_parameters_out():
    config = str(papers.config_root() / 'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py')
    whole, _ = complexity.measure(config, complexity.Convention())
    without, _ = complexity.measure(config, complexity.CONVENTIONS['drtam', 5])
    assert whole.params - without.params == 215_808
    assert whole.flops == without.flops


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match='Sequential is no image classifier'):
        complexity.count(nn.Sequential(), complexity.Convention())


def test_the_command_line(tmp_path, capsys):
    tool.main(['--paper', 'drtam', '--table', '3'])
    text = capsys.readouterr().out
    assert 'M = 10^6, G = 10^9, input 224x224' in text
    assert '| ResNet-101 | + DRTAM | 46.96 | 46.96 | +0.00 | 7.89 | 7.89 |' in text

    tool.main(
        [
            '--paper',
            'drtam',
            '--table',
            '3',
            '--format',
            'json',
            '--out',
            str(tmp_path / 'new' / 'out.json'),
        ]
    )
    records = json.loads((tmp_path / 'new' / 'out.json').read_text())
    assert len(records) == 6
    assert records[0]['paper_params'] == records[0]['params'] == 26.83
    assert records[0]['params_diff'] == 0

    tool.main(['--paper', 'drtam', '--table', '3', '--format', 'csv'])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row['config'] for row in rows] == [record['config'] for record in records]


@pytest.mark.parametrize('style', complexity.STYLES)
def test_the_command_line_with_a_config(style, capsys):
    config = str(papers.config_root() / 'drtam/mobilenet-v2_4xb64_in1k.py')
    tool.main([config, '--size', '192', '160', '--format', style])
    text = capsys.readouterr().out
    if style == 'json':
        record = json.loads(text)
        assert (record['params'], record['size']) == (3504872, [192, 160])
    elif style == 'csv':
        assert list(csv.DictReader(io.StringIO(text)))[-1]['params'] == '3504872'
    else:
        assert '3.505 M parameters (M = 10^6, G = 10^9, input 192x160)' in text


def test_standard_output_is_the_result_alone():
    config = papers.config_root() / 'drtam/mobilenet-v2_4xb64_in1k.py'
    done = subprocess.run(
        [sys.executable, TOOL, config, '--format', 'json'],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)['params'] == 3504872


@pytest.mark.parametrize(
    'args, words',
    [
        (['x.py', '--paper', 'cat'], 'not both'),
        (['--table', '3'], '--table needs --paper'),
        (['--size', '1', '2'], '--size is for a single config'),
        (['--paper', 'senet'], 'invalid choice'),
        (['--paper', 'cat', '--table', '7'], 'cat has the tables 1, 2, 3, 4, 5, 6'),
        (['no_such_config.py'], 'no such file'),
    ],
)
def test_a_wrong_command_line_is_refused(args, words, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(args)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_another_style_is_refused():
    with pytest.raises(ValueError, match='style must be one of'):
        complexity.render([], 'html')


def section(path, name):
    text = path.read_text(encoding='utf-8')
    return text.split(f'<!-- {name} -->\n')[1].split('<!-- end -->')[0]


def test_the_readme_lists_the_contradictions():
    """`python -c "from mmattn.analysis import complexity as c; print(c.contradictions())"`."""
    written = section(papers.config_root() / 'cat' / 'README.md', 'contradictions')
    assert written == complexity.contradictions()
    assert written.count('\n') == 2 + sum(map(len, CONTRADICTIONS.values()))


def test_the_readme_lists_the_conventions():
    written = section(papers.config_root() / 'README.md', 'conventions')
    lines = [
        f'| {paper.upper()} {table} | {convention} |\n'
        for (paper, table), convention in complexity.CONVENTIONS.items()
    ]
    assert written == '| Table | Convention |\n| --- | --- |\n' + ''.join(lines)
