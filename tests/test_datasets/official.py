"""Archives in the layouts of the official ones, a few digits large."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mmattn.datasets import digits
from mmattn.datasets.prepare import prepare

NUM, NUM_VAL = 6, 2
# of a year: trainval NUM, VOC07 test NUM_VAL; of segmentation: train and aug 2 each, val 2
COUNTS = {
    'imagenet': [NUM, NUM_VAL],
    'coco': [NUM, NUM_VAL],
    'voc': [2 * NUM, NUM_VAL],
    'sbd': [NUM - NUM_VAL, NUM_VAL],
    'cifar100': [NUM, NUM_VAL],
}


SPLITS = {
    'imagenet': ('ImageNet train', 'ImageNet val'),
    'coco': ('COCO train2017', 'COCO val2017'),
    'voc': ('VOC07+12 trainval', 'VOC07 test'),
    'sbd': ('VOC12 train + aug', 'VOC12 val'),
    'cifar100': ('CIFAR-100 train', 'CIFAR-100 test'),
}


def make(folder: Path) -> None:
    """All archives into one folder, as a browser would leave them."""
    trees = folder / 'trees'
    for task in digits.TASKS:
        digits.make(trees, task, num=NUM, num_val=NUM_VAL, size=48)
    downloads = folder / 'downloads'
    downloads.mkdir()
    coco(trees / 'coco', downloads)
    voc(trees / 'VOCdevkit', downloads)
    sbd(trees / 'VOCdevkit/VOC2012', downloads)
    cifar(trees / 'cifar100', downloads)
    imagenet(trees / 'imagenet', downloads)


def run(names, sources, root, **kwargs):
    return prepare(
        [names] if isinstance(names, str) else names,
        sources if isinstance(sources, list) else [sources],
        root,
        **{'checksums': False, 'say': lambda line: None, **kwargs},
    )


def tree(root):
    """Every file below a folder, by its content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def files(tree):
    return sorted(path for path in tree.rglob('*') if path.is_file())


def tar(path, members, mode='w'):
    """members: (name, bytes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def coco(tree, downloads):
    for name, folders in {
        'train2017': ['train2017'],
        'val2017': ['val2017'],
        'annotations_trainval2017': ['annotations'],
    }.items():
        with zipfile.ZipFile(downloads / f'{name}.zip', 'w') as archive:
            for folder in folders:
                archive.writestr(f'{folder}/', b'')
                for path in files(tree / folder):
                    archive.write(path, path.relative_to(tree))


def voc(devkit, downloads):
    def members(year, wanted):
        for path in files(devkit / f'VOC{year}'):
            if 'Aug' not in str(path) and path.stem not in ('aug', 'trainaug') and wanted(path):
                yield f'VOCdevkit/{path.relative_to(devkit)}', path.read_bytes()

    main = devkit / 'VOC2007/ImageSets/Main'
    test = {'test', *(main / 'test.txt').read_text().split()}
    tar(downloads / 'VOCtest_06-Nov-2007.tar', members(2007, lambda path: path.stem in test))
    tar(
        downloads / 'VOCtrainval_06-Nov-2007.tar',
        members(2007, lambda path: path.stem not in test),
    )
    tar(downloads / 'VOCtrainval_11-May-2012.tar', members(2012, lambda path: True))


def sbd(year, downloads):
    """SBD has masks of some of VOC's own training images too."""
    lists = year / 'ImageSets/Segmentation'
    names = [
        name for part in ('train', 'aug') for name in (lists / f'{part}.txt').read_text().split()
    ]
    base = 'benchmark_RELEASE/dataset'
    members = [(f'{base}/train.txt', '\n'.join(names).encode()), (f'{base}/val.txt', b'')]
    for name in names:
        mask = np.asarray(Image.open(year / f'SegmentationClassAug/{name}.png'))
        members.append((f'{base}/cls/{name}.mat', mat(mask)))
        members.append((f'{base}/img/{name}.jpg', b'not needed'))
    tar(downloads / 'benchmark.tgz', members, 'w:gz')


def mat(mask):
    content = io.BytesIO()
    savemat(content, {'GTcls': {'Segmentation': mask, 'CategoriesPresent': np.unique(mask)}})
    return content.getvalue()


def cifar(tree, downloads):
    tar(
        downloads / 'cifar-100-python.tar.gz',
        [(str(path.relative_to(tree)), path.read_bytes()) for path in files(tree)],
        'w:gz',
    )


def imagenet(tree, downloads):
    """Without a class that no image is of, but with all of them in the development kit."""
    inner = []
    for folder in sorted((tree / 'train').iterdir()):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode='w') as archive:
            for path in files(folder):
                archive.add(path, path.name)
        inner.append((f'{folder.name}.tar', content.getvalue()))
    tar(downloads / 'ILSVRC2012_img_train.tar', inner)

    # The validation images are numbered; IDs are not in the order of the names.
    names = list(digits.IMAGENET_CLASSES)
    ids = {name: number for number, name in enumerate(reversed(names), 1)}
    val = [line.split()[0] for line in (tree / 'meta/val.txt').read_text().splitlines()]
    tar(
        downloads / 'ILSVRC2012_img_val.tar',
        [
            (f'ILSVRC2012_val_{number:08d}.JPEG', (tree / 'val' / name).read_bytes())
            for number, name in enumerate(val, 1)
        ],
    )
    truth = ''.join(f'{ids[name.split("/")[0]]}\n' for name in val)
    kit = 'ILSVRC2012_devkit_t12/data'
    tar(
        downloads / 'ILSVRC2012_devkit_t12.tar.gz',
        [
            (f'{kit}/meta.mat', meta_mat(ids)),
            (f'{kit}/ILSVRC2012_validation_ground_truth.txt', truth.encode()),
        ],
        'w:gz',
    )


def meta_mat(ids):
    fields = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('gloss', 'O')]
    fields += [('num_children', 'O'), ('children', 'O'), ('wordnet_height', 'O')]
    rows = [(number, name, 'fish', 'a fish', 0, [], 0) for name, number in ids.items()]
    rows.append((1001, 'n99999999', 'animal', 'with children', 2, [1, 2], 1))
    content = io.BytesIO()
    savemat(content, {'synsets': np.array(rows, dtype=fields)[:, None]})
    return content.getvalue()


def forged_cifar() -> bytes:
    """A pickle that would run a command."""

    class Forged:
        def __reduce__(self):
            import os

            return os.system, ('echo ran',)

    return pickle.dumps({'fine_labels': Forged(), 'data': []})
