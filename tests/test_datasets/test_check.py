"""The check of a config's data finds each fault that is planted, and no other."""

import copy
import functools
import io
import json
import os
import pickle
import re
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import official
import pytest
from mmengine.config import Config
from PIL import Image

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmattn.datasets import check as package  # noqa: E402
from mmattn.datasets.check import check, leaks, leaves, samples  # noqa: E402
from mmattn.datasets.check.report import Checked  # noqa: E402
from mmattn.papers import config_root  # noqa: E402
from mmattn.runs import cli  # noqa: E402

TOOL = Path(__file__).parents[2] / 'tools/check_data.py'
CONFIGS = {
    'imagenet': 'cat/resnet50-cat-r16_8xb32_in1k.py',
    'cifar100': 'cat/resnet50-cat-r16_1xb128_cifar100.py',
    'coco': 'cat/mask-rcnn_r50-cat_fpn_2xb4-90k_coco.py',
    'voc': 'cat/faster-rcnn_r50-cat_fpn_4xb2-18k_voc0712.py',
    'sbd': 'drtam/fcn_r50-d8-drtam-pool_4xb4-20k_voc12aug-512x512.py',
}
# Of each, samples of the data sets of the config: train, val.
SAMPLES = {
    'imagenet': [6, 2],
    'cifar100': [6, 2],
    'coco': [6, 2],
    'voc': [6, 6, 2],
    'sbd': [2, 2, 2],
}


@pytest.fixture(scope='session')
def prepared(published, tmp_path_factory):
    root = tmp_path_factory.mktemp('prepared')
    official.run(list(official.COUNTS), published / 'downloads', root)
    return root


@pytest.fixture
def root(prepared, tmp_path, monkeypatch):
    """Prepared data of one test's own; CIFAR's files are those that mmpretrain expects."""
    from mmpretrain.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, 'train_list', [['train', None]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', None]])
    root = tmp_path / 'data'
    shutil.copytree(prepared, root)
    return root


@functools.cache
def read(name):
    return Config.fromfile(config_root() / CONFIGS[name], import_custom_modules=False)


def config(name, root):
    cfg = copy.deepcopy(read(name))
    cli.move_data(cfg, str(root))
    return cfg


def run(name, root, **kwargs):
    return check({name: config(name, root)}, **{'workers': 0, **kwargs})


def found(report):
    return [(problem.level, problem.kind, problem.file) for problem in report.all_problems()]


def the(report, **wanted):
    """The one problem of a report."""
    (problem,) = report.all_problems()
    for key, value in wanted.items():
        assert getattr(problem, key) == value or value in getattr(problem, key), problem
    return problem


@pytest.mark.parametrize('name', CONFIGS)
def test_prepared_data_are_right(name, root):
    report = run(name, root, workers=2)
    assert found(report) == [] and report.right
    assert [data_set.samples for data_set in report.data_sets] == SAMPLES[name]
    assert [data_set.checked for data_set in report.data_sets] == SAMPLES[name]
    assert [data_set.decoded for data_set in report.data_sets] == SAMPLES[name]
    assert next(report.lines()).endswith(
        f': {SAMPLES[name][0]} samples, {SAMPLES[name][0]} decoded'
    )
    assert report.configs[name]['val'] == report.configs[name]['test']


def jpeg(*parts):
    root = parts[0]
    return sorted(root.joinpath(*parts[1:]).rglob('*.*'))[0]


IMAGES = {
    'imagenet': ('imagenet', 'train'),
    'coco': ('coco', 'train2017'),
    'voc': ('VOCdevkit', 'VOC2007', 'JPEGImages'),
    'sbd': ('VOCdevkit', 'VOC2012', 'JPEGImages'),
}


@pytest.mark.parametrize('name', IMAGES)
def test_missing_and_cut_off_and_broken_images(name, root):
    path = jpeg(root, *IMAGES[name])
    content = path.read_bytes()
    path.unlink()
    the(run(name, root), level='error', kind='missing', file=str(path), detail='No such file')
    path.write_bytes(content[: len(content) // 2])
    # filled with grey by some versions of OpenCV, refused by others
    the(run(name, root), level='error', kind='broken', file=str(path))
    path.write_bytes(b'no image')
    the(run(name, root), level='error', kind='broken', file=str(path))
    path.write_bytes(b'')
    report = run(name, root)
    the(report, level='error', kind='broken', file=str(path))
    number = SAMPLES[name][0]
    assert [data_set.checked for data_set in report.data_sets] == SAMPLES[name]
    assert [data_set.decoded for data_set in report.data_sets] == [number - 1, *SAMPLES[name][1:]]
    assert f': {number} samples, {number - 1} decoded, 1 missing or broken' in next(report.lines())


def test_corrupt_inside(root):
    """The decoder goes on behind the damage; what it says of it is kept."""
    path = jpeg(root, *IMAGES['imagenet'])
    content = bytearray(path.read_bytes())
    content[-200:-100] = b'\xff\xd3' * 50
    path.write_bytes(content)
    the(run('imagenet', root), level='warning', kind='broken', file=str(path), detail='Corrupt')


def test_cmyk(root):
    path = jpeg(root, *IMAGES['coco'])
    Image.open(path).convert('CMYK').save(path, 'JPEG')
    the(run('coco', root), level='warning', kind='format', file=str(path), detail='CMYK')


def test_jpegs_of_other_precision(root):
    """12 and 16 bits are in the standard, and in no decoder here."""
    path = jpeg(root, *IMAGES['coco'])
    content = bytearray(path.read_bytes())
    frame = content.index(b'\xff\xc0')
    for bits in (12, 16):
        content[frame + 4] = bits
        path.write_bytes(content)
        problems = run('coco', root).all_problems()
        assert [(p.level, p.kind) for p in problems] == [('error', 'format'), ('error', 'broken')]
        assert samples.jpeg_header(bytes(content)) == (bits, 3)


def test_png_of_16_bits_under_the_name_of_a_jpeg(root):
    path = jpeg(root, *IMAGES['coco'])
    height, width = cv2.imread(str(path)).shape[:2]
    image = np.random.default_rng(0).integers(0, 1 << 16, (height, width, 3), np.uint16)
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
    the(run('coco', root), level='warning', kind='format', file=str(path), detail='16 bits')


def test_no_permission(root, monkeypatch):
    path = jpeg(root, *IMAGES['coco'])
    opened = open

    def refuse(file, *args):
        if str(file) == str(path):
            raise PermissionError(13, 'Permission denied', str(file))
        return opened(file, *args)

    monkeypatch.setattr(samples, 'open', refuse, raising=False)
    problem = the(run('coco', root), level='error', kind='missing', file=str(path))
    assert problem.detail == 'Permission denied'


def test_labels_of_imagenet(root):
    lists = root / 'imagenet/meta/train.txt'
    first, *others = lists.read_text().splitlines()
    name = first.split()[0]
    for label, kind, words in (
        ('1000', 'label', 'label 1000, allowed are 0...999'),
        ('cat', 'list', 'is not a file and a label'),
    ):
        lists.write_text('\n'.join([f'{name} {label}', *others]))
        problem = next(iter(run('imagenet', root).all_problems()))
        assert (problem.level, problem.kind) == ('error', kind) and words in problem.detail
    lists.write_text('\n'.join([first, '', *others, first]))
    kinds = {(p.level, p.kind, p.detail) for p in run('imagenet', root).all_problems()}
    assert ('error', 'list', 'is an empty line') in kinds
    assert ('warning', 'list', f'lists {name!r} 2 times') in kinds


def test_labels_of_cifar(root):
    path = root / 'cifar100/cifar-100-python/train'
    content = pickle.loads(path.read_bytes())
    content['fine_labels'][3] = 100
    path.write_bytes(pickle.dumps(content, 2))
    the(run('cifar100', root), level='error', kind='label', detail='label 100, allowed are 0...99')
    content['fine_labels'].pop()
    path.write_bytes(pickle.dumps(content, 2))
    problem = next(iter(run('cifar100', root).all_problems()))
    assert '5 labels, but images of shape' in problem.detail


def test_cifar_other_than_published(root, monkeypatch):
    """mmpretrain would download over it."""
    from mmpretrain.datasets import CIFAR100, cifar

    monkeypatch.setattr(CIFAR100, 'train_list', [['train', '0' * 32]])
    monkeypatch.setattr(cifar, 'download_and_extract_archive', None)
    for problem in run('cifar100', root).all_problems():
        assert problem.kind == 'broken' and 'MD5 differs' in problem.detail


def test_a_pickle_of_cifar_does_not_run(root, capfd):
    """Where no checksum keeps mmpretrain from it."""
    (root / 'cifar100/cifar-100-python/train').write_bytes(official.forged_cifar())
    for problem in run('cifar100', root).all_problems():
        assert problem.kind == 'broken' and 'asks for' in problem.detail
    assert 'ran' not in capfd.readouterr().out


def annotation(root):
    return sorted((root / 'VOCdevkit/VOC2007/Annotations').iterdir())[0]


@pytest.mark.parametrize(
    'old, new, level, kind, words',
    [
        (r'<name>\w+', '<name>unicorn', 'error', 'class', "unknown class 'unicorn'"),
        (r'<xmax>\d+', '<xmax>4000', 'error', 'box', 'outside of the picture, '),
        (r'<xmin>\d+', '<xmin>-30', 'error', 'box', 'box (-31, '),
        (r'<xmin>\d+', '<xmin>nan', 'error', 'broken', 'is not of numbers'),
        (r'<width>\d+', '<width>47', 'error', 'size', 'its annotation says 47x'),
        (r'<bndbox>', '<box>', 'error', 'broken', 'no annotation of VOC'),
        (r'</size>', '', 'error', 'broken', 'no annotation of VOC'),
    ],
)
def test_annotations_of_voc(root, old, new, level, kind, words):
    path = annotation(root)
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    problems = list(run('voc', root).all_problems())
    assert (level, kind) in [(problem.level, problem.kind) for problem in problems]
    assert any(words in problem.detail for problem in problems)
    assert {Path(problem.file).stem for problem in problems} == {path.stem}


def test_missing_annotations_of_voc(root):
    path = annotation(root)
    path.unlink()
    the(run('voc', root), level='error', kind='missing', file=str(path))
    (root / 'VOCdevkit/VOC2012/ImageSets/Main/trainval.txt').unlink()
    assert ('error', 'missing', f'{root}/VOCdevkit/VOC2012/ImageSets/Main/trainval.txt') in found(
        run('voc', root)
    )


def test_a_class_left_out_on_purpose_is_no_fault(root):
    cfg = config('voc', root)
    for leaf in cfg.train_dataloader.dataset.datasets:
        leaf.metainfo = dict(classes=('bird',))
    kinds = {(problem.kind) for problem in check({'voc': cfg}, workers=0).all_problems()}
    assert 'class' not in kinds


def coco(root, change):
    path = root / 'coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(key, value, of='annotations'):
    def change(content):
        content[of][0][key] = value

    return change


@pytest.mark.parametrize(
    'change, level, kind, words',
    [
        (put('category_id', 12), 'error', 'class', 'unknown category 12'),
        (put('bbox', [0, 0, 900, 9]), 'error', 'box', 'outside of the picture'),
        (put('bbox', [500, 500, 9, 9]), 'error', 'box', 'outside of the picture'),
        (put('bbox', [1, 1, 0, 9]), 'warning', 'box', 'is empty'),
        (put('bbox', [1, 1, float('nan'), 9]), 'error', 'broken', 'not of numbers'),
        (put('image_id', 77), 'error', 'list', 'there is no image 77'),
        (put('id', 2), 'error', 'list', 'two annotations have this id'),
        (put('name', 'unicorn', 'categories'), 'error', 'class', "has no category 'person'"),
        (put('file_name', '000000000002.jpg', 'images'), 'warning', 'list', 'lists'),
        (put('id', 2, 'images'), 'error', 'list', 'two images have one id'),
        (put('height', 490, 'images'), 'error', 'size', 'its annotation says'),
        (lambda content: content.pop('images'), 'error', 'broken', 'no annotations of COCO'),
        (
            lambda content: content['annotations'][0].pop('bbox'),
            'error',
            'broken',
            "an annotation is not of COCO (KeyError('bbox'))",
        ),
    ],
)
def test_annotations_of_coco(root, change, level, kind, words):
    coco(root, change)
    problems = list(run('coco', root).all_problems())
    assert any(
        (problem.level, problem.kind) == (level, kind) and words in problem.detail
        for problem in problems
    ), problems


def test_an_evaluator_without_its_annotations(root):
    cfg = config('coco', root)
    cfg.val_evaluator.ann_file = f'{root}/gone.json'
    the(check({'coco': cfg}, workers=0), level='error', kind='missing', file=f'{root}/gone.json')


def mask(root):
    year = root / 'VOCdevkit/VOC2012'
    name = (year / 'ImageSets/Segmentation/aug.txt').read_text().split()[0]
    return year / f'SegmentationClassAug/{name}.png'


@pytest.mark.parametrize(
    'change, level, kind, words',
    [
        (
            lambda labels: np.where(labels == 0, np.uint8(21), labels),
            'error',
            'label',
            'labels 21, allowed',
        ),
        (lambda labels: labels[:-1], 'error', 'size', 'shape'),
        (lambda labels: labels.astype(np.uint16), 'error', 'format', 'mask of 16 bits'),
        (lambda labels: np.stack([labels] * 3, -1), 'error', 'format', 'mask in colours'),
    ],
)
def test_masks(root, change, level, kind, words):
    path = mask(root)
    labels = change(np.asarray(Image.open(path)))
    cv2.imwrite(str(path), labels)
    problems = list(run('sbd', root).all_problems())
    assert any(
        (problem.level, problem.kind, problem.file) == (level, kind, str(path))
        and words in problem.detail
        for problem in problems
    ), problems


def test_missing_and_broken_masks(root):
    path = mask(root)
    path.write_bytes(path.read_bytes()[:60])
    assert [kind for _, kind, _ in found(run('sbd', root))] == ['broken']
    path.unlink()
    the(run('sbd', root), level='error', kind='missing', file=str(path))


def test_a_file_in_train_and_test(root):
    """SBD's own lists have images of VOC's val in them."""
    lists = root / 'VOCdevkit/VOC2012/ImageSets/Segmentation'
    leaked = (lists / 'val.txt').read_text().split()[0]
    (lists / 'aug.txt').write_text((lists / 'aug.txt').read_text() + f'{leaked}\n')
    shutil.copy(
        lists.parents[1] / f'SegmentationClass/{leaked}.png',
        lists.parents[1] / f'SegmentationClassAug/{leaked}.png',
    )
    problem = the(run('sbd', root), level='error', kind='leak', detail='aug.txt and in')
    assert problem.file.endswith(f'{leaked}.jpg')


def test_a_copy_in_train_and_test(root):
    train = jpeg(root, 'coco', 'train2017')
    test = jpeg(root, 'coco', 'val2017')
    sizes = [Image.open(path).size for path in (train, test)]
    shutil.copy(train, test)
    report = run('coco', root)
    (leak,) = [problem for problem in report.all_problems() if problem.kind == 'leak']
    assert leak.level == 'warning' and leak.file == str(test) and str(train) in leak.detail
    assert report.right == (sizes[0] == sizes[1])


def test_a_leak_through_a_linked_folder(root):
    shutil.rmtree(root / 'coco/val2017')
    (root / 'coco/val2017').symlink_to('train2017')
    assert ('error', 'leak', f'{root}/coco/train2017/000000000001.jpg') in found(run('coco', root))


def test_leaks_of_cifar(root):
    folder = root / 'cifar100/cifar-100-python'
    train, test = (pickle.loads((folder / name).read_bytes()) for name in ('train', 'test'))
    test['data'][1] = train['data'][4]
    (folder / 'test').write_bytes(pickle.dumps(test, 2))
    the(run('cifar100', root), level='warning', kind='leak', file='image 1 of', detail='image 4 of')


def test_leaks_name_each_file_once():
    train = Checked('a', files=['/x', '/y'], digests={b'1': 0, b'2': 1})
    test = Checked('b', files=['/x', '/z'], digests={b'1': 0, b'2': 1})
    assert [(p.level, p.file) for p in leaks(train, test)] == [('error', '/x'), ('warning', '/z')]


def test_missing_folders(tmp_path):
    for name in CONFIGS:
        report = run(name, tmp_path)
        assert not report.right
        assert {kind for _, kind, _ in found(report)} == {'missing'}


def test_folders_of_too_few_classes(root):
    shutil.rmtree(root / 'imagenet/meta')
    problem = next(iter(run('imagenet', root).all_problems()))
    assert problem.kind == 'config' and "doesn't match the number" in problem.detail


def test_a_model_of_other_classes(root):
    cfg = config('voc', root)
    cfg.model.roi_head.bbox_head.num_classes = 80
    problems = list(check({'voc': cfg}, workers=0).all_problems())
    assert {problem.kind for problem in problems} == {'config'}
    assert '20 classes, the model has 80' in problems[0].detail


def test_quick(root, monkeypatch):
    monkeypatch.setattr(package, 'QUICK', 2)
    report = run('voc', root, quick=True)
    assert [data_set.checked for data_set in report.data_sets] == [4, 4, 2]
    assert report.to_dict()['quick'] and report.right
    assert package._chosen(10, True, 0) == [0, *sorted(package._chosen(10, True, 0)[1:-1]), 9]
    chosen = [package._chosen(100, True, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_configs_that_read_the_same_are_checked_once(root):
    cfg, other = config('coco', root), config('coco', root)
    other.train_dataloader.dataset.pipeline[2] = dict(type='Resize', scale=(9, 9))
    report = check({'a': cfg, 'b': other}, workers=0)
    assert len(report.data_sets) == 2 and report.configs['a'] == report.configs['b']


def test_leaves():
    inner = dict(type='A'), dict(type='B')
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=inner))
    assert list(leaves(wrapped)) == list(inner)
    assert list(leaves({})) == []


def test_a_decoder_that_dies_is_told(root, monkeypatch):
    monkeypatch.setattr(samples, 'check_sample', lambda *args: os._exit(1))
    with pytest.raises(package.DataError, match='a process died while decoding'):
        run('coco', root, workers=1)


def test_headers():
    assert samples.jpeg_header(b'\xff\xd8\xff\xff\xc0\0\x11\x08\0\1\0\1\x04\0') == (8, 4)
    assert samples.jpeg_header(b'\xff\xd8') is None
    assert samples.jpeg_header(b'GIF89a') is None
    header = b'\x89PNG\r\n\x1a\n' + struct.pack('>IIIIBB', 13, 0, 9, 9, 16, 2)
    assert samples.png_header(header) == (16, 2)
    picture = io.BytesIO()
    Image.new('L', (3, 3)).save(picture, 'JPEG', progressive=True)
    assert samples.jpeg_header(picture.getvalue()) == (8, 1)


def test_command_line(tool, root, tmp_path):
    path = config_root() / CONFIGS['voc']
    out = tmp_path / 'report.json'
    code, said, _ = tool(path, '--data-root', root, '--workers', 0, '--json', out)
    assert code == 0 and said.splitlines()[-1] == '0 errors, 0 warnings'
    assert len(said.splitlines()) == 4
    assert json.loads(out.read_text())['right'] is True
    annotation(root).unlink()
    code, said, _ = tool(path, '--data-root', root, '--workers', 0, '--json', out, '--quick')
    assert code == 1 and '    error: missing: ' in said
    assert said.splitlines()[-1] == '1 errors, 0 warnings (quick: of a part of the files)'
    (problem,) = json.loads(out.read_text())['data_sets'][0]['problems']
    assert problem['file'] == str(annotation(root).with_name(Path(problem['file']).name))
    code, _, err = tool(path, '--data-root', tmp_path / 'gone')
    assert code == 2 and err == f'error: --data-root: there is no folder {tmp_path}/gone\n'
    code, _, err = tool('gone.py')
    assert code == 2 and err == 'error: config not found: gone.py\n'


def test_command_lines_that_end_before_the_check(tool, root, tmp_path, monkeypatch):
    path = config_root() / CONFIGS['voc']
    monkeypatch.setattr(package, 'check', None)
    for value in ('-1', 'many', '\u00b2'):
        code, _, err = tool(path, '--data-root', root, '--workers', value)
        assert code == 2 and err.splitlines()[-1].endswith(
            f'must be a number from 0 on, got {value!r}'
        )
    for out in (tmp_path / 'gone/report.json', tmp_path):
        code, _, err = tool(path, '--data-root', root, '--json', out)
        assert (code, err) == (2, f'error: --json: {out} cannot be written\n')


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    'name, place', [('coco', 'coco/train2017'), ('sbd', 'VOCdevkit/VOC2012/SegmentationClassAug')]
)
def test_a_pipe_is_no_image(root, name, place):
    """Which would be waited for without end."""
    path = sorted((root / place).iterdir())[-1]
    path.unlink()
    os.mkfifo(path)
    assert the(run(name, root), kind='missing', file=str(path)).detail == 'is no file'


def test_a_list_of_imagenet_that_is_no_text(root):
    path = root / 'imagenet/meta/train.txt'
    path.write_bytes(b'caf\xe9 0\n')
    assert 'is no list' in the(run('imagenet', root), kind='broken', file=str(path)).detail


def test_many_problems_are_counted(root):
    for path in (root / 'coco/train2017').iterdir():
        path.unlink()
    from mmattn.datasets.check import report

    found = run('coco', root)
    before = report.SHOWN
    try:
        report.SHOWN = 2
        lines = list(found.lines())
    finally:
        report.SHOWN = before
    assert '    error: missing: 4 more' in lines
