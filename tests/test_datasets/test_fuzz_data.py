"""Archives and annotations at random: refused in one line, or read; nothing is lost or escapes."""

import copy
import io
import json
import shutil
import tarfile
import zipfile
from types import SimpleNamespace
from xml.sax.saxutils import escape

import numpy as np
import official
import pytest
from fuzzing import CHANGES, ODD, cases, changed, places, put, tree
from hypothesis import example, given
from hypothesis import strategies as st

from mmattn.datasets.check import annotations
from mmattn.datasets.prepare import DataError, cifar
from mmattn.datasets.prepare.archives import broken_archives, read

# What each data set is made of, and files in it that matter.
ARCHIVES = {
    'voc': ('VOCtrainval_11-May-2012.tar', 'VOCdevkit/VOC2012'),
    'coco': ('annotations_trainval2017.zip', 'coco/annotations'),
    'cifar100': ('cifar-100-python.tar.gz', 'cifar100/cifar-100-python'),
    'imagenet': ('ILSVRC2012_img_train.tar', 'imagenet/train'),
    'sbd': ('benchmark.tgz', 'VOCdevkit/VOC2012/SegmentationClassAug'),
}
PREFIXES = ('VOCdevkit/VOC2012/', 'annotations/', 'cifar-100-python/', '', 'benchmark_RELEASE/')
NAMES = st.tuples(
    st.sampled_from(PREFIXES),
    st.one_of(
        st.sampled_from(('../x', '/etc/x', 'a/../../../x', '..\\x', 'a//b', './a', '.', '', 'a/')),
        st.sampled_from(
            ('n01440764.tar', 'train', 'dataset/cls/a.mat', 'x' * 300, '\x1b[2J', 'a\nb')
        ),
        st.text(st.characters(exclude_categories=['Cs']), max_size=5),
    ),
).map(''.join)
KINDS = st.sampled_from(
    (tarfile.REGTYPE,) * 3
    + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    + (tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
)
SIZES = st.sampled_from((None,) * 6 + (0, 1, 10**6, 2**40, -1, -512))
LINKS = st.sampled_from(('/etc/passwd', '../../../../x', 'a', '', '.', 'VOCdevkit'))
MEMBERS = st.lists(
    st.tuples(NAMES, KINDS, st.binary(max_size=20), SIZES, LINKS), min_size=1, max_size=3
)


def tar_of(members):
    file = io.BytesIO()
    for name, kind, contents, size, link in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        info.size = len(contents) if size is None else size
        file.write(info.tobuf(tarfile.GNU_FORMAT, 'utf-8', 'surrogateescape'))
        file.write(contents + b'\0' * (-len(contents) % 512))
    return file.getvalue() + bytes(10240)


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, kind, contents, _, _ in members:
            info = zipfile.ZipInfo(name.replace('\0', '0'))
            link = kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(info, contents)
    return file.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@cases(200)
@given(MEMBERS, st.sampled_from(('tar', 'zip')), CHANGES | st.none())
def test_members(folder, members, form, changes):
    """What may be unpacked: names inside, sizes that are there, in the end of time."""
    data = (tar_of if form == 'tar' else zip_of)(members)
    path = folder / f'x.{form}'
    path.write_bytes(changed(data, changes) if changes else data)
    before = tree(folder)
    try:
        for count, member in enumerate(read(path)):
            assert count < 1000 and '..' not in member.name.split('/')
            assert not member.name.startswith('/') and member.size >= 0
            if member.size < 10**6:
                with broken_archives('x'), member.open() as stream:  # as all are unpacked
                    stream.read()
    except DataError as error:
        assert '\n' not in str(error)
    assert tree(folder) == before


@cases(25)
@given(
    st.sampled_from(sorted(ARCHIVES)),
    MEMBERS | st.none(),
    CHANGES | st.none(),
    st.sampled_from((False, False, True)),
)
@example('imagenet', [('x/y', b'5', b'', None, '')], None, True)  # has nothing of ImageNet
def test_archives(published, folder, name, members, changes, alone):
    archive, target = ARCHIVES[name]
    downloads, root = folder / 'downloads', folder / 'data'
    for old in (downloads, root):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(published / 'downloads', downloads)
    path = downloads / archive
    whole = path.read_bytes()
    if members is not None:
        if archive.endswith('.zip'):
            path.write_bytes(zip_of(members))
        elif alone or not archive.endswith('.tar'):
            path.write_bytes(tar_of(members))
        else:
            path.write_bytes(whole.rstrip(b'\0') + bytes(-len(whole.rstrip(b'\0')) % 512))
            with open(path, 'ab') as file:
                file.write(tar_of(members))
    if changes:
        path.write_bytes(changed(path.read_bytes(), changes))
    before = tree(downloads)
    try:
        results = official.run(name, downloads, root)
    except DataError as error:
        assert '\n' not in str(error)
        assert not (root / target).exists() or any((root / target).iterdir())
    else:
        assert results
    assert tree(downloads) == before
    assert {path.name for path in folder.iterdir()} <= {'downloads', 'data', 'x.tar', 'x.zip'}


XML = """<annotation><size><width>{0}</width><height>{1}</height></size>
<object><name>{2}</name><bndbox><xmin>{3}</xmin><ymin>1</ymin><xmax>{4}</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + ''.join(f'<!ENTITY {b} "{f"&{a};" * 20}">' for a, b in zip('abcdef', 'bcdefg', strict=True))
    + ']><annotation>&g;</annotation>'
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    '<annotation><size><width>&a;</width><height>1</height></size></annotation>'
)
WORDS = st.one_of(
    st.sampled_from(
        ('9', '-1', '0', '1e400', 'nan', 'inf', '', ' 5 ', '9' * 5000, 'dog', '\x1b[2J')
    ),
    st.text(max_size=4).map(escape),
)
XMLS = st.one_of(
    st.tuples(*[WORDS] * 5).map(lambda words: XML.format(*words)),
    st.sampled_from((LAUGHS, OUTSIDE, '<a>' * 5000, '', '<annotation/>')),
)


@cases(150)
@given(XMLS, CHANGES | st.none(), st.lists(WORDS, min_size=1, max_size=3))
def test_xml(folder, text, changes, names):
    root = folder / 'voc'
    root.mkdir(exist_ok=True)
    data = text.encode(errors='replace')
    (root / 'a.xml').write_bytes(changed(data, changes) if changes else data)
    (root / 'list.txt').write_text('\n'.join(['a', *names]), encoding='utf-8')
    data_set = SimpleNamespace(
        METAINFO=dict(classes=('dog',)),
        metainfo=dict(classes=('dog',)),
        ann_file=str(root / 'list.txt'),
        sub_data_root=str(root),
        ann_subdir='',
    )
    for problem in annotations.check_xml(data_set):
        assert problem.level in ('error', 'warning') and problem.detail
        assert 'root:' not in problem.detail  # nobody's password


COCO = dict(
    images=[dict(id=1, file_name='a.jpg', width=9, height=9)],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 5, 5], iscrowd=0)],
    categories=[dict(id=1, name='dog')],
)
COCO_PLACES = list(places(COCO))


@cases(150)
@given(st.lists(st.tuples(st.sampled_from(COCO_PLACES), ODD), max_size=3), CHANGES | st.none())
def test_coco(folder, values, changes):
    content = copy.deepcopy(COCO)
    put(content, values)
    data = json.dumps(content).encode()
    (folder / 'coco.json').write_bytes(changed(data, changes) if changes else data)
    data_set = SimpleNamespace(ann_file=str(folder / 'coco.json'), metainfo=dict(classes=('dog',)))
    for problem in annotations.check_coco(data_set):
        assert problem.level in ('error', 'warning') and problem.detail and problem.file


CIFAR = dict(fine_labels=[1, 2], data=np.zeros((2, 3072), np.uint8), filenames=['a', 'b'])


@cases(100)
@given(
    st.dictionaries(st.sampled_from(('fine_labels', 'labels', 'data')), ODD, max_size=2),
    CHANGES | st.none(),
)
def test_cifar(folder, values, changes):
    import pickle

    root = folder / 'cifar'
    root.mkdir(exist_ok=True)
    data = pickle.dumps({**CIFAR, **values}, 2)
    (root / 'train').write_bytes(changed(data, changes) if changes else data)
    try:
        cifar.load(root / 'train')
    except ValueError as error:
        assert str(error)
    data_set = SimpleNamespace(
        data_prefix=dict(root=str(folder)),
        base_folder='cifar',
        train_list=[('train', None)],
        test_list=[],
    )
    for problem in annotations.check_cifar(data_set):
        assert problem.level == 'error' and problem.detail


@pytest.mark.parametrize(
    'changes',
    [dict(annotations=-0.0), dict(categories=[dict(id=1, name={})]), dict(images=[dict(id=1)])],
    ids=str,
)
def test_no_annotations_of_coco(tmp_path, changes):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps({**COCO, **changes}))
    data_set = SimpleNamespace(ann_file=str(path), metainfo=dict(classes=('dog',)))
    (problem,) = annotations.check_coco(data_set)
    assert problem.kind == 'broken' and problem.file == str(path)


def test_a_file_without_a_name(tmp_path):
    (tmp_path / 'x.zip').write_bytes(zip_of([('', tarfile.REGTYPE, b'x', None, '')]))
    with pytest.raises(DataError, match='without a name'):
        list(read(tmp_path / 'x.zip'))


def test_a_size_below_zero(tmp_path):
    """Older Pythons read such a member for ever."""
    members = [('a', tarfile.REGTYPE, b'x', None, ''), ('b', tarfile.REGTYPE, b'', -1024, '')]
    (tmp_path / 'x.tar').write_bytes(tar_of(members))
    with pytest.raises(DataError, match='broken or cut off'):
        list(read(tmp_path / 'x.tar'))
