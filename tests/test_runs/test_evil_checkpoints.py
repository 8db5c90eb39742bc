"""Strangers' checkpoints of many kinds: data, or one line; no code, no hang, no crash."""

import json
import os
import struct
import tracemalloc

import pytest
import torch
from evil_checkpoints import BY_CONTENTS, CASES, archive, overlapping, saved

from mmattn.runs import checkpoint


@pytest.mark.parametrize('case', CASES)
def test_one_line_or_data(tmp_path, capfd, case):
    make, words = CASES[case]
    path = tmp_path / 'x.pth'
    path.write_bytes(make())
    for read in (checkpoint.load, checkpoint.load_meta):
        if words is None or (read is checkpoint.load_meta and case in BY_CONTENTS):
            assert isinstance(read(path), dict)
        else:
            with pytest.raises(checkpoint.CheckpointError) as error:
                read(path)
            said = str(error.value)
            assert words in said and str(path) in said
            assert said.isprintable() and len(said) < 1000
    assert 'ran' not in capfd.readouterr().out
    assert os.listdir(tmp_path) == ['x.pth']


def test_they_load_right(tmp_path):
    for content in (torch.ones(2, dtype=torch.complex64), torch.arange(9.0)[2:8:3]):
        (tmp_path / 'x.pth').write_bytes(saved(dict(a=content)))
        assert torch.equal(checkpoint.load(tmp_path / 'x.pth')['a'], content)


def test_no_more_memory_than_there_is_file(tmp_path):
    """Two hundred megabytes of tensors in a file of one."""
    path = tmp_path / 'x.pth'
    path.write_bytes(overlapping())
    tracemalloc.start()
    try:
        with pytest.raises(checkpoint.Damaged):
            checkpoint.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * path.stat().st_size
    finally:
        tracemalloc.stop()


def safetensors_file(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


ONE = dict(dtype='F32', shape=[2], data_offsets=[0, 8])


@pytest.mark.parametrize(
    'content',
    [
        struct.pack('<Q', 2**63) + b'{}',
        struct.pack('<Q', 2**40) + b'{}',
        safetensors_file(b'{"a": ' * 10**5),
        safetensors_file(b'[]'),
        safetensors_file(dict(a=dict(ONE, shape=[2**40, 2**40])), bytes(8)),
        safetensors_file(dict(a=dict(ONE, shape=[-2])), bytes(8)),
        safetensors_file(dict(a=dict(ONE, data_offsets=[0, 80])), bytes(8)),
        safetensors_file(dict(a=ONE, b=ONE), bytes(8)),
        safetensors_file(dict(a=dict(ONE, data_offsets=[8, 0])), bytes(8)),
        safetensors_file(dict(a=dict(ONE, dtype='PICKLE')), bytes(8)),
        safetensors_file(dict(a=ONE, __metadata__=dict(mmattn='[' * 10**5)), bytes(8)),
        safetensors_file(dict(a=ONE, __metadata__=dict(mmattn='[1]')), bytes(8)),
    ],
    ids=range(12),
)
def test_safetensors(tmp_path, content):
    pytest.importorskip('safetensors')
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(checkpoint.Damaged) as error:
        checkpoint.load(path)
    assert str(error.value).isprintable()


def test_who_trusts_a_damaged_one_gets_a_line(tmp_path):
    path = tmp_path / 'x.pth'
    for content in (b'', b'PK\x03\x04', archive(b'\x80\x02]2a.'), saved([1])):
        path.write_bytes(content)
        with pytest.raises(checkpoint.Damaged) as error:
            checkpoint.load(path, trust=True)
        assert str(error.value).isprintable()
