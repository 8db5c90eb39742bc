"""Small data sets in the real formats, made of scikit-learn's handwritten digits.

The 1797 digits are 8x8 scans of real handwriting. Each is scaled up, coloured and pasted on a
random texture: one an image for classification, several for detection and segmentation. The ten
digits take the place of the first ten classes of ImageNet, CIFAR-100, COCO and VOC, under those
classes' names, so that a config for the real set runs on this one with nothing changed but its
data root. A digit belongs to one split only, the same for every set and seed, so that nothing a
model is tested on was trained on.
"""

import functools
import json
import pickle
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TASKS = ('imagenet', 'cifar', 'coco', 'voc', 'vocseg')

IMAGENET_CLASSES = (
    'n01440764',
    'n01443537',
    'n01484850',
    'n01491361',
    'n01494475',
    'n01496331',
    'n01498041',
    'n01514668',
    'n01514859',
    'n01518878',
)
CIFAR100_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
    plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905
CIFAR100_COARSE = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1
    vehicles_2
""".split()  # noqa: SIM905
# of the first ten fine classes
CIFAR100_COARSE_OF_DIGIT = (4, 1, 14, 8, 0, 6, 7, 7, 18, 3)
COCO_CLASSES = (
    'person',
    'bicycle',
    'car',
    'motorcycle',
    'airplane',
    'bus',
    'train',
    'truck',
    'boat',
    'traffic light',
    'fire hydrant',
    'stop sign',
    'parking meter',
    'bench',
    'bird',
    'cat',
    'dog',
    'horse',
    'sheep',
    'cow',
    'elephant',
    'bear',
    'zebra',
    'giraffe',
    'backpack',
    'umbrella',
    'handbag',
    'tie',
    'suitcase',
    'frisbee',
    'skis',
    'snowboard',
    'sports ball',
    'kite',
    'baseball bat',
    'baseball glove',
    'skateboard',
    'surfboard',
    'tennis racket',
    'bottle',
    'wine glass',
    'cup',
    'fork',
    'knife',
    'spoon',
    'bowl',
    'banana',
    'apple',
    'sandwich',
    'orange',
    'broccoli',
    'carrot',
    'hot dog',
    'pizza',
    'donut',
    'cake',
    'chair',
    'couch',
    'potted plant',
    'bed',
    'dining table',
    'toilet',
    'tv',
    'laptop',
    'mouse',
    'remote',
    'keyboard',
    'cell phone',
    'microwave',
    'oven',
    'toaster',
    'sink',
    'refrigerator',
    'book',
    'clock',
    'vase',
    'scissors',
    'teddy bear',
    'hair drier',
    'toothbrush',
)
# COCO's category ids run to 90 and leave these out.
COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
VOC_CLASSES = (
    'aeroplane',
    'bicycle',
    'bird',
    'boat',
    'bottle',
    'bus',
    'car',
    'cat',
    'chair',
    'cow',
)

# Three splits, because VOC07+12 trains on "trainval" and tests on "test".
SPLITS = {'train': (0.0, 0.6), 'val': (0.6, 0.8), 'test': (0.8, 1.0)}
# Keep the random streams of the sets apart; VOC's years and both its tasks share theirs.
STREAMS = {'imagenet': 0, 'cifar': 1, 'coco': 2, 'voc2007': 3, 'voc2012': 4}

# Of an image's edge that a digit takes, as it is and in `hard` images; halves of digits in those.
DIGIT_SHARE = {False: (0.75, 1.0), True: (0.5, 0.75)}
SCENE_SHARE = {False: (0.3, 0.5), True: (0.25, 0.4)}
FRAGMENTS = (2, 6)


@functools.cache
def load_strokes(split):
    """Ink and labels of the digits of one split.

    Args:
        split (str): 'train', 'val' or 'test'.

    Returns:
        tuple: float32 ink in [0, 1], (K, 8, 8), and int labels 0...9, (K, ).
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {tuple(SPLITS)}, got {split!r}')
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    begin, end = (int(round(bound * len(order))) for bound in SPLITS[split])
    chosen = order[begin:end]
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen]


def _stroke(ink, size):
    """Ink scaled to size x size, cut to its box: opacity (h, w) in [0, 1] and mask (h, w)."""
    alpha = cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    mask = alpha > 0.4
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A hard edge with a soft rim of one pixel or so: the mask is where the digit is seen.
    return ((alpha[box] - 0.2) / 0.4).clip(0, 1), mask[box]


def _background(rng, height, width):
    """A smooth dark colour field with grain, float32 (height, width, 3)."""
    field = rng.uniform(0, 120, (4, 4, 3)).astype(np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    return field + rng.normal(0, 8, (height, width, 1)).astype(np.float32)


def _paste(rng, image, alpha, top, left):
    colour = rng.uniform(150, 255, 3).astype(np.float32)
    part = image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    part += alpha[..., None] * (colour - part)


def _scatter(rng, image, ink):
    """Pastes halves of digits all over an image: what a model must not take for digits."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(*FRAGMENTS)):
        half = ink[rng.integers(len(ink))].copy()
        half = np.rot90(half, rng.integers(4)).copy()
        half[:, 4:] = 0
        if half.max() < 0.5:  # an empty half
            continue
        alpha, _ = _stroke(half, int(rng.uniform(0.2, 0.4) * max(height, width)))
        h, w = alpha.shape
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        _paste(rng, image, alpha, top, left)


def draw_digit(rng, split, size, hard=False):
    """One digit that fills most of a square image.

    Args:
        rng (np.random.Generator): Source of all choices.
        split (str): The digits to draw from, see :func:`load_strokes`.
        size (int): Edge of the image in pixels.
        hard (bool): A digit of about half that size, on top of halves of others.

    Returns:
        tuple: uint8 RGB image (size, size, 3) and the digit.
    """
    ink, labels = load_strokes(split)
    chosen = rng.integers(len(labels))
    image = _background(rng, size, size)
    if hard:
        _scatter(rng, image, ink)
    alpha, _ = _stroke(ink[chosen], int(rng.uniform(*DIGIT_SHARE[hard]) * size))
    top = rng.integers(size - alpha.shape[0] + 1)
    left = rng.integers(size - alpha.shape[1] + 1)
    _paste(rng, image, alpha, top, left)
    return image.clip(0, 255).astype(np.uint8), int(labels[chosen])


def draw_scene(rng, split, size, hard=False):
    """One to four digits that do not overlap, in a 4:3 or 3:4 image.

    Args:
        rng (np.random.Generator): Source of all choices.
        split (str): The digits to draw from, see :func:`load_strokes`.
        size (int): The longer side in pixels.
        hard (bool): Smaller digits, on top of halves of others.

    Returns:
        tuple: uint8 RGB image (H, W, 3) and a list of (digit, (left, top), mask), mask bool (h, w)
        being the digit inside its box.
    """
    ink, labels = load_strokes(split)
    height, width = (size, size * 3 // 4) if rng.random() < 0.5 else (size * 3 // 4, size)
    image = _background(rng, height, width)
    if hard:
        _scatter(rng, image, ink)
    taken = np.zeros((height, width), bool)
    objects = []
    wanted = rng.integers(1, 5)
    for _ in range(4 * wanted):  # a place that is taken costs a try, so that it always ends
        chosen = rng.integers(len(labels))
        alpha, mask = _stroke(ink[chosen], int(rng.uniform(*SCENE_SHARE[hard]) * size))
        h, w = mask.shape
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        place = np.s_[max(top - 1, 0) : top + h + 1, max(left - 1, 0) : left + w + 1]
        if taken[place].any():
            continue
        taken[place] = True
        _paste(rng, image, alpha, top, left)
        objects.append((int(labels[chosen]), (int(left), int(top)), mask))
        if len(objects) == wanted:
            break
    return image.clip(0, 255).astype(np.uint8), objects


def _rng(seed, stream, split, index):
    # A stream an image: the first images stay the same when more are asked for.
    return np.random.default_rng([seed, STREAMS[stream], list(SPLITS).index(split), index])


def _write_lists(folder, lists):
    """Writes <name>.txt for each name in lists, one entry a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in lines))


def _save_jpeg(image, path):
    Image.fromarray(image).save(path, quality=95)


def _polygons(mask, left, top):
    """Outlines of a mask in COCO's form, [x1, y1, x2, y2, ...] in pixels, holes filled."""
    # Four cells a pixel: an outline runs through the centres of cells, so that it misses the edge
    # of the pixels by an eighth of one instead of half of one.
    fine = mask.repeat(4, 0).repeat(4, 1).astype(np.uint8)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [(contour[:, 0] + 0.5) / 4 + (left, top) for contour in contours]
    return [outline.ravel().tolist() for outline in outlines]


def _area(polygon):
    return float(cv2.contourArea(np.float32(polygon).reshape(-1, 2)))


def make_imagenet(root, num, num_val, size, seed, hard=False):
    """ImageNet: root/imagenet/{train,val}/<synset>/*.JPEG and meta/{train,val}.txt.

    The lists are needed because mmpretrain refuses bare folders of fewer than 1000 classes.
    """
    # Readers of folders take every file they find.
    shutil.rmtree(root / 'imagenet', ignore_errors=True)
    for split, count in (('train', num), ('val', num_val)):
        lines = []
        for name in IMAGENET_CLASSES:
            (root / 'imagenet' / split / name).mkdir(parents=True)
        for index in range(count):
            image, digit = draw_digit(_rng(seed, 'imagenet', split, index), split, size, hard)
            file = f'{IMAGENET_CLASSES[digit]}/{IMAGENET_CLASSES[digit]}_{index}.JPEG'
            _save_jpeg(image, root / 'imagenet' / split / file)
            lines.append(f'{file} {digit}')
        _write_lists(root / 'imagenet' / 'meta', {split: lines})


def make_cifar(root, num, num_val, size, seed, hard=False):
    """CIFAR-100 pickles: root/cifar100/cifar-100-python/{train,test,meta}; 32x32, whatever size."""
    folder = root / 'cifar100' / 'cifar-100-python'
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (('train', num), ('test', num_val)):
        drawn = [
            draw_digit(_rng(seed, 'cifar', split, index), split, 32, hard) for index in range(count)
        ]
        digits = [digit for _, digit in drawn]
        (folder / split).write_bytes(
            pickle.dumps(
                {
                    'filenames': [
                        f'{digit}_s_{index:06d}.png' for index, digit in enumerate(digits)
                    ],
                    'batch_label': f'{split}ing batch 1 of 1',
                    'fine_labels': digits,
                    'coarse_labels': [CIFAR100_COARSE_OF_DIGIT[digit] for digit in digits],
                    # (N, 3072): all red, then all green, then all blue values, row by row
                    'data': np.stack([image.transpose(2, 0, 1).ravel() for image, _ in drawn]),
                },
                protocol=2,
            )
        )
    (folder / 'meta').write_bytes(
        pickle.dumps(
            {'fine_label_names': CIFAR100_FINE, 'coarse_label_names': CIFAR100_COARSE}, protocol=2
        )
    )


def make_coco(root, num, num_val, size, seed, hard=False):
    """COCO: root/coco/{train2017,val2017} and annotations/instances_{train,val}2017.json."""
    coco = root / 'coco'
    (coco / 'annotations').mkdir(parents=True, exist_ok=True)
    ids = [number for number in range(1, 91) if number not in COCO_UNUSED_IDS]
    categories = [dict(id=i, name=name) for i, name in zip(ids, COCO_CLASSES, strict=True)]
    for split, count in (('train', num), ('val', num_val)):
        folder = coco / f'{split}2017'
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            image, objects = draw_scene(_rng(seed, 'coco', split, index), split, size, hard)
            name = f'{index + 1:012d}.jpg'
            _save_jpeg(image, folder / name)
            images.append(
                dict(id=index + 1, file_name=name, height=image.shape[0], width=image.shape[1])
            )
            for digit, (left, top), mask in objects:
                polygons = _polygons(mask, left, top)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index + 1,
                        category_id=ids[digit],
                        iscrowd=0,
                        bbox=[left, top, mask.shape[1], mask.shape[0]],
                        area=sum(map(_area, polygons)),
                        segmentation=polygons,
                    )
                )
        (coco / 'annotations' / f'instances_{split}2017.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )


def _voc_scenes(devkit, year, splits, size, seed, hard):
    """Draws the images of one year and yields (id, split, image, objects)."""
    folder = devkit / f'VOC{year}' / 'JPEGImages'
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in splits.items():
        for index in range(count):
            number += 1
            name = f'{number:06d}' if year == 2007 else f'{year}_{number:06d}'
            image, objects = draw_scene(_rng(seed, f'voc{year}', split, index), split, size, hard)
            _save_jpeg(image, folder / f'{name}.jpg')
            yield name, split, image, objects


def _voc_xml(year, name, image, objects):
    root = ET.Element('annotation')
    ET.SubElement(root, 'folder').text = f'VOC{year}'
    ET.SubElement(root, 'filename').text = f'{name}.jpg'
    size = ET.SubElement(root, 'size')
    for key, value in zip(('height', 'width', 'depth'), image.shape, strict=True):
        ET.SubElement(size, key).text = str(value)
    ET.SubElement(root, 'segmented').text = str(int(year == 2012))
    for digit, (left, top), mask in objects:
        item = ET.SubElement(root, 'object')
        for key, value in dict(
            name=VOC_CLASSES[digit], pose='Unspecified', truncated=0, difficult=0
        ).items():
            ET.SubElement(item, key).text = str(value)
        box = ET.SubElement(item, 'bndbox')
        # VOC counts pixels from 1 and names the first and the last one.
        for key, value in dict(
            xmin=left + 1, ymin=top + 1, xmax=left + mask.shape[1], ymax=top + mask.shape[0]
        ).items():
            ET.SubElement(box, key).text = str(value)
    return ET.tostring(root, encoding='unicode')


def _voc_splits(year, num, num_val):
    # VOC2007 has a public test set; of VOC2012 only train and val are public.
    train = num - num_val
    return dict(train=train, val=num_val, **({'test': num_val} if year == 2007 else {}))


def make_voc(root, num, num_val, size, seed, hard=False):
    """VOC detection: root/VOCdevkit/VOC{2007,2012}/{JPEGImages,Annotations,ImageSets/Main}.

    ``num`` counts a year's trainval, of which ``num_val`` are its val; VOC2007 has ``num_val`` test
    images as well.
    """
    devkit = root / 'VOCdevkit'
    for year in (2007, 2012):
        splits = _voc_splits(year, num, num_val)
        lists = {split: [] for split in splits}
        annotations = devkit / f'VOC{year}' / 'Annotations'
        annotations.mkdir(parents=True, exist_ok=True)
        for name, split, image, objects in _voc_scenes(devkit, year, splits, size, seed, hard):
            (annotations / f'{name}.xml').write_text(_voc_xml(year, name, image, objects))
            lists[split].append(name)
        lists['trainval'] = lists['train'] + lists['val']
        _write_lists(devkit / f'VOC{year}' / 'ImageSets' / 'Main', lists)


def voc_palette(count=256):
    """VOC's colours: the bits of a class number spread over red, green and blue, (count, 3)."""
    bits = np.arange(count)[:, None] >> np.arange(24) & 1
    weights = 128 >> np.arange(8)
    return (bits.reshape(count, 8, 3) * weights[None, :, None]).sum(1).astype(np.uint8)


def _class_map(image, objects, void):
    """Class numbers (H, W); with void, a rim of 255 around every digit, as VOC draws it."""
    labels = np.zeros(image.shape[:2], np.uint8)
    for digit, (left, top), mask in objects:
        labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = digit + 1
    if void:
        rim = cv2.dilate(labels, np.ones((3, 3), np.uint8)) > labels
        labels[rim] = 255
    return labels


def make_vocseg(root, num, num_val, size, seed, hard=False):
    """VOC segmentation: SegmentationClass, SegmentationClassAug and lists beside VOC2012's images.

    Half of the training images are VOC's own (``train.txt``, masks with colour table and void
    rims), half stand for SBD's (``aug.txt``, plain masks, as mmsegmentation's converter writes
    them).
    """
    year = root / 'VOCdevkit' / 'VOC2012'
    for folder in ('SegmentationClass', 'SegmentationClassAug'):
        (year / folder).mkdir(parents=True, exist_ok=True)
    palette = voc_palette().ravel().tolist()
    splits = _voc_splits(2012, num, num_val)
    lists = dict(train=[], val=[], aug=[])
    for name, split, image, objects in _voc_scenes(year.parent, 2012, splits, size, seed, hard):
        if split == 'train' and len(lists['train']) > len(lists['aug']):
            split = 'aug'
        lists[split].append(name)
        if split != 'val':
            Image.fromarray(_class_map(image, objects, void=False)).save(
                year / 'SegmentationClassAug' / f'{name}.png'
            )
        if split != 'aug':
            coloured = Image.fromarray(_class_map(image, objects, void=True)).convert('P')
            coloured.putpalette(palette)
            coloured.save(year / 'SegmentationClass' / f'{name}.png')
    lists['trainaug'] = lists['train'] + lists['aug']
    lists['trainval'] = lists['train'] + lists['val']
    _write_lists(year / 'ImageSets' / 'Segmentation', lists)


MAKERS = dict(
    imagenet=make_imagenet, cifar=make_cifar, coco=make_coco, voc=make_voc, vocseg=make_vocseg
)
FOLDERS = dict(
    imagenet='imagenet', cifar='cifar100', coco='coco', voc='VOCdevkit', vocseg='VOCdevkit'
)


def make(root, task, num=1000, num_val=None, size=None, seed=0, hard=False):
    """Makes one data set, unless it is there already with the same settings.

    Args:
        root (str or Path): Gets ``imagenet/``, ``cifar100/``, ``coco/`` or ``VOCdevkit/``.
        task (str): One of ``TASKS``.
        num (int): Training images.
        num_val (int, optional): Validation images; a quarter of ``num`` by default.
        size (int, optional): The longer side in pixels; by default 64 for 'imagenet', 128 for
            scenes. CIFAR images are 32x32.
        seed (int): Same seed, same bytes.
        hard (bool): Small digits among halves of others, for models that must not be perfect.

    Returns:
        bool: Whether it was made, False if it was there.

    Raises:
        ValueError: For settings outside their range, or a folder that is there but not by this
            function: real data are never overwritten.
    """
    root = Path(root)
    num_val = num // 4 if num_val is None else num_val
    if task == 'cifar':
        size = 32
    elif size is None:
        size = 64 if task == 'imagenet' else 128
    if task not in MAKERS:
        raise ValueError(f'task must be one of {TASKS}, got {task!r}')
    if num_val < 1 or num <= num_val:
        raise ValueError(f'1 <= num_val < num must hold, got num_val={num_val}, num={num}')
    if size < 32:
        raise ValueError(f'size must be at least 32, got {size}')
    record = root / 'digits.json'
    made = json.loads(record.read_text()) if record.exists() else {}
    settings = dict(num=num, num_val=num_val, size=size, seed=seed)
    settings |= {'hard': True} if hard else {}  # sets made before have no such key
    if made.get(task) == settings:
        return False
    folder = root / FOLDERS[task]
    if folder.exists() and FOLDERS[task] not in {FOLDERS[name] for name in made}:
        raise ValueError(f'{folder} is there and holds other data; choose another root')
    # Both VOC tasks draw VOC2012's images: with other settings, one undoes the other.
    made = {
        name: old for name, old in made.items() if FOLDERS[name] != FOLDERS[task] or old == settings
    }
    # An entry without settings marks a set that is begun and not finished.
    root.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(made | {task: None}, indent=1))
    MAKERS[task](root, num, num_val, size, seed, hard)
    record.write_text(json.dumps(made | {task: settings}, indent=1))
    return True
