"""The digits are written in the real formats: read back here by the codebases' own data sets."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from mmattn.datasets import digits

NUM, NUM_VAL, SIZE = 24, 8, 96


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits')
    for task in digits.TASKS:
        assert digits.make(root, task, NUM, NUM_VAL, SIZE)
    return root


def checksums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_splits_share_no_digit():
    seen = [{ink.tobytes() for ink in digits.load_strokes(split)[0]} for split in digits.SPLITS]
    assert sum(map(len, seen)) > 1750  # of 1797; a handful of scans are equal
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert not one & other
    with pytest.raises(ValueError, match='split must be one of'):
        digits.load_strokes('trainval')


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        for task in digits.TASKS:
            digits.make(tmp_path / name, task, 6, 2, 64, seed)
    a, b, c = (checksums(tmp_path / name) for name in 'abc')
    assert a == b
    images = [name for name in a if name.endswith(('.jpg', '.JPEG'))]
    assert len(images) >= 6 + 8 + 8 + 6
    assert not any(c.get(name) == a[name] for name in images)


def test_hard_digits_are_smaller_among_halves_of_others():
    def ink(hard):
        """The share of bright pixels in many images."""
        drawn = [digits.draw_digit(np.random.default_rng(i), 'val', 64, hard) for i in range(50)]
        return np.mean([(image.max(-1) > 140).mean() for image, _ in drawn])

    assert 0.02 < ink(True) < 0.8 * ink(False)
    sides = {}
    for how in (False, True):
        scenes = [digits.draw_scene(np.random.default_rng(i), 'val', 96, how) for i in range(50)]
        sides[how] = [max(mask.shape) for _, objects in scenes for *_, mask in objects]
    assert np.mean(sides[True]) < np.mean(sides[False]) and min(sides[True]) > 10


def test_hard_is_another_setting(tmp_path):
    assert digits.make(tmp_path, 'imagenet', 6, 2, 48, hard=True)
    assert not digits.make(tmp_path, 'imagenet', 6, 2, 48, hard=True)
    hard = checksums(tmp_path / 'imagenet')
    assert digits.make(tmp_path, 'imagenet', 6, 2, 48)
    assert checksums(tmp_path / 'imagenet') != hard


def test_more_images_keep_the_first(tmp_path):
    digits.make(tmp_path / 'few', 'coco', 4, 2, 64)
    digits.make(tmp_path / 'many', 'coco', 8, 4, 64)
    few, many = checksums(tmp_path / 'few' / 'coco'), checksums(tmp_path / 'many' / 'coco')
    assert all(many[name] == value for name, value in few.items() if name.endswith('.jpg'))


def test_made_once(root, tmp_path):
    before = checksums(root)
    assert not digits.make(root, 'voc', NUM, NUM_VAL, SIZE)
    assert checksums(root) == before
    assert digits.make(tmp_path, 'imagenet', 8, 2, 32)
    assert digits.make(tmp_path, 'imagenet', 6, 2, 32)  # other settings: made anew
    assert len(list((tmp_path / 'imagenet' / 'train').rglob('*.JPEG'))) == 6


def test_interrupted_set_is_made_again(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(digits.MAKERS, 'cifar', interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits.make(tmp_path, 'cifar', 4, 2)
    assert digits.make(tmp_path, 'cifar', 4, 2)
    assert not digits.make(tmp_path, 'cifar', 4, 2)


def test_another_size_of_one_voc_task_undoes_the_other(tmp_path):
    digits.make(tmp_path, 'voc', 4, 2, 64)
    digits.make(tmp_path, 'vocseg', 4, 2, 64)
    assert not digits.make(tmp_path, 'voc', 4, 2, 64)
    digits.make(tmp_path, 'vocseg', 4, 2, 96)
    assert digits.make(tmp_path, 'voc', 4, 2, 64)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(task='kitti'), 'task must be one of'),
        (dict(num=4, num_val=4), '1 <= num_val < num'),
        (dict(num=4, num_val=0), '1 <= num_val < num'),
        (dict(size=16), 'size must be at least 32'),
    ],
)
def test_bad_settings(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        digits.make(tmp_path, **dict(dict(task='coco', num=8, num_val=2), **settings))
    assert not list(tmp_path.iterdir())


def test_real_data_are_not_overwritten(tmp_path):
    (tmp_path / 'coco' / 'train2017').mkdir(parents=True)
    with pytest.raises(ValueError, match='holds other data'):
        digits.make(tmp_path, 'coco', 8, 2)


def test_imagenet(root):
    datasets = pytest.importorskip('mmpretrain.datasets')
    for split, count in (('train', NUM), ('val', NUM_VAL)):
        data = datasets.ImageNet(data_root=str(root / 'imagenet'), split=split)
        assert len(data) == count
        assert len(data.CLASSES) == 1000
        for item in data:
            folder = item['img_path'].split('/')[-2]
            assert digits.IMAGENET_CLASSES[item['gt_label']] == folder
            assert Image.open(item['img_path']).size == (SIZE, SIZE)


def test_cifar(root):
    datasets = pytest.importorskip('mmpretrain.datasets')
    from mmattn.datasets.digits_cifar import DigitsCIFAR100

    for split, count in (('train', NUM), ('test', NUM_VAL)):
        data = DigitsCIFAR100(data_root=str(root / 'cifar100'), split=split)
        assert len(data) == count
        assert list(data.CLASSES) == list(datasets.CIFAR100.METAINFO['classes'])
        image, digit = digits.draw_digit(digits.generator(0, 'cifar', split, 5), split, 32)
        np.testing.assert_array_equal(data[5]['img'], image)
        assert data[5]['gt_label'] == digit


def test_cifar_names_are_the_real_ones():
    categories = pytest.importorskip('mmpretrain.datasets.categories')
    assert list(categories.CIFAR100_CATEGORIES) == digits.CIFAR100_FINE
    assert len(digits.CIFAR100_COARSE) == 20


def coco_truth(split, index):
    return digits.draw_scene(digits.generator(0, 'coco', split, index), split, SIZE)


def test_coco_boxes_and_polygons(root):
    mmdet = pytest.importorskip('mmdet.datasets')
    from pycocotools.coco import COCO

    file = root / 'coco' / 'annotations' / 'instances_train2017.json'
    data = mmdet.CocoDataset(
        data_root=str(root / 'coco'),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=[],
    )
    assert len(data) == NUM
    coco = COCO(file)
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(
        data.metainfo['classes']
    )
    orientations = set()
    for index in range(NUM):
        image, objects = coco_truth('train', index)
        info = data.get_data_info(index)
        assert (info['height'], info['width']) == image.shape[:2]
        assert Image.open(info['img_path']).size == (info['width'], info['height'])
        orientations.add(info['height'] > info['width'])
        assert [item['bbox_label'] for item in info['instances']] == [obj[0] for obj in objects]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        for annotation, (_, (left, top), mask) in zip(annotations, objects, strict=True):
            full = np.zeros(image.shape[:2], bool)
            full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            drawn = coco.annToMask(annotation).astype(bool)
            # Polygons fill the holes of 0, 6, 8 and 9 and cannot leave the box.
            assert (drawn | ~full).mean() > 0.99
            rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
            x, y, w, h = annotation['bbox']
            assert abs(rows[0] - y) <= 1 and abs(rows[-1] + 1 - y - h) <= 1
            assert abs(columns[0] - x) <= 1 and abs(columns[-1] + 1 - x - w) <= 1
            assert annotation['area'] == pytest.approx(drawn.sum(), rel=0.1)
    assert orientations == {True, False}


@pytest.mark.parametrize(
    'year, lists',
    [
        (2007, dict(train=NUM - NUM_VAL, val=NUM_VAL, trainval=NUM, test=NUM_VAL)),
        (2012, dict(train=NUM - NUM_VAL, val=NUM_VAL, trainval=NUM)),
    ],
)
def test_voc_detection(root, year, lists):
    mmdet = pytest.importorskip('mmdet.datasets')
    ids = {}
    for name, count in lists.items():
        data = mmdet.VOCDataset(
            data_root=str(root / 'VOCdevkit'),
            ann_file=f'VOC{year}/ImageSets/Main/{name}.txt',
            data_prefix=dict(sub_data_root=f'VOC{year}/'),
            pipeline=[],
        )
        assert len(data) == count
        ids[name] = {data.get_data_info(index)['img_id'] for index in range(count)}
    assert ids['train'] | ids['val'] == ids['trainval']
    assert not ids['train'] & ids['val']
    data = mmdet.VOCDataset(
        data_root=str(root / 'VOCdevkit'),
        ann_file=f'VOC{year}/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        pipeline=[],
    )
    for index in range(len(data)):
        image, objects = digits.draw_scene(
            digits.generator(0, f'voc{year}', 'train', index), 'train', SIZE
        )
        info = data.get_data_info(index)
        assert (info['height'], info['width']) == image.shape[:2]
        for item, (digit, (left, top), mask) in zip(info['instances'], objects, strict=True):
            # mmdet takes one from all four, so that the far sides name the last pixel
            h, w = mask.shape
            assert item['bbox'] == [left, top, left + w - 1, top + h - 1]
            assert data.metainfo['classes'][item['bbox_label']] == digits.VOC_CLASSES[digit]


def test_voc_segmentation(root):
    mmseg = pytest.importorskip('mmseg.datasets')
    counts = dict(train=8, aug=8, trainaug=16, val=NUM_VAL, trainval=16)
    for name, count in counts.items():
        folder = 'SegmentationClassAug' if 'aug' in name else 'SegmentationClass'
        data = mmseg.PascalVOCDataset(
            data_root=str(root / 'VOCdevkit' / 'VOC2012'),
            data_prefix=dict(img_path='JPEGImages', seg_map_path=folder),
            ann_file=f'ImageSets/Segmentation/{name}.txt',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
        )
        assert len(data) == count
        void = 0
        for item in data:
            labels = item['gt_seg_map']
            assert labels.shape == item['img'].shape[:2]
            assert set(np.unique(labels)) <= {*range(11), 255}
            void += (labels == 255).sum()
        assert (void > 0) == (folder == 'SegmentationClass')


def test_voc_masks_show_the_digits(root):
    year = root / 'VOCdevkit' / 'VOC2012'
    name = (year / 'ImageSets' / 'Segmentation' / 'val.txt').read_text().split()[0]
    picture = Image.open(year / 'SegmentationClass' / f'{name}.png')
    assert picture.mode == 'P'
    # VOC's colours: 1 dark red, 2 dark green, 8 half of dark red, 255 cream
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    assert palette[[0, 1, 2, 8, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [224, 224, 192],
    ]
    image, objects = digits.draw_scene(digits.generator(0, 'voc2012', 'val', 0), 'val', SIZE)
    labels = np.array(picture)
    for digit, (left, top), mask in objects:
        box = labels[top : top + mask.shape[0], left : left + mask.shape[1]]
        assert (box[mask] == digit + 1).mean() > 0.95  # less what the rims of neighbours cover
    assert json.loads((root / 'digits.json').read_text())['vocseg'] == dict(
        num=NUM, num_val=NUM_VAL, size=SIZE, seed=0
    )
