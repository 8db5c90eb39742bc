"""Checkpoints of strangers: bytes of each kind, and what is to be said of them.

`CASES` maps a name to (function that makes the bytes, words of the error, or None if it loads);
`BY_CONTENTS` names those that are whole as long as nobody asks for their tensors.
"""

import gzip
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import torch

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ABOUT = dict(protocol_version=PROTOCOL, little_endian=True, type_sizes={})


def text(word):
    return b'X' + len(word.encode()).to_bytes(4, 'little') + word.encode()


def name(module, word):
    return f'c{module}\n{word}\n'.encode()


def number(value):
    return b'J' + value.to_bytes(4, 'little', signed=True)


def numbers(*values):
    return b'(' + b''.join(map(number, values)) + b't'


def program(*parts):
    """A pickle of protocol 2 that ends with a dict of the one value that the parts leave."""
    return b'\x80\x02}' + text('state_dict') + b''.join(parts) + b's.'


def archive(pickled, storages=(), **more):
    """torch.save's archive around a pickle; `more` are further members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as made:
        made.writestr('x/data.pkl', pickled)
        for key, data in enumerate(storages):
            made.writestr(f'x/data/{key}', data)
        for member, data in more.items():
            made.writestr(member.replace('__', '/'), data)
    return file.getvalue()


def storage(count, key='0', kind='FloatStorage'):
    return (
        b'('
        + text('storage')
        + name('torch', kind)
        + text(key)
        + text('cpu')
        + b'\x8a\x09'
        + count.to_bytes(9, 'little', signed=True)
        + b'tQ'
    )


def tensor(count, offset, size, stride, storages=(b'\0' * 16,)):
    parts = [name('torch._utils', '_rebuild_tensor_v2'), b'(', storage(count), number(offset)]
    parts += [size, stride, b'\x89', name('collections', 'OrderedDict'), b')RtR']
    return archive(program(*parts), storages)


def long(value):
    return b'\x8a\x09' + value.to_bytes(9, 'little', signed=True)


def saved(content, **options):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.save(content, file, **options)
    return file.getvalue()


def single(*contents):
    return b''.join(pickle.dumps(content, 2) for content in contents)


class Calls:
    """Is made by a call when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def overlapping(count=200):
    """Members in members: each holds all that follow, and with them the same megabyte."""
    bodies = [bytes(2**20)]
    for key in range(count - 1, 0, -1):
        bodies.append(_member(f'x/data/{key}', bodies[-1])[0] + bodies[-1])
    bodies.reverse()
    parts = [text('a'), b'}']
    for key, body in enumerate(bodies):
        parts += [text(str(key)), name('torch._utils', '_rebuild_tensor_v2'), b'(']
        parts += [storage(len(body), str(key), 'ByteStorage'), number(0), numbers(len(body))]
        parts += [numbers(1), b'\x89', name('collections', 'OrderedDict'), b')RtRs']
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as made:
        made.writestr('x/data.pkl', b'\x80\x02}' + b''.join(parts) + b's.')
        place = file.tell()
        header, _ = _member('x/data/0', bodies[0])
        file.write(header + bodies[0])
        made.start_dir = file.tell()
        for key, body in enumerate(bodies):
            header, info = _member(f'x/data/{key}', body)
            info.header_offset = place
            place += len(header)
            made.filelist.append(info)
            made.NameToInfo[info.filename] = info
    return file.getvalue()


def _member(name, body):
    info = zipfile.ZipInfo(name)
    info.CRC, info.file_size, info.compress_size = zlib.crc32(body), len(body), len(body)
    return info.FileHeader(), info


def compressed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as made:
        made.writestr('x/data.pkl', pickle.dumps(dict(a=bytes(10**8)), 4))
    return file.getvalue()


def twice():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with zipfile.ZipFile(file, 'w') as made:
            made.writestr('x/data.pkl', pickle.dumps({}))
            made.writestr('x/data.pkl', pickle.dumps(dict(a=1)))
    return file.getvalue()


def script():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    return file.getvalue()


def dtype_of_pointers():
    fields = {'a': (np.dtype('O'), 0)}

    class Array:
        def __reduce__(self):
            make, args, _ = np.zeros(1).__reduce__()
            return make, args, (1, (1,), Dtype(), False, b'A' * 8)

    class Dtype:
        def __reduce__(self):
            return np.dtype, ('V8', False, True), (3, '|', None, ('a',), fields, 8, 1, 0)

    return archive(pickle.dumps(dict(a=Array()), 2))


def many_names():
    return archive(
        b'\x80\x02(' + b''.join(name(f'module{n}', f'name{n}') for n in range(10**4)) + b't.'
    )


def memo_bomb():
    steps = [b']q' + bytes([n + 1]) + (b'h' + bytes([n]) + b'a') * 2 for n in range(60)]
    return archive(b'\x80\x02]q\x00' + b''.join(steps) + b'.')


def nested_key():
    """Python hashes a tuple of tuples by calling itself, without looking how deep it is."""
    return archive(b'\x80\x02})' + b'\x85' * 3 * 10**5 + b'K\x01s.')


def colliding_keys():
    """All of one hash: each is compared with all before."""
    items = [b'\x8a\x0b' + (n * (2**61 - 1)).to_bytes(11, 'little') + b'N' for n in range(1, 40000)]
    return archive(b'\x80\x02}(' + b''.join(items) + b'u.')


def arrays_never_kept():
    """Each is filled when thousands of others are remembered."""
    kept = b''.join(b'K\x01r' + struct.pack('<I', n) + b'0' for n in range(30000))
    one = name('numpy', 'dtype') + text('f8') + b'\x85R(K\x03' + text('<') + b'NNNJ\xff\xff\xff\xff'
    one += b'J\xff\xff\xff\xffK\x00tb0'
    return archive(b'\x80\x02' + kept + one * 1000 + b'}.')


def text_that_is_none():
    return archive(
        program(
            name('numpy.core.multiarray', '_reconstruct')
            + name('numpy', 'ndarray')
            + b'K\x00\x85C\x01b\x87R(K\x01K\x01\x85'
            + name('numpy', 'dtype')
            + text('U1')
            + b'\x85R\x89C\x04\xff\xff\xff\x7ftb'
        )
    )


HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81'
RUN = pickle.dumps(Calls(os.system, 'echo ran'), 2)

ORDERED = name('collections', 'OrderedDict')
MEMO = text('os') + b'q\x010' + text('x') + b'0h\x01' + text('system') + b'\x93'
DEEP = b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'

CASES = {
    # data all through, whatever it looks like
    'a pickle as bytes': (lambda: saved(dict(state_dict={}, more=RUN)), None),
    'complex': (lambda: saved(dict(a=torch.ones(2, dtype=torch.complex64))), None),
    'a view': (lambda: saved(dict(a=torch.arange(9.0)[2:8:3])), None),
    # storages and tensors
    'a persistent text': (lambda: archive(program(text('0') + b'Q')), 'no storage'),
    'an old persistent number': (lambda: archive(program(b'P0\n')), 'PERSID'),
    'too large a storage': (lambda: tensor(5, 0, numbers(4), numbers(1)), 'storage'),
    'far too large a storage': (lambda: tensor(2**60, 0, numbers(4), numbers(1)), 'storages of'),
    'too small a storage': (lambda: tensor(3, 0, numbers(3), numbers(1)), 'holds 16'),
    'a storage below zero': (lambda: tensor(-4, 0, numbers(4), numbers(1)), 'unknown form'),
    'no such storage': (lambda: tensor(4, 0, numbers(4), numbers(1), ()), 'data/0 is missing'),
    'a stride too wide': (lambda: tensor(4, 0, numbers(2, 2), numbers(3, 1)), 'larger than'),
    'a stride below zero': (lambda: tensor(4, 3, numbers(4), numbers(-1)), 'unknown form'),
    'an offset below zero': (lambda: tensor(4, -1, numbers(4), numbers(1)), 'unknown form'),
    'an offset too high': (lambda: tensor(4, 4, numbers(1), numbers(1)), 'larger than'),
    'one number a million million times': (
        lambda: tensor(4, 0, b'(' + long(2**40) + b't', numbers(0)),
        'larger than',
    ),
    'no numbers, a large shape': (
        lambda: tensor(4, 0, b'(K\x00' + long(2**62) + b't', b'(' + long(2**62) + b'K\x01t'),
        None,
    ),
    'a size that is no tuple': (lambda: tensor(4, 0, b']', b']'), 'without a storage'),
    'a sparse tensor': (lambda: saved(dict(a=torch.eye(2).to_sparse())), '_rebuild_sparse_tensor'),
    'a quantised tensor': (
        lambda: saved(dict(a=torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))),
        '_rebuild_qtensor',
    ),
    'a tensor on no device': (
        lambda: saved(dict(a=torch.ones(2, device='meta'))),
        '_rebuild_meta_tensor_no_storage',
    ),
    'a storage of its own pickle': (
        lambda: archive(pickle.dumps(dict(a=torch.ones(2).untyped_storage()), 2)),
        '_load_from_bytes',
    ),
    'a whole model': (lambda: saved(torch.nn.Linear(1, 1)), 'torch.nn.modules.linear.Linear'),
    # archives
    # By the bytes of its storages, or by Python 3.13's zipfile.
    'members over each other': (overlapping, 'no whole checkpoint: '),
    'a compressed member': (compressed, 'compressed'),
    'two members of a name': (twice, 'two members'),
    'two pickles': (
        lambda: archive(pickle.dumps({}), y__data_pkl=b'', **{'y/data.pkl': RUN}),
        'one data.pkl',
    ),
    'no pickle': (lambda: archive(b'').replace(b'data.pkl', b'date.pkl'), 'one data.pkl'),
    'a pickle that climbs': (
        lambda: archive(RUN).replace(b'x/data.pkl', b'../ata.pkl'),
        'one data',
    ),
    'another byte order': (lambda: archive(pickle.dumps({}), x__byteorder=b'big'), 'byte order'),
    'a program of TorchScript': (script, 'TorchScript'),
    'gzip': (lambda: gzip.compress(RUN), 'no whole'),
    'a bare pickle': (lambda: RUN, 'system'),
    # the single pickle
    'a call for the magic number': (lambda: single(Calls(os.system, 'echo ran')), 'system'),
    'a call for the keys': (
        lambda: single(MAGIC, PROTOCOL, ABOUT, {}, Calls(os.system, 'echo ran')),
        'system',
    ),
    'keys that are no list': (lambda: single(MAGIC, PROTOCOL, ABOUT, {}, 5), 'no list'),
    'a key that nobody uses': (lambda: single(MAGIC, PROTOCOL, ABOUT, {}, ['0']), 'nobody uses'),
    'another version': (lambda: single(MAGIC, 7), 'unknown version'),
    # opcodes
    'EXT1': (lambda: archive(program(b'\x82\x01')), 'EXT1'),
    'INST': (lambda: archive(program(b'(' + text('echo ran') + b'ios\nsystem\n')), 'os.system'),
    'OBJ': (lambda: archive(program(b'(' + name('os', 'system') + text('x') + b'o')), 'os.system'),
    'OBJ of data': (lambda: archive(program(b'(' + name('torch', 'Size') + b')o')), 'OBJ'),
    'NEWOBJ_EX': (lambda: archive(program(name('torch', 'Size') + b')}\x92')), 'NEWOBJ_EX'),
    'DUP': (lambda: archive(program(b']2a')), 'DUP'),
    'out of band': (lambda: archive(program(b'\x97')), 'NEXT_BUFFER'),
    'STACK_GLOBAL of numbers': (lambda: archive(program(b'K\x01K\x02\x93')), 'no text'),
    'STACK_GLOBAL behind a list': (
        lambda: archive(program(text('os') + text('system') + b']0\x93')),
        'system',
    ),
    'STACK_GLOBAL from the memo': (
        lambda: archive(
            program(text('os') + b'q\x010' + text('x') + b'0h\x01' + text('system') + b'\x93')
        ),
        'os.system',
    ),
    'an attribute of a function': (
        lambda: archive(
            program(name('builtins', 'getattr') + name('torch.nn', 'x')[:0]).replace(b's.', b'')
            + name('collections', 'OrderedDict')
            + text('__init__')
            + b'\x86Rs.'
        ),
        'OrderedDict.__init__',
    ),
    'a dict with attributes': (
        lambda: archive(program(ORDERED + b')R}' + text('items') + b'Nsb')),
        'attributes',
    ),
    'a dict with slots': (
        lambda: archive(program(ORDERED + b')RN}\x86b')),
        'attributes',
    ),
    'contents of a list': (lambda: archive(program(b']}b')), 'contents'),
    'a call of a dtype': (
        lambda: archive(program(name('torch', 'float32') + b')R')),
        'no function',
    ),
    'a Counter of a file': (
        lambda: archive(program(name('collections', 'Counter') + text('abc') + b'\x85R')),
        'no dict',
    ),
    'a history of its own methods': (
        lambda: archive(program(HISTORY + b'}' + text('_set_default_statistics') + b'Nsb')),
        'no whole',
    ),
    'a text of an exabyte': (
        lambda: archive(program(b'\x8d' + b'\xff' * 7 + b'\x0fa')),
        'no whole',
    ),
    'bytes of 2 GB': (lambda: archive(program(b'B\xff\xff\xff\x7fa')), 'no whole'),
    'a number of ten million digits': (
        lambda: archive(program(b'L' + b'9' * 10**7 + b'L\n')),
        'no whole',
    ),
    'a frame that lies': (lambda: archive(b'\x80\x04\x95' + b'\xff' * 8 + b'}.'), None),
    # what keeps a reader busy
    'millions of opcodes': (lambda: archive(b'\x80\x02' + b'N0' * 1000001 + b'}.'), 'opcodes'),
    'a memo that doubles': (memo_bomb, 'items'),
    'a hundred thousand levels': (
        lambda: archive(DEEP),
        'levels',
    ),
    'a key of many levels': (nested_key, 'holds too much'),
    'keys of one hash': (colliding_keys, '60 bits'),
    'arrays that nobody keeps': (arrays_never_kept, None),
    'a list that holds itself': (lambda: archive(b'\x80\x02]q\x00h\x00a.'), 'holds itself'),
    # NumPy's
    'an array of pointers': (dtype_of_pointers, 'numbers and text'),
    'an array of objects': (lambda: saved(dict(a=np.array([None]))), 'numbers and text'),
    'characters that there are not': (text_that_is_none, 'characters'),
    # what is printed
    'a name that a terminal obeys': (
        lambda: archive(program(name('\x1b[2J\x1b]0;owned\x07', 'x'))),
        'wants to use',
    ),
    'ten thousand names': (many_names, 'and 9995 more'),
}

BY_CONTENTS = {'too large a storage', 'too small a storage', 'no such storage'}
BY_CONTENTS |= {'keys that are no list', 'a key that nobody uses'}
