import csv
import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn import (  # noqa: E402
    CAT,
    CBAM,
    DRTAM,
    ECA,
    EMA,
    SE,
    CoordAttention,
    SimAM,
    TripletAttention,
    papers,
)
from mmattn.analysis import complexity, counters  # noqa: E402
from mmattn.analysis import complexity_report as report  # noqa: E402

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'complexity.py'
spec = importlib.util.spec_from_file_location('complexity_tool', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

# The only printed numbers that no count gives, so that none slips onto the list unseen.
CONTRADICTIONS = {
    ('cat', 3, 'params'): {
        ('ResNet50', 'ResNet50'),
        ('ResNet101', 'ResNet101'),
        ('ResNet101', '+ ECANet'),
        ('Shufflenetv2', 'Shufflenetv2'),
    },
    ('cat', 3, 'gmac'): {('ResNet50', '+ CBAM'), ('ResNet101', '+ ECANet')},
    ('cat', 4, 'params'): {('ResNet50', '+ CAT'), ('ResNet101', '+ CAT')},
    ('cat', 4, 'gflops'): {('ResNet50', '+ CAT'), ('ResNet101', '+ CAT')},
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
    """Each number to its last digit, or a reason in the table."""
    rows = complexity.table_rows(paper, table)
    assert all(row.paper_params is not None and row.paper_flops is not None for row in rows)
    flops = 'gmac' if (paper, table) == ('cat', 3) else 'gflops'
    for metric, agree in (('params', 'params_agree'), (flops, 'flops_agree')):
        wrong = {(row.group, row.method) for row in rows if not getattr(row, agree)}
        assert wrong == CONTRADICTIONS.get((paper, table, metric), set()), metric
        assert wrong == {(row.group, row.method) for row in rows if metric in row.contradicts}


def test_no_table_is_left_out():
    columns = {'params', 'gflops', 'gmac'}
    assert set(counters.CONVENTIONS) == {
        (entry.paper, entry.table) for entry in papers.entries() if columns & set(entry.values)
    }
    used = {entry.config for entry in papers.entries('drtam', 4)}
    assert set(counters.ROWS) < used


def test_tables_without_the_columns_have_no_contradictions():
    for entry in papers.entries():
        if (entry.paper, entry.table) not in counters.CONVENTIONS:
            assert not entry.contradicts
            assert not {'params', 'gflops', 'gmac'} & set(entry.values)


def test_a_cell_agrees_to_its_last_digit_only():
    def row(*numbers):
        return complexity.Row('cat', 4, 'g', 'm', 'c', *numbers)

    assert row(1.0, 26.77, 26.77, 1.0, 3.86, 3.86).params_agree
    assert not row(26.78, 26.77, 26.78, 1.0, 3.86, 3.86).params_agree
    assert row(1.0, 26.77, 26.77, 1.0, 3.86, 3.86).flops_agree
    assert not row(1.0, 26.77, 26.77, 3.87, 3.86, 3.87).flops_agree
    assert row(1.0, None, None, 1.0, None, None).params_agree
    assert row(1.0, None, None, 1.0, None, None).flops_agree


def as_authors(table, path, paper='drtam', **changes):
    """A config's two numbers as printed, of a model with other options than the table's."""
    convention = counters.CONVENTIONS[paper, table]
    config = Config.fromfile(papers.config_root() / path)
    config.merge_from_dict({**convention.changes, **changes})
    params, flops = complexity.count(complexity.build(config), convention).as_authors
    return round(params / 1e6, 2), round(flops / 1e9, 2)


@pytest.mark.parametrize(
    'name, printed, without',
    [
        ('r50-d8-ca', 196.57, 196.56),
        ('r50-d8-drtam', 196.55, 196.54),
        ('r101-d8-ca', 274.25, 274.24),
        ('r101-d8-drtam', 274.23, 274.22),
    ],
)
def test_the_stem_has_a_gate_in_pool(name, printed, without):
    path = f'drtam/fcn_{name}-pool_4xb4-20k_voc12aug-512x512.py'
    stem, stages = Config.fromfile(papers.config_root() / path).plugins
    assert (stem.position, stages.position) == ('after_stem', 'after_stage')
    both, alone = (
        as_authors(7, path, **{'model.backbone.plugins': plugins})
        for plugins in ([stem, stages], [stages])
    )
    assert both == (alone[0], printed) and alone[1] == without


def test_the_detector_has_nine_anchors():
    path = 'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py'
    assert as_authors(5, path) == (44.18, 76.86)
    scales = 'model.rpn_head.anchor_generator.scales'
    assert as_authors(5, path, **{scales: [8]}) == (44.17, 76.83)


def flops(run, *shapes):
    with complexity.FlopCounter() as counter, torch.no_grad():
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
    assert flops(lambda x: x.sum(1), (2, 4)) == 8
    taps = torch.empty(1, 1, 5, 1, device='meta')
    assert flops(lambda x: F.conv2d(x, taps, padding=(2, 0)), (1, 1, 4, 4)) == 80


@pytest.mark.parametrize(
    'module, shape, mmcv, ptflops, thop',
    [
        (nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False), (1, 3, 6, 6), 8 * 9 * 27, None, None),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), (1, 3, 6, 6), 8 * 9 * 28, None, 8 * 9 * 27),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), (1, 8, 4, 4), 8 * 16 * 9, None, None),
        (
            nn.ConvTranspose2d(4, 6, 2, stride=2),
            (1, 4, 3, 3),
            4 * 9 * 24 + 6 * 36,
            None,
            4 * 9 * 24,
        ),
        (nn.Linear(10, 4), (1, 10), 40, 44, 40),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 72, None, 144),
        (nn.SyncBatchNorm(4), (1, 4, 3, 3), 0, None, None),
        (nn.ReLU(), (1, 4, 3, 3), 36, None, None),
        (nn.ReLU6(), (1, 4, 3, 3), 36, None, None),
        (nn.Sigmoid(), (1, 4, 3, 3), 0, None, None),
        (nn.MaxPool2d(3, 2, 1), (1, 4, 6, 6), 144, None, 4 * 9 * 3),
        (nn.AdaptiveAvgPool2d(1), (1, 4, 6, 6), 144, None, 148),
    ],
)
def test_what_the_counters_charge(module, shape, mmcv, ptflops, thop):
    wanted = [mmcv, mmcv if ptflops is None else ptflops, mmcv if thop is None else thop]
    x = torch.empty(shape, device='meta')
    layer = counters.layer_of(module, x, on_meta(module)(x))
    assert [c.flops(layer) if layer else 0 for c in counters.COUNTERS] == wanted
    if layer:
        assert layer.params == sum(p.numel() for p in module.parameters())


class PublicCBAM(nn.Module):
    """As its release: pools by functions, layers by modules. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self, c, hidden, bias, pool_modules):
        super().__init__()
        self.pools = [F.adaptive_avg_pool2d, F.adaptive_max_pool2d]
        if pool_modules:
            self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)])
        self.mlp = nn.Sequential(nn.Linear(c, hidden, bias), nn.ReLU(), nn.Linear(hidden, c, bias))
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x):
        args = () if isinstance(self.pools, nn.ModuleList) else (1,)
        x = x * sum(self.mlp(pool(x, *args).flatten(1)) for pool in self.pools)[:, :, None, None]
        return x * self.spatial(torch.cat((x.amax(1, True), x.mean(1, True)), 1))


class PublicCA(nn.Module):
    """As its release. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self, c, hidden):
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv, self.norm = nn.Conv2d(c, hidden, 1), nn.BatchNorm2d(hidden)
        self.relu6 = nn.ReLU6()
        self.conv_h, self.conv_w = nn.Conv2d(hidden, c, 1), nn.Conv2d(hidden, c, 1)

    def forward(self, x):
        y = self.norm(self.conv(torch.cat((self.pool_h(x), self.pool_w(x).mT), 2)))
        h, w = (y * self.relu6(y + 3) / 6).split(x.shape[2:], 2)
        return x * self.conv_h(h).sigmoid() * self.conv_w(w.mT).sigmoid()


class PublicECA(nn.Module):
    """As its release. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self, taps):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def forward(self, x):
        return x * self.conv(self.pool(x).flatten(2).mT).mT[..., None].sigmoid()


class PublicSE(nn.Module):
    """As its usual implementation. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self, c, hidden):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mlp = nn.Sequential(
            nn.Linear(c, hidden, False), nn.ReLU(), nn.Linear(hidden, c, False)
        )

    def forward(self, x):
        return x * self.mlp(self.pool(x).flatten(1)).sigmoid()[:, :, None, None]


class PublicTriplet(nn.Module):
    """As its release: one convolution and norm a branch. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(1) for _ in range(3))

    def forward(self, x):
        total = 0
        for conv, norm, axes in zip(
            self.convs, self.norms, ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)), strict=True
        ):
            turned = x.permute(axes)
            pooled = torch.cat((turned.amax(1, True), turned.mean(1, True)), 1)
            total = total + (turned * norm(conv(pooled)).sigmoid()).permute(axes)
        return total / 3


class PublicEMA(nn.Module):
    """As its release. (N, C, H, W) -> (N, C, H, W)"""

    def __init__(self, c, groups):
        super().__init__()
        self.groups, width = groups, c // groups
        self.pools = nn.ModuleList(
            [nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))]
        )
        self.pool_1, self.pool_2 = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1)
        self.norm = nn.GroupNorm(width, width)
        self.conv1, self.conv3 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        g = x.reshape(n * self.groups, -1, h, w)
        y, z = self.conv1(torch.cat((self.pools[0](g), self.pools[1](g).mT), 2)).split((h, w), 2)
        one, other = self.norm(g * y.sigmoid() * z.mT.sigmoid()), self.conv3(g)
        total = self.pool_1(one).flatten(1).softmax(1)[:, None] @ other.flatten(2)
        total = total + self.pool_2(other).flatten(1).softmax(1)[:, None] @ one.flatten(2)
        return (g * total.view(-1, 1, h, w).sigmoid()).reshape(x.shape)


@pytest.mark.parametrize(
    'gate, public, code',
    [
        (SE(64, reduction=4), PublicSE(64, 16), {}),
        (ECA(64, kernel_size=5), PublicECA(5), {}),
        (CBAM(64, reduction=4), PublicCBAM(64, 16, True, False), {}),
        (CBAM(64, 4, bias=False), PublicCBAM(64, 16, False, True), {'pool_modules': True}),
        (CoordAttention(64, reduction=4), PublicCA(64, 16), {}),
        (SimAM(64), nn.Sigmoid(), {}),
        (TripletAttention(64), PublicTriplet(), {}),
        (EMA(64, factor=8), PublicEMA(64, 8), {}),
    ],
)
@pytest.mark.parametrize('counter', counters.COUNTERS, ids=lambda counter: counter.name)
def test_the_public_code_of_a_gate(gate, public, code, counter):
    """The list of layers costs what the counter's hooks find in code of that form."""
    found = []
    for module in on_meta(public).modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda *call: found.append(counters.layer_of(*_first(call)))
            )
    public(torch.empty(1, 64, 7, 9, device='meta'))
    listed = complexity.public_layers(gate, (64, 7, 9), {type(gate).__name__: code})
    assert sum(map(counter.flops, listed)) == sum(counter.flops(layer) for layer in found if layer)


def _first(call):
    module, inputs, output = call
    return module, inputs[0], output


@pytest.mark.parametrize(
    'gate',
    [
        SE(64),
        ECA(64),
        CBAM(64),
        CBAM(64, bias=False, norm=False),
        CoordAttention(64),
        CAT(64),
        DRTAM(64),
        DRTAM(64, num_chunks=2, num_channel_chunks=4),
        DRTAM(64, dual=False),
        SimAM(64),
        TripletAttention(64),
        TripletAttention(64, kernel_size=3, spatial=False),
        EMA(64),
    ],
)
def test_the_public_code_has_the_parameters_of_the_gate(gate):
    layers = complexity.public_layers(gate, (64, 7, 9), {})
    assert sum(layer.params for layer in layers) == sum(p.numel() for p in gate.parameters())


def test_the_public_code_of_drtam():
    """In multiply-accumulates and elements, by hand: C = 64, H = W = 6, r = 4, S = 3, N = 1."""
    layers = complexity.public_layers(DRTAM(64, reduction=4), (64, 6, 6), {})

    def total(kind, field):
        return sum(getattr(layer, field) for layer in layers if layer.kind == kind)

    assert total('Linear', 'products') == 2 * 2 * 64 * 16
    assert total('Conv1d', 'products') == 2 * (64 * 12 + 2 * 6 * 3 * 5)
    assert total('BatchNorm2d', 'inputs') == 2 * (64 + 6 + 6)
    assert total('AdaptiveAvgPool3d', 'inputs') == 64 * 36
    strips = 2 * 64 * 36
    assert total('AdaptiveMaxPool2d', 'inputs') == 2 * (2 * 6 * 64 + 2 * 6 * 64)
    assert total('AdaptiveAvgPool2d', 'inputs') == strips + 2 * (2 * 6 * 64 + 2 * (36 + 6 * 64))


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
        is counters.DEFAULTS[
            {'fcn': 'mmseg', 'mob': 'mmpretrain'}.get(config.split('/')[1][:3], 'mmdet')
        ]
    )


def test_mask_rcnn_by_part():
    """Convolutions and linear layers of the parts of DRTAM's Table 5, known from their shapes."""
    config = str(papers.config_root() / 'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py')
    counted, _ = complexity.measure(config, counters.Convention())
    giga = {part: n / 1e9 for part, n in counted.parts.items()}
    assert giga['neck'] == pytest.approx(2.84, abs=0.01)
    assert giga['rpn_head'] == pytest.approx(2.48, abs=0.01)
    assert giga['bbox_head'] == pytest.approx(14.31, abs=0.01)
    assert giga['mask_head'] == pytest.approx(52.97, abs=0.15)
    assert counted.params == 44_396_336


def test_frozen_parameters_do_not_count_where_the_tool_left_them_out():
    model = complexity.build(papers.config_root() / 'drtam/mask-rcnn_r50_fpn_4xb4-1x_coco.py')
    params, _ = complexity.count(model, counters.Convention(counters.MMCV)).as_authors
    assert params == 44_396_336 - 9_536 - 215_808  # the stem, the first stage
    params, _ = complexity.count(model, counters.Convention(counters.THOP)).as_authors
    assert params == 44_396_336


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match='Sequential is no image classifier'):
        complexity.count(nn.Sequential(), counters.Convention())


def test_the_command_line(tmp_path, capsys):
    tool.main(['--paper', 'drtam', '--table', '3'])
    text = capsys.readouterr().out
    assert 'mmcv, M = 10^6, G = 10^9, input 224x224, backbone and neck only' in text
    assert '| ResNet-50 | + DRTAM | 26.83 | 26.83 | 26.83 |  | 4.15 | 4.14 | 4.14 |  |' in text
    assert '6 of 6 parameters and 6 of 6 FLOPs are the printed ones' in text

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
    assert records[0]['counted_params'] == 26.83
    assert records[0]['params_agree'] and records[0]['flops_agree']

    tool.main(['--paper', 'drtam', '--table', '3', '--format', 'csv'])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row['config'] for row in rows] == [record['config'] for record in records]


@pytest.mark.parametrize('style', report.STYLES)
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


def test_the_command_line_with_an_alternative(capsys):
    """Its gates are counted: CAT's convolution of three maps in place of one."""
    config = str(papers.config_root() / 'cat/retinanet_r50-cat_fpn_4xb2-90k_coco.py')
    found = {}
    for name in ('', 'cat-concat'):
        args = ['--alternative', name] if name else []
        tool.main([config, *args, '--size', '64', '64', '--format', 'json'])
        found[name] = json.loads(capsys.readouterr().out)
    assert found['cat-concat']['params'] - found['']['params'] == 16 * 2 * 7 * 7
    assert found['cat-concat']['config'].endswith('_coco.py+cat-concat')
    assert found['cat-concat']['flops'] > found['']['flops']


@pytest.mark.parametrize(
    'args, words',
    [
        (['x.py', '--paper', 'cat'], 'not both'),
        (['--table', '3'], '--table needs --paper'),
        (['--size', '1', '2'], '--size is for a single config'),
        (['--paper', 'senet'], 'invalid choice'),
        (['--paper', 'cat', '--table', '7'], 'cat has the tables 1, 2, 3, 4, 5, 6'),
        (['no_such_config.py'], 'no such file'),
        (['--alternative', 'c4'], '--alternative is for a single config'),
        (
            [f'{papers.config_root()}/drtam/mobilenet-v2_4xb64_in1k.py', '--alternative', 'c4'],
            'error: the alternative c4 is for',
        ),
    ],
)
def test_a_wrong_command_line_is_refused(args, words, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(args)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_another_style_is_refused():
    with pytest.raises(ValueError, match='style must be one of'):
        report.render([], 'html')


def section(path, name):
    text = path.read_text(encoding='utf-8')
    return text.split(f'<!-- {name} -->\n')[1].split('<!-- end -->')[0]


def test_the_readme_lists_the_contradictions():
    """`python -c "from mmattn.analysis import complexity_report as r; print(r.contradictions())"`,
    and so for the other lists."""
    written = section(papers.config_root() / 'cat' / 'README.md', 'contradictions')
    assert written == report.contradictions()
    assert written.count('\n') == 2 + sum(map(len, CONTRADICTIONS.values()))


def test_the_readme_lists_the_conventions():
    written = section(papers.config_root() / 'README.md', 'conventions')
    assert written == report.conventions()
    assert '| all |  |  | 89 of 95 | 91 of 95 |' in written


def test_the_readme_lists_the_costs():
    assert section(papers.config_root() / 'README.md', 'costs') == report.costs()


def test_the_front_page_counts_the_cells():
    path = papers.config_root().parent / 'README.md'
    if not path.exists():
        pytest.skip('an installed package has no README')
    assert "91 of the papers' 95 FLOPs and 89 of their 95 parameter counts" in path.read_text()
