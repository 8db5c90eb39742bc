"""What goes wrong with archives and disks ends in one line, and harms nothing."""

import errno
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import official
import pytest
from official import run, tree

from mmattn.datasets import prepare as package
from mmattn.datasets.prepare import DATA_SETS, DataError, cifar, parts

ARCHIVES = {
    'imagenet': 'ILSVRC2012_img_train.tar',
    'coco': 'train2017.zip',
    'voc': 'VOCtrainval_11-May-2012.tar',
    'sbd': 'benchmark.tgz',
    'cifar100': 'cifar-100-python.tar.gz',
}
TARGETS = {
    'imagenet': 'imagenet/train',
    'coco': 'coco/train2017',
    'voc': 'VOCdevkit/VOC2012',
    'sbd': 'VOCdevkit/VOC2012/SegmentationClassAug',
    'cifar100': 'cifar100/cifar-100-python',
}


def refused(name, source, root, words):
    """The error of a preparation, after which nothing stands under the part's name."""
    with pytest.raises(DataError, match=words) as error:
        run(name, source, root)
    assert '\n' not in str(error.value)
    assert not (root / TARGETS[name]).exists()
    return str(error.value)


@pytest.mark.parametrize('name, archive', ARCHIVES.items())
@pytest.mark.parametrize('kept', [0.0, 0.5, 0.98])
def test_truncated(downloads, tmp_path, name, archive, kept):
    path = downloads / archive
    content = path.read_bytes().rstrip(b'\0')  # the end of a tar is zeros
    path.write_bytes(content[: int(len(content) * kept)])
    assert archive in refused(name, downloads, tmp_path / 'data', 'broken or cut off')


def test_truncated_between_two_members(downloads, tmp_path):
    """tarfile takes such an archive for whole."""
    path = downloads / ARCHIVES['voc']
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end])
    refused('voc', downloads, tmp_path / 'data', 'broken or cut off')


def test_truncated_class_of_imagenet(downloads, tmp_path):
    """The archive is whole, one of those in it is not; the others need not be unpacked again."""
    path = downloads / ARCHIVES['imagenet']
    with tarfile.open(path) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]
    index = max(range(len(members)), key=lambda i: len(members[i][1].rstrip(b'\0')))
    name, content = members[index]
    members[index] = name, content.rstrip(b'\0')[:-600]
    official.tar(path, members)
    message = refused('imagenet', downloads, tmp_path / 'data', 'broken or cut off')
    assert name.removesuffix('.tar') in message


def test_a_flipped_bit_in_a_zip(downloads, tmp_path):
    path = downloads / ARCHIVES['coco']
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert 'train2017' in refused('coco', downloads, tmp_path / 'data', 'broken or cut off')


OUTSIDE = ['../escaped', '/tmp/mmattn-escaped', 'VOCdevkit/VOC2012/../../../escaped', '..', '..\\x']


@pytest.mark.parametrize('member', OUTSIDE)
def test_path_traversal_in_a_tar(downloads, tmp_path, member):
    path = downloads / ARCHIVES['voc']
    with tarfile.open(path, 'a') as archive:
        info = tarfile.TarInfo(member)
        info.size = 3
        archive.addfile(info, io.BytesIO(b'bad'))
    before = tree(tmp_path)
    message = refused('voc', downloads, tmp_path / 'data', 'leads out of the folder: refused')
    assert repr(member) in message
    assert tree(tmp_path) == before


@pytest.mark.parametrize('member', OUTSIDE)
def test_path_traversal_in_a_zip(downloads, tmp_path, member):
    with zipfile.ZipFile(downloads / ARCHIVES['coco'], 'a') as archive:
        archive.writestr(zipfile.ZipInfo(member), b'bad')
    before = tree(tmp_path)
    refused('coco', downloads, tmp_path / 'data', 'leads out of the folder: refused')
    assert tree(tmp_path) == before


def test_path_traversal_in_a_class_of_imagenet(downloads, tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('../../../escaped.JPEG'))
    official.tar(downloads / ARCHIVES['imagenet'], [('n01440764.tar', inner.getvalue())])
    refused('imagenet', downloads, tmp_path / 'data', 'leads out of the folder: refused')
    assert not list(tmp_path.rglob('escaped*'))


def link_to(kind, name, target):
    info = tarfile.TarInfo(f'VOCdevkit/VOC2012/{name}')
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize('target', ['/etc/passwd', '../../../secret', 'no/such/member', '.'])
def test_links_out_of_an_archive(downloads, tmp_path, kind, target):
    (tmp_path / 'secret').write_text('secret')
    with tarfile.open(downloads / ARCHIVES['voc'], 'a') as archive:
        archive.addfile(link_to(kind, 'JPEGImages/link.jpg', target))
    message = refused('voc', downloads, tmp_path / 'data', 'refused')
    assert 'link' in message
    assert b'secret' not in [p.read_bytes() for p in (tmp_path / 'data').rglob('*.jpg')]


def test_a_file_is_never_written_through_a_link(downloads, tmp_path):
    (tmp_path / 'outside').mkdir()
    with tarfile.open(downloads / ARCHIVES['voc'], 'a') as archive:
        archive.addfile(link_to(tarfile.SYMTYPE, 'extra', str(tmp_path / 'outside')))
        info = tarfile.TarInfo('VOCdevkit/VOC2012/extra/file')
        info.size = 3
        archive.addfile(info, io.BytesIO(b'bad'))
    refused('voc', downloads, tmp_path / 'data', 'refused')
    assert not list((tmp_path / 'outside').iterdir())


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_inside_becomes_a_copy(downloads, tmp_path, kind):
    target = '2012_000001.jpg'
    if kind == tarfile.LNKTYPE:
        target = f'VOCdevkit/VOC2012/JPEGImages/{target}'
    with tarfile.open(downloads / ARCHIVES['voc'], 'a') as archive:
        archive.addfile(link_to(kind, 'JPEGImages/link.jpg', target))
    run('voc', downloads, tmp_path / 'data')
    images = tmp_path / 'data/VOCdevkit/VOC2012/JPEGImages'
    assert not (images / 'link.jpg').is_symlink()
    assert (images / 'link.jpg').read_bytes() == (images / '2012_000001.jpg').read_bytes()


def test_links_in_a_zip_and_devices(downloads, tmp_path):
    info = zipfile.ZipInfo('train2017/link.jpg')
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(downloads / ARCHIVES['coco'], 'a') as archive:
        archive.writestr(info, '/etc/passwd')
    refused('coco', downloads, tmp_path / 'data', 'holds a link or device')
    with tarfile.open(downloads / ARCHIVES['voc'], 'a') as archive:
        archive.addfile(link_to(tarfile.CHRTYPE, 'null', ''))
    refused('voc', downloads, tmp_path / 'data', 'holds a device')


def test_other_contents(downloads, tmp_path):
    """The right name on the wrong archive."""
    official.tar(downloads / ARCHIVES['imagenet'], [('readme.txt', b'')])
    refused('imagenet', downloads, tmp_path / 'a', "'readme.txt', not one n00000000.tar a class")
    official.tar(downloads / 'ILSVRC2012_img_val.tar', [('ILSVRC2012_val_00000003.JPEG', b'')])
    with pytest.raises(DataError, match='_00000003.*to 00000002'):
        run('imagenet', downloads, tmp_path / 'b')
    official.tar(downloads / 'ILSVRC2012_devkit_t12.tar.gz', [('data/meta.mat', b'no')], 'w:gz')
    with pytest.raises(DataError, match='is no development kit of ImageNet'):
        run('imagenet', downloads, tmp_path / 'c')


@pytest.mark.parametrize('name', ['sbd', 'imagenet'])
def test_without_scipy(published, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    refused(name, published / 'downloads', tmp_path, 'by scipy: pip install scipy')


@pytest.mark.parametrize(
    'content, words',
    [
        (b'no matlab', 'is no mask of SBD'),
        (official.mat(np.full((4, 4), 21, np.uint8)), r'class numbers 0\.\.\.20 expected, got 21'),
        (official.mat(np.zeros((4, 4, 4), np.uint8)), 'class numbers'),
    ],
)
def test_masks_of_sbd_out_of_range(downloads, tmp_path, content, words):
    name = 'benchmark_RELEASE/dataset/cls/2012_000001.mat'
    official.tar(downloads / ARCHIVES['sbd'], [(name, content)], 'w:gz')
    assert '2012_000001.mat' in refused('sbd', downloads, tmp_path / 'data', words)


def test_a_pickle_of_cifar_does_not_run(downloads, tmp_path, capfd):
    forged = official.forged_cifar()
    (tmp_path / 'forged').write_bytes(forged)
    with pytest.raises(ValueError, match='is no file of CIFAR'):
        cifar.load(tmp_path / 'forged')
    official.tar(
        downloads / ARCHIVES['cifar100'],
        [(f'cifar-100-python/{name}', forged) for name in ('train', 'test', 'meta')],
        'w:gz',
    )
    (result,) = run('cifar100', downloads, tmp_path)
    assert re.search('asks for (posix|os).system', result.counts[0].differences[0])
    assert 'ran' not in capfd.readouterr().out


# the disk


def test_the_disk_is_looked_at_first(downloads, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=parts.SPARE + 1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    message = refused('voc', downloads, tmp_path / 'data', 'are needed: free some')
    assert '104.9 MB' in message or '105 MB' in message
    assert not list((tmp_path / 'data').rglob('*.jpg'))


def test_a_disk_that_fills_up(published, tmp_path, monkeypatch):
    """What is written stays, and is gone on with."""
    run('voc', published / 'downloads', tmp_path / 'whole')
    left = 20_000

    class Full(io.FileIO):
        def write(self, content):
            nonlocal left
            left -= len(content)
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
            return super().write(content)

    def opened(path, mode):
        return Full(path, 'w') if mode == 'wb' else open(path, mode)

    monkeypatch.setattr(parts, 'open', opened, raising=False)
    with pytest.raises(DataError, match='the disk is full: free some'):
        run('voc', published / 'downloads', tmp_path / 'data')
    monkeypatch.undo()
    monkeypatch.setattr(os, 'sync', lambda: None)
    assert not (tmp_path / 'data/VOCdevkit/VOC2012').exists()
    assert list((tmp_path / 'data').rglob('*.jpg'))
    run('voc', published / 'downloads', tmp_path / 'data')
    assert tree(tmp_path / 'data') == tree(tmp_path / 'whole')


def test_no_permission(unprivileged):
    source = unprivileged / 'downloads'
    source.mkdir()
    official.tar(source / 'cifar-100-python.tar.gz', [('cifar-100-python/train', b'')], 'w:gz')
    target = unprivileged / 'data'
    target.mkdir(mode=0o500)
    with pytest.raises(DataError, match=f'^no permission for {target}'):
        run('cifar100', source, target)
    (source / 'cifar-100-python.tar.gz').chmod(0)
    with pytest.raises(DataError, match=f'^no permission for {source}/cifar-100-python.tar.gz'):
        run('cifar100', source, unprivileged / 'other')
    source.chmod(0)
    with pytest.raises(DataError, match=f'^no permission for {source}'):
        run('cifar100', source, unprivileged / 'other')


# interruptions


def in_a_child(function):
    """Runs a function in a process of its own; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.__stderr__)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step, function):
    """Calls a function that is killed as with `kill -9` at its n-th line of our code."""
    folder = os.path.dirname(package.__file__)
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(folder):
            return None
        lines += 1
        if lines == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    function()
    return lines


def count_lines(function):
    read, write = os.pipe()
    assert in_a_child(lambda: os.write(write, str(killed_at(-1, function)).encode())) == 0
    return int(os.read(read, 20))


def interrupted(name, published, tmp_path, times):
    run(name, published / 'downloads', tmp_path / 'whole')
    wanted = tree(tmp_path / 'whole')
    source = published / 'downloads'
    total = count_lines(lambda: run(name, source, tmp_path / 'counted'))
    chosen = random.Random(name).sample(range(1, total + 1), min(times, total))
    for step in sorted(chosen):
        root = tmp_path / f'killed-{step}'
        status = in_a_child(
            lambda step=step, root=root: killed_at(step, lambda: run(name, source, root))
        )
        assert status == -signal.SIGKILL
        for part in DATA_SETS[name].parts:
            if part.there(root):  # then it is whole
                whole = tree(tmp_path / 'whole' / part.target)
                lists = [path for path in whole if 'Aug/' in path or 'aug.txt' in path]
                needed = {path: whole[path] for path in whole if path not in lists}
                assert needed.items() <= tree(root / part.target).items(), step
        assert run(name, source, root)[0].right
        assert tree(root) == wanted, f'killed at line {step}'
        shutil.rmtree(root)


@pytest.mark.parametrize('name', DATA_SETS)
def test_killed_at_any_line(name, published, tmp_path):
    interrupted(name, published, tmp_path, times=8)


@pytest.mark.slow
@pytest.mark.parametrize('name', DATA_SETS)
def test_killed_at_a_hundred_lines(name, published, tmp_path):
    interrupted(name, published, tmp_path, times=100)


def test_a_part_takes_its_place_by_a_rename_alone(published, tmp_path, monkeypatch):
    rename, asked = os.rename, []

    def fail(number):
        def call(source, target):
            asked.append(target)
            if asked.count(target) == 1 and os.path.basename(target)[0] != '.':
                raise OSError(number, os.strerror(number), str(source))
            rename(source, target)

        return call

    monkeypatch.setattr(os, 'rename', fail(errno.EIO))
    refused('cifar100', published / 'downloads', tmp_path, os.strerror(errno.EIO))
    # A folder above is a link to another disk: the last step there is a rename as well.
    asked.clear()
    monkeypatch.setattr(os, 'rename', fail(errno.EXDEV))
    assert run('cifar100', published / 'downloads', tmp_path)[0].right
    assert asked == [tmp_path / TARGETS['cifar100']] * 2
    assert not list(tmp_path.rglob('.*'))


def test_zeros_after_a_power_cut(published, tmp_path):
    """Sizes are right and contents are not: files of an earlier start are compared."""
    source, root = published / 'downloads', tmp_path / 'data'
    run('voc', source, tmp_path / 'whole')
    stage = root / 'VOCdevkit/.VOC2012.partial/whole'
    shutil.copytree(tmp_path / 'whole/VOCdevkit/VOC2012', stage)
    for path in stage.rglob('*.jpg'):
        path.write_bytes(bytes(path.stat().st_size))
    run('voc', source, root)
    assert tree(root) == tree(tmp_path / 'whole')


def test_two_at_once(published, tmp_path):
    """The second is refused; flock ends with its process, whatever ends that."""
    stage = tmp_path / 'VOCdevkit/.VOC2012.partial'
    stage.mkdir(parents=True)
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import fcntl, os, sys, time\n'
            'fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n'
            'print("held", flush=True)\n'
            'time.sleep(60)',
            stage,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == 'held\n'
    refused('voc', published / 'downloads', tmp_path, f'another start is at work in {stage}')
    holder.kill()
    holder.wait()
    assert run('voc', published / 'downloads', tmp_path)[0].right
