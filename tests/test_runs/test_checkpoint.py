"""Checkpoints are read as they were saved, as data, in each format; what is not whole is told."""

import hashlib
import io
import json
import pickle
import runpy
import subprocess
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim.scheduler import MultiStepLR, OneCycleLR
from mmengine.runner import load_checkpoint
from mmengine.utils import digit_version

from mmattn import pickles
from mmattn.runs import checkpoint
from mmattn.runs.checkpoint import formats, sources

ROOT = Path(__file__).parents[2]


def message_hub():
    hub = MessageHub('whatever')
    for value in (2.0, 1.0, 0.5):
        hub.update_scalar('train/loss', value)
    hub.update_info('iter', 3)
    hub.update_info('score', np.float32(0.5))
    return hub.state_dict()


# PyTorch has them longer than it can save them.
NEW_DTYPES = [torch.ones(3, dtype=torch.uint16), torch.ones(3).to(torch.float8_e4m3fn)]
if digit_version(torch.__version__) < digit_version('2.6.0'):
    NEW_DTYPES = []


def whole():
    """All that mmengine saves, and each kind of tensor that PyTorch can."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    schedulers = [MultiStepLR(optimizer, [1, 2]), OneCycleLR(optimizer, 0.1, total_steps=9)]
    x = torch.arange(10.0)
    classes = dict(
        classes=('cat', 'dög'),
        palette=np.arange(6, dtype=np.uint8).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        names=np.array(['a', 'bc']),
        none=np.zeros((0, 3)),
    )
    return dict(
        meta=dict(epoch=1, iter=3, seed=5, cfg='a = 1\n', dataset_meta=classes),
        state_dict=model.state_dict(),
        message_hub=message_hub(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[scheduler.state_dict() for scheduler in schedulers],
        dtypes=[torch.ones(3, dtype=dtype) for dtype in set(pickles.makers.STORAGES.values())],
        new_dtypes=NEW_DTYPES,
        views=(x[2:4], x.reshape(2, 5).t(), x[:0], x[3], x[:1].expand(4)),
        parameter=torch.nn.Parameter(torch.ones(2)),
        plain=[{1, 2}, Counter('aab'), b'\xff', x.shape, torch.float16, None, 2**70, 1e-300, -1],
    )


def same(one, other):
    """Whether two are equal, and of the same types all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = (one.dtype, one.shape, one.stride(), one.requires_grad) == (
            (other.dtype, other.shape, other.stride(), other.requires_grad)
        )
        one, other = one.detach(), other.detach()
        if not one.is_complex():
            one, other = one.double(), other.double()
        return alike and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    if isinstance(one, HistoryBuffer):
        return same(one.data, other.data) and one.max_length == other.max_length
    return one == other


FORMS = (
    dict(),
    dict(_use_new_zipfile_serialization=False),
    dict(pickle_protocol=4),
    dict(pickle_protocol=4, _use_new_zipfile_serialization=False),
)


@pytest.mark.parametrize('form', FORMS, ids=['zip', 'single', 'zip 4', 'single 4'])
def test_as_it_was_saved(tmp_path, form):
    saved = whole()
    torch.save(saved, tmp_path / 'x.pth', **form)
    loaded = checkpoint.load(tmp_path / 'x.pth')
    assert same(saved, loaded)
    assert same(saved['state_dict']._metadata, loaded['state_dict']._metadata)
    # views of one memory stay so, and nothing is read-only
    assert loaded['views'][0].data_ptr() == loaded['views'][3].data_ptr() - 4
    loaded['views'][1].fill_(7)
    assert loaded['views'][0].tolist() == [7, 7]
    loaded['meta']['dataset_meta']['palette'][0] = 9
    loaded['message_hub']['log_scalars']['train/loss'].update(4.0)
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 1.875
    assert same(checkpoint.load_meta(tmp_path / 'x.pth'), saved['meta'])


def test_as_pytorch_reads_it(tmp_path):
    """The same file, read by what may run code."""
    torch.save(whole(), tmp_path / 'x.pth')
    assert same(
        torch.load(tmp_path / 'x.pth', weights_only=False), checkpoint.load(tmp_path / 'x.pth')
    )


def test_arrays_of_numpy_1_and_2():
    for value in (np.arange(3.0), np.float64(2)):
        data = pickle.dumps(value, 2)
        both = [data.replace(b'numpy._core', b'numpy.core')]
        both.append(both[0].replace(b'numpy.core', b'numpy._core'))
        assert both[0] != both[1] and data in both
        for form in both:
            assert same(pickles.load(io.BytesIO(form)), value)


def test_where_tensors_are_put(tmp_path):
    torch.save(dict(a=torch.ones(2)), tmp_path / 'x.pth')
    for place in ('cpu', None, torch.device('cpu'), {'cpu': 'cpu'}, lambda storage, where: storage):
        assert checkpoint.load(tmp_path / 'x.pth', map_location=place)['a'].device.type == 'cpu'
    assert checkpoint.load(tmp_path / 'x.pth', map_location='meta')['a'].device.type == 'meta'


@pytest.mark.parametrize(
    'value, name',
    [
        (subprocess.Popen, 'subprocess.Popen'),
        (eval, 'builtins.eval'),
        (Path('x'), 'pathlib'),
        (np.array([object]), 'builtins.object'),
        (torch.nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
        (slice(1), 'builtins.slice'),
        (io.BytesIO(), '_io.BytesIO'),
    ],
)
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_is_not_data_is_refused_by_name(tmp_path, value, name, protocol):
    path = tmp_path / 'x.pth'
    for content in (dict(meta=dict(a=value), state_dict={}), value):
        torch.save(content, path, pickle_protocol=protocol)
        with pytest.raises(checkpoint.Unsafe, match='--trust-checkpoint') as error:
            checkpoint.load(path)
        assert name in str(error.value) and str(path) in str(error.value)
        assert '\n' not in str(error.value)


def opcodes(text):
    """A pickle of protocol 2, in the words of pickletools: `c a b` is a GLOBAL."""
    parts = [b'\x80\x02']
    for line in text.split('\n'):
        kind, _, rest = line.strip().partition(' ')
        if kind == 'c':
            parts.append(b'c' + rest.replace(' ', '\n').encode() + b'\n')
        elif kind == 'X':
            parts.append(b'X' + len(rest).to_bytes(4, 'little') + rest.encode())
        elif kind == 'K':
            parts.append(b'K' + bytes([int(rest)]))
        else:
            parts.append(kind.encode('latin1'))
    return b''.join([*parts, b'.'])


@pytest.mark.parametrize(
    'text',
    [
        # getattr(HistoryBuffer, '__init__'), getattr(getattr, '__self__') with OneDL's list
        'c mmengine.logging.history_buffer HistoryBuffer\nX __init__\n\x86\nR'.replace(
            'c mm', 'c builtins getattr\nc mm'
        ),
        'c builtins getattr\nc builtins getattr\nX __self__\n\x86\nR',
        'c __builtin__ getattr\nX a\nX upper\n\x86\nR',
        # a codec that is a program
        'c _codecs encode\nX a\nX rot13\n\x86\nR',
        # records of objects, an array whose dtype lies about what it holds
        'c numpy dtype\nX O\n\x85\nR',
        'c numpy dtype\nX V8\n\x85\nR',
        'c numpy.core.multiarray _reconstruct\nc numpy dtype\nK 0\n\x85\nX b\n\x87\nR',
        'c numpy dtype\nX f8\n\x85\nR\n(\nK 3\nX <\nX O\nN\nN\nK 8\nK 8\nK 0\nt\nb',
        # calls of what is only an argument, of a text, contents and items for what has none
        'c torch FloatStorage\n)\nR',
        'X a\n)\nR',
        'c numpy dtype\n}\nb',
        'c collections OrderedDict\n)\nR\n}\nX clear\nK 1\ns\nb',
        'c collections OrderedDict\nX a\nK 1\ns',
        'X a\nK 1\na',
        # a history with attributes and methods that a method call would meet
        'c mmengine.logging.history_buffer HistoryBuffer\n)\n\x81\n}\nX mean\nX x\ns\nb',
        'c mmengine.optim.scheduler.param_scheduler OneCycleParamScheduler\n)\nR',
        # unfinished, and a list that holds itself
        'c mmengine.logging.history_buffer HistoryBuffer\n)\n\x81',
        ']\nq\x00\nh\x00\na',
    ],
)
def test_what_is_allowed_does_no_more_than_it_should(text):
    for wrapped in (opcodes(text), opcodes('}\nX a\n' + text + '\ns')):
        with pytest.raises((pickles.PickleError, pickles.UnknownNames)):
            pickles.load(io.BytesIO(wrapped))


def test_a_tensor_stays_in_its_memory(tmp_path):
    """What torch's own reader did not check before 2.10: sizes larger than what is there."""
    path = tmp_path / 'x.pth'
    for pattern, other in ((b'K\x05\x85', b'K\x63\x85'), (b'cpuq\x06K\x05', b'cpuq\x06K\x63')):
        torch.save(dict(a=torch.ones(5)), path)
        members = {}
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, 'w') as archive:
            for name, data in members.items():
                if name.endswith('data.pkl'):
                    assert data.count(pattern) == 1
                    data = data.replace(pattern, other)
                archive.writestr(name, data)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)


def test_nothing_takes_for_ever():
    # 2**60 items in a kilobyte
    bomb = (
        b'\x80\x02]'
        + b'q\x00'
        + b''.join(
            b']q' + bytes([n + 1]) + b'h' + bytes([n]) + b'ah' + bytes([n]) + b'a'
            for n in range(60)
        )
    )
    for data in (bomb + b'.', b'\x80\x02' + b']' * 500 + b'a' * 499 + b'.'):
        with pytest.raises(pickles.PickleError, match='items|levels'):
            pickles.load(io.BytesIO(data))
    big = b'\x80\x02X\xff\xff\xff\x7fabc.'
    with pytest.raises(pickles.PickleError, match='no whole pickle'):
        pickles.load(io.BytesIO(big))


@pytest.mark.parametrize('form', FORMS[:2], ids=['zip', 'single'])
def test_cut_off_anywhere(tmp_path, form):
    torch.save(
        dict(meta={}, state_dict=dict(a=torch.ones(50), b=torch.ones(3))), tmp_path / 'x', **form
    )
    data = (tmp_path / 'x').read_bytes()
    path = tmp_path / 'cut.pth'
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(checkpoint.Damaged, match='no whole checkpoint'):
            checkpoint.load(path)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'', 'no whole checkpoint'),
        (b'<html>404</html>', 'no whole checkpoint'),
        (b'PK\x03\x04', 'no whole checkpoint'),
        (b'\x89HDF\r\n', 'no whole checkpoint'),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, words):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(checkpoint.Damaged, match=words):
        checkpoint.load(tmp_path / 'x.pth')
    torch.save([1], tmp_path / 'x.pth')
    with pytest.raises(checkpoint.Damaged, match='no dict'):
        checkpoint.load(tmp_path / 'x.pth')
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / 'gone.pth')


def single(*contents):
    return b''.join(pickle.dumps(content, 2) for content in contents)


def test_what_fuzzing_found(tmp_path):
    """Bytes for which Python's own readers have other words than that it is damaged."""
    torch.save(dict(a=torch.ones(50)), tmp_path / 'x')
    data = (tmp_path / 'x').read_bytes()
    name = data.rindex(b'x/data.pkl')
    for content in (
        data[:99] + data[100:],  # members before the file's begin
        data[:name] + b'\xf6' + data[name + 1 :],  # a name that is no text
        single(formats.MAGIC, formats.PROTOCOL, 1),
        b'\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab',  # a text of 2**63 bytes
    ):
        (tmp_path / 'x.pth').write_bytes(content)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(tmp_path / 'x.pth')


def test_a_flipped_bit_is_seen(tmp_path):
    """torch.load reads on."""
    path = tmp_path / 'x.pth'
    torch.save(dict(a=torch.full((100,), 3.0)), path)
    data = bytearray(path.read_bytes())
    data[data.index(b'\x00\x00\x40\x40' * 10) + 8] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(checkpoint.Damaged, match='CRC'):
        checkpoint.load(path)


def test_programs_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'x.pth')
    with pytest.raises(checkpoint.Unsafe, match='TorchScript'):
        checkpoint.load(tmp_path / 'x.pth')


# -------------------------------------------------------------------------------------- hashes


def test_published_names(tmp_path):
    torch.save(dict(a=torch.ones(2)), tmp_path / 'x.pth')
    digits = hashlib.sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()
    for name in (f'r50_20210831-{digits[:8]}.pth', f'r50-{digits}.pth', 'r50-20240131.pth'):
        (tmp_path / 'x.pth').rename(tmp_path / name)
        assert 'a' in checkpoint.load(tmp_path / name)
        (tmp_path / name).rename(tmp_path / 'x.pth')
    (tmp_path / 'x.pth').rename(tmp_path / 'r50-0676ba61.pth')
    for trust in (False, True):
        with pytest.raises(checkpoint.WrongHash, match='0676ba61'):
            checkpoint.load(tmp_path / 'r50-0676ba61.pth', trust=trust)


def test_a_hash_beside_and_one_that_is_given(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(a=torch.ones(2)), path)
    digits = checkpoint.sha256_of(path)
    beside = tmp_path / 'x.pth.sha256'
    for text in (digits, f'{digits}  x.pth\n', digits.upper()):
        beside.write_text(text)
        assert 'a' in checkpoint.load(path, sha256=digits[:10])
    beside.unlink()
    with pytest.raises(checkpoint.WrongHash):
        checkpoint.load(path, sha256='0' * 64)
    beside.write_text('0' * 64)
    with pytest.raises(checkpoint.WrongHash):
        checkpoint.load(path)
    beside.write_text('?')
    with pytest.raises(checkpoint.WrongHash, match='no SHA-256'):
        checkpoint.load(path)


# ---------------------------------------------------------------------------------- mmengine's


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Downloads come from the folder that is returned; the cache is the test's own."""
    folder = tmp_path / 'net'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    checkpoint.install(trust=False)
    return folder


@pytest.mark.parametrize('scheme', ['torchvision://', 'open-mmlab://', 'mmcls://', 'https://'])
def test_weights_by_name(downloads, tmp_path, monkeypatch, scheme):
    """Each of mmengine's ways to name weights comes to `load`, and checks the name's hash."""
    theirs = sources.theirs
    linear = torch.nn.Linear(1, 1)
    prefix = 'backbone.' if scheme == 'mmcls://' else ''
    weights = {
        prefix + key: torch.full_like(value, 7) for key, value in linear.state_dict().items()
    }
    torch.save(weights, tmp_path / 'x')
    digits = checkpoint.sha256_of(tmp_path / 'x')[:8]
    fetched = []

    def fetch(url, target, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        Path(target).write_bytes((tmp_path / 'x').read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    url = f'https://example.org/some/x-{digits}.pth'
    for finder in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(theirs, finder, lambda: dict(x=url))
    name = url if scheme == 'https://' else f'{scheme}x'
    for _ in range(2):
        load_checkpoint(linear, name, strict=True)
        assert linear.weight.item() == 7
        linear.weight.data.zero_()
    assert fetched == [(url, digits)]
    torch.save(dict(weights, more=eval), tmp_path / 'home' / 'hub' / 'checkpoints' / 'evil.pth')
    url = 'https://example.org/evil.pth'
    with pytest.raises(checkpoint.Unsafe, match='eval'):
        load_checkpoint(linear, url if scheme == 'https://' else f'{scheme}x')


def test_other_stores(downloads, tmp_path, monkeypatch):
    torch.save(dict(a=eval), tmp_path / 'x.pth')

    class Store:
        @staticmethod
        def get(name):
            return (tmp_path / 'x.pth').read_bytes()

    monkeypatch.setattr(sources, 'get_file_backend', lambda name: Store)
    for name in ('s3://bucket/x.pth', 'petrel://x.pth', 'pavi://x.pth'):
        with pytest.raises(checkpoint.Unsafe, match='eval'):
            load_checkpoint(torch.nn.Linear(1, 1), name)
    torch.save(dict(weight=torch.ones(1, 1), bias=torch.ones(1)), tmp_path / 'x.pth')
    load_checkpoint(torch.nn.Linear(1, 1), 's3://bucket/x.pth', strict=True)


def test_every_scheme_is_ours(downloads):
    """A reader that mmengine adds one day is noticed."""
    schemes = mmengine.runner.CheckpointLoader._schemes
    ours = {scheme for scheme, reader in schemes.items() if reader.__module__.startswith('mmattn.')}
    by_address = {'torchvision://', 'modelzoo://', 'mmcls://'}
    assert set(schemes) == ours | by_address


# ---------------------------------------------------------------------------------- converting


def test_to_safetensors_and_back(tmp_path):
    pytest.importorskip('safetensors')
    saved = whole()
    saved['state_dict']['shared'] = saved['state_dict']['0.weight'].transpose(0, 1)
    torch.save(saved, tmp_path / 'x.pth')
    there = checkpoint.convert(tmp_path / 'x.pth', tmp_path / 'x.safetensors', publish=True)
    assert there.name == f'x-{checkpoint.sha256_of(there)[:8]}.safetensors'
    back = checkpoint.convert(there, tmp_path / 'y.pth')
    for path in (there, back):
        loaded = checkpoint.load(path)
        assert set(loaded['state_dict']) == set(saved['state_dict'])
        for key, value in loaded['state_dict'].items():
            assert torch.equal(value, saved['state_dict'][key]), key
        assert loaded['meta']['dataset_meta']['classes'] == ['cat', 'dög']
        assert loaded['meta']['epoch'] == checkpoint.load_meta(path)['epoch'] == 1
    load_checkpoint(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), str(there))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ['x.pth', 'y.pth', there.name]
    )


def test_bare_weights_convert(tmp_path):
    pytest.importorskip('safetensors')
    torch.save(OrderedDict(a=torch.ones(2)), tmp_path / 'x.pth')
    checkpoint.convert(tmp_path / 'x.pth', tmp_path / 'x.safetensors')
    assert checkpoint.load(tmp_path / 'x.safetensors')['state_dict']['a'].tolist() == [1, 1]


def test_damaged_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'x.safetensors'
    safetensors.save_file(dict(a=torch.ones(9)), path, dict(mmattn=json.dumps([1])))
    with pytest.raises(checkpoint.Damaged, match='meta'):
        checkpoint.load(path)
    data = path.read_bytes()
    for length in (0, 7, 8, 30, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(checkpoint.Damaged, match='safetensors'):
            checkpoint.load(path)


def test_the_tool(tmp_path, capsys):
    pytest.importorskip('safetensors')
    main = runpy.run_path(str(ROOT / 'tools' / 'convert_checkpoint.py'))['main']
    torch.save(dict(a=torch.ones(1)), tmp_path / 'x.pth')
    main([str(tmp_path / 'x.pth'), str(tmp_path / 'x.safetensors')])
    assert checkpoint.sha256_of(tmp_path / 'x.safetensors') in capsys.readouterr().out
    torch.save(dict(a=eval), tmp_path / 'x.pth')
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / 'x.pth'), str(tmp_path / 'y.safetensors')])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith('error: ') and 'builtins.eval' in said
    assert said.count('\n') == 1
    assert not (tmp_path / 'y.safetensors').exists()


@pytest.mark.parametrize(
    'source, target, words',
    [
        ('x.pth', 'y.pth', 'only one'),
        ('x.pth', 'old.safetensors', 'exists'),
        ('text.pth', 'y.safetensors', 'no weights'),
    ],
)
def test_what_is_not_converted(tmp_path, source, target, words):
    torch.save(dict(a=torch.ones(1)), tmp_path / 'x.pth')
    torch.save(dict(state_dict=dict(a='b')), tmp_path / 'text.pth')
    (tmp_path / 'old.safetensors').write_text('mine')
    with pytest.raises((checkpoint.CheckpointError, FileExistsError), match=words):
        checkpoint.convert(tmp_path / source, tmp_path / target)
    assert (tmp_path / 'old.safetensors').read_text() == 'mine'
