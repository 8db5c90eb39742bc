"""Official archives become data: whole, counted, once, whatever was there before."""

import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import official
import pytest
from official import run, tree
from PIL import Image

from mmattn.datasets import prepare as package
from mmattn.datasets.prepare import DATA_SETS, DataError, archives, cifar

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/prepare.py'


def test_the_papers_numbers(papers_numbers):
    assert list(papers_numbers.values()) == [
        1281167, 50000, 118287, 5000, 16551, 4952, 10582, 1449, 50000, 10000
    ]  # fmt: skip


def test_checksums_are_those_that_torchvision_publishes():
    torchvision = pytest.importorskip('torchvision')
    known = dict(torchvision.datasets.imagenet.ARCHIVE_META.values())
    for entry in torchvision.datasets.voc.DATASET_YEAR_DICT.values():
        if entry['filename'] not in known or '2012' in entry['url']:
            known[entry['filename']] = entry['md5']
    known[torchvision.datasets.SBDataset.filename] = torchvision.datasets.SBDataset.md5
    known[torchvision.datasets.CIFAR100.filename] = torchvision.datasets.CIFAR100.tgz_md5
    ours = {
        archive.name: archive.md5
        for data_set in DATA_SETS.values()
        for part in data_set.parts
        for archive in part.archives
    }
    assert {name for name in ours if name not in known} == {
        'train2017.zip',
        'val2017.zip',
        'annotations_trainval2017.zip',
    }
    for name in ours.keys() & known.keys():
        assert ours[name] == known[name], name


@pytest.mark.parametrize('name', DATA_SETS)
def test_archives_become_what_the_configs_read(name, published, tmp_path):
    root = tmp_path / 'data'
    (result,) = run(name, published / 'downloads', root)
    assert result.right, result
    assert [count.found for count in result.counts] == official.COUNTS[name]
    assert not list(root.rglob('.*')), 'what is unpacked leaves nothing beside it'
    wanted = tree(published / 'trees')
    for file, digest in tree(root).items():
        if 'imagenet/val' in file or 'imagenet/meta' in file or 'Segmentation/' in file:
            continue  # numbered and named otherwise: below
        assert wanted[file] == digest
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert run(name, published / 'downloads', root)[0].right
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_imagenet_val_is_sorted_by_the_development_kit(published, tmp_path):
    run('imagenet', published / 'downloads', tmp_path)
    made, trees = tmp_path / 'imagenet', published / 'trees/imagenet'
    content = {(path.parent.name, path.read_bytes()) for path in (made / 'val').rglob('*.JPEG')}
    assert content == {
        (path.parent.name, path.read_bytes()) for path in (trees / 'val').rglob('*.JPEG')
    }
    # make_digits lists the same images with the labels of their digits.
    assert sorted((made / 'meta/train.txt').read_text().split('\n')) == sorted(
        (trees / 'meta/train.txt').read_text().split('\n')
    )
    labels = dict(line.split() for line in (made / 'meta/val.txt').read_text().splitlines())
    for name, label in labels.items():
        assert sorted(official.digits.IMAGENET_CLASSES)[int(label)] == name.split('/')[0]


def test_sbd_masks_and_lists(published, tmp_path):
    run('sbd', published / 'downloads', tmp_path)
    year = tmp_path / 'VOCdevkit/VOC2012'
    trees = published / 'trees/VOCdevkit/VOC2012'
    for path in (year / 'SegmentationClassAug').iterdir():
        wanted = np.asarray(Image.open(trees / 'SegmentationClassAug' / path.name))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), wanted)
    lists = {
        name: (year / f'ImageSets/Segmentation/{name}.txt').read_text().split()
        for name in ('train', 'val', 'aug', 'trainaug')
    }
    wanted = (trees / 'ImageSets/Segmentation/aug.txt').read_text().split()
    assert lists['aug'] == sorted(wanted) and lists['trainaug'] == lists['train'] + lists['aug']
    assert not set(lists['trainaug']) & set(lists['val'])


def test_several_at_once_from_several_folders(downloads, tmp_path):
    other = tmp_path / 'disk/archives'
    other.mkdir(parents=True)
    (downloads / 'benchmark.tgz').rename(other / 'benchmark.tgz')
    results = run(list(DATA_SETS), [downloads, other.parent], tmp_path / 'data')
    assert [result.name for result in results] == list(DATA_SETS)
    assert all(result.right for result in results)


@pytest.mark.parametrize('name', DATA_SETS)
def test_an_unpacked_tree_is_linked(name, published, tmp_path):
    mine = tmp_path / 'mine'
    shutil.copytree(published / 'trees', mine)
    for made in ('aug', 'trainaug'):  # lists that only we make
        (mine / f'VOCdevkit/VOC2012/ImageSets/Segmentation/{made}.txt').unlink()
    if name == 'imagenet':  # the classes are those of the kit; meta is ours
        shutil.copy(published / 'downloads/ILSVRC2012_devkit_t12.tar.gz', mine)
    before = tree(mine)
    root = tmp_path / 'data'
    (result,) = run(name, mine, root)
    assert result.right, result
    assert tree(mine) == before
    assert any(path.is_symlink() for path in root.rglob('*'))
    assert not [path for path in root.rglob('.*')]


def test_flat_validation_images_get_their_labels_from_the_kit(published, downloads, tmp_path):
    mine = tmp_path / 'mine'
    with archives.tarfile.open(downloads / 'ILSVRC2012_img_val.tar') as archive:
        archive.extractall(mine / 'imagenet/val', filter='data')
    shutil.copytree(published / 'trees/imagenet/train', mine / 'imagenet/train')
    (result,) = run('imagenet', mine, tmp_path / 'without')
    assert 'can be made with ILSVRC2012_devkit_t12.tar.gz' in str(result.differences)
    shutil.copy(downloads / 'ILSVRC2012_devkit_t12.tar.gz', mine)
    (result,) = run('imagenet', mine, tmp_path / 'with')
    assert result.right
    run('imagenet', downloads, tmp_path / 'folders')
    flat = (tmp_path / 'with/imagenet/meta/val.txt').read_text().splitlines()
    folders = (tmp_path / 'folders/imagenet/meta/val.txt').read_text().splitlines()
    assert sorted(line.split('/')[1] for line in folders) == sorted(flat)


def test_imagenet_folders_without_a_kit_must_be_all_classes(published, tmp_path):
    """Labels are counted through the folders: with one of them lost, most would be wrong."""
    (result,) = run('imagenet', published / 'trees/imagenet', tmp_path)
    assert 'folders of classes, not the 1000' in result.differences[0]
    assert not (tmp_path / 'imagenet/meta').exists()


def test_only_mat_files(published, tmp_path):
    """SBD as others have unpacked it is converted, not linked."""
    with archives.tarfile.open(published / 'downloads/benchmark.tgz') as archive:
        archive.extractall(tmp_path / 'mine', filter='data')
    shutil.copy(published / 'downloads/VOCtrainval_11-May-2012.tar', tmp_path / 'mine')
    run('sbd', tmp_path / 'mine', tmp_path / 'a')
    run('sbd', published / 'downloads', tmp_path / 'b')
    place = 'VOCdevkit/VOC2012/SegmentationClassAug'
    assert tree(tmp_path / 'a' / place) == tree(tmp_path / 'b' / place) != {}


def test_differences_are_named(published, tmp_path):
    run(['voc', 'sbd', 'coco', 'cifar100', 'imagenet'], published / 'downloads', tmp_path)
    devkit = tmp_path / 'VOCdevkit'
    (devkit / 'VOC2007/JPEGImages/000001.jpg').unlink()
    (devkit / 'VOC2012/Annotations/2012_000002.xml').unlink()
    (devkit / 'VOC2012/SegmentationClassAug/2012_000002.png').unlink()
    (tmp_path / 'coco/val2017/000000000002.jpg').unlink()
    lost = next((tmp_path / 'imagenet/train').rglob('*.JPEG'))
    lost.rename(lost.with_name('n00000000_99.JPEG'))
    (tmp_path / 'cifar100/cifar-100-python/test').unlink()
    results = {result.name: result for result in run(list(DATA_SETS), [], tmp_path)}
    assert not any(result.right for result in results.values())
    train, test = results['voc'].counts
    assert train.found == official.COUNTS['voc'][0] - 2 and test.right
    assert train.differences == (
        '1 without image: VOC2007/000001',
        '1 without annotation: VOC2012/2012_000002',
    )
    assert 'mask: VOC2012/2012_000002' in str(results['sbd'].counts[0].differences)
    assert results['coco'].counts[1].differences == ('1 without image: 000000000002.jpg',)
    assert lost.name in str(results['imagenet'].counts[0].differences)
    assert 'entry in the list: ' in str(results['imagenet'].counts[0].differences)
    assert 'no ' in results['cifar100'].counts[1].differences[0]


def test_cifar_images_that_are_lost_are_not_counted(tmp_path):
    folder = tmp_path / 'cifar100/cifar-100-python'
    folder.mkdir(parents=True)
    content = dict(fine_labels=[1, 2, 3], data=np.zeros((2, 3072), np.uint8))
    (folder / 'train').write_bytes(pickle.dumps(content, protocol=2))
    train, _ = cifar.count_images(tmp_path)
    assert train.found == 2 and train.differences[1:] == ('1 without image: 2',)


def test_a_part_without_archives_is_named_and_the_others_are_made(downloads, tmp_path):
    (downloads / 'VOCtest_06-Nov-2007.tar').unlink()
    (result,) = run('voc', downloads, tmp_path / 'data')
    assert (tmp_path / 'data/VOCdevkit/VOC2012').is_dir()
    assert not (tmp_path / 'data/VOCdevkit/VOC2007').exists()
    assert 'VOCtest_06-Nov-2007.tar' in result.differences[0] and not result.right
    with pytest.raises(DataError, match=r'nothing to prepare.*cifar-100-python\.tar\.gz.*kriz'):
        run('cifar100', tmp_path / 'data', tmp_path / 'data')


def test_nothing_is_overwritten(published, tmp_path):
    place = tmp_path / 'coco/train2017'
    place.mkdir(parents=True)
    (place / 'mine.jpg').write_bytes(b'mine')
    lists = tmp_path / 'VOCdevkit/VOC2012/ImageSets/Segmentation'
    run('coco', published / 'downloads', tmp_path)
    assert tree(place) == {'mine.jpg': hashlib.sha256(b'mine').hexdigest()}
    run('voc', published / 'downloads', tmp_path)
    (lists / 'aug.txt').write_text('mine\n')
    (result,) = run('sbd', published / 'downloads', tmp_path)
    assert (lists / 'aug.txt').read_text() == 'mine\n'
    assert 'left as it is' in result.differences[0]


@pytest.fixture
def sealed(downloads, monkeypatch):
    """CIFAR-100's archive of the tests, as if it had been published."""
    path = downloads / 'cifar-100-python.tar.gz'
    (part,) = DATA_SETS['cifar100'].parts
    archive = replace(
        part.archives[0],
        md5=hashlib.md5(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
    )
    changed = replace(DATA_SETS['cifar100'], parts=(replace(part, archives=(archive,)),))
    monkeypatch.setitem(package.DATA_SETS, 'cifar100', changed)
    return path


def test_published_archives_are_recognised(sealed, tmp_path):
    (result,) = run('cifar100', sealed, tmp_path / 'data', checksums=True)
    assert result.right


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda content: content[:-100], 'the download stopped early'),
        (lambda content: content + b'x', 'the published file has'),
        (lambda content: content[:-9] + b'x' + content[-8:], 'is not the published file: its MD5'),
    ],
)
def test_other_archives_are_refused(sealed, tmp_path, change, words):
    sealed.write_bytes(change(sealed.read_bytes()))
    with pytest.raises(DataError, match=words) as error:
        run('cifar100', sealed.parent, tmp_path / 'data', checksums=True)
    assert str(sealed) in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'data/cifar100/cifar-100-python').exists()


def test_an_archive_is_verified_once(sealed, tmp_path, monkeypatch):
    """A checksum of 138 GB takes minutes: an interruption does not cost it."""
    calls = []
    md5 = archives._md5
    monkeypatch.setattr(archives, '_md5', lambda path: calls.append(path) or md5(path))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: os.terminal_size((0, 0)))
    for _ in range(2):
        with pytest.raises(AttributeError):  # an interruption after it
            run('cifar100', sealed.parent, tmp_path / 'data', checksums=True)
    assert len(calls) == 1
    os.utime(sealed, (1, 1))  # another file for all we know
    with pytest.raises(AttributeError):
        run('cifar100', sealed.parent, tmp_path / 'data', checksums=True)
    assert len(calls) == 2


def test_command_line(tool, published, tmp_path):
    source = published / 'downloads'
    code, out, _ = tool('coco', '--from', source, '--to', tmp_path, '--no-checksum')
    assert code == 0
    assert out.splitlines()[-3:] == [
        f'coco: COCO train2017: {official.NUM} of {official.NUM}',
        f'coco: COCO val2017: {official.NUM_VAL} of {official.NUM_VAL}',
        'all as in the papers',
    ]
    (tmp_path / 'coco/val2017/000000000001.jpg').unlink()
    code, out, _ = tool('coco', '--to', tmp_path)
    assert code == 1 and '    1 without image: 000000000001.jpg' in out.splitlines()
    code, _, err = tool('voc', '--from', source, '--to', tmp_path)
    assert code == 2 and err.startswith('error: ') and err.count('\n') == 1
    assert 'published file has 460032000' in err
    code, _, err = tool('voc', '--from', tmp_path / 'gone', '--to', tmp_path)
    assert (code, err) == (2, f'error: --from: there is no {tmp_path / "gone"}\n')


def test_the_tool_takes_the_data_root_of_all_tools(tool, published, tmp_path, monkeypatch):
    monkeypatch.setenv('MMATTN_DATA', str(tmp_path / 'mine'))
    monkeypatch.chdir(tmp_path)
    code, *_ = tool('cifar100', '--from', published / 'downloads', '--no-checksum')
    assert code == 0 and [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize(
    'name, file',
    [
        ('voc', 'VOCdevkit/VOC2007/ImageSets/Main/test.txt'),
        ('sbd', 'VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt'),
        ('imagenet', 'imagenet/meta/val.txt'),
    ],
)
def test_a_list_that_is_no_text(tool, published, tmp_path, name, file):
    run(name, published / 'downloads', tmp_path)
    (tmp_path / file).write_bytes(b'caf\xe9\n')
    code, _, err = tool(name, '--to', tmp_path)
    assert (
        code == 2
        and err.startswith(f'error: {tmp_path / file} is no list')
        and err.count('\n') == 1
    )


def test_interrupting_the_tool_says_how_to_go_on(tool, published, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(package.parts, '_unpack', interrupt)
    code, _, err = tool('voc', '--from', published / 'downloads', '--to', tmp_path, '--no-checksum')
    assert code == 130 and err.splitlines()[-1].startswith('interrupted; the same command goes on')


def test_records_of_verification_are_json(sealed, tmp_path):
    record = tmp_path / 'verified.json'
    (archive,) = package.DATA_SETS['cifar100'].parts[0].archives
    archives.verify(archive, sealed, record)
    assert json.loads(record.read_text())[archive.name][0] == str(sealed)


@pytest.mark.parametrize('text', ['', '{"cifar', '[]', '\0\0'])
def test_a_broken_record_of_verification_is_made_again(sealed, tmp_path, text):
    record = tmp_path / 'verified.json'
    record.write_text(text)
    (archive,) = package.DATA_SETS['cifar100'].parts[0].archives
    archives.verify(archive, sealed, record)
    assert json.loads(record.read_text())[archive.name][0] == str(sealed)
