"""Whatever is read from outside, at random: an answer or an error in words, and no code is run."""

import codecs
import copy
import io
import pickletools
import sys
import zipfile

import pytest
import torch
import yaml
from fuzzing import CHANGES, cases, changed, places, put
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmattn import pickles
from mmattn.hosts.slots import Slots
from mmattn.papers import config_root, tables
from mmattn.runs import checkpoint, plain_config

POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3', 'after_stem')

# What reading data has no use for, by the names of Python's own audit events.
CODE = (
    'exec',
    'compile',
    'import',
    'subprocess',
    'os.',
    'shutil',
    'socket',
    'ctypes',
    'pickle.find',
)
# Text is decoded by modules, of Python's own, that are imported when they are first needed.
for codec in ('cp437', 'raw_unicode_escape', 'unicode_escape', 'utf-8', 'ascii', 'latin1'):
    codecs.lookup(codec)
watched = []
watching = False


def audit(event, args):
    if watching and event.startswith(CODE):
        watched.append((event, args))


sys.addaudithook(audit)


def attempt(read, *expected):
    """Calls `read`: no error but the expected ones, in one line, and no code run."""
    global watching
    watched.clear()
    watching = True
    try:
        return read()
    except expected as error:
        assert '\n' not in str(error)
        return None
    finally:
        watching = False
        assert not watched


# --------------------------------------------------------------------------------- checkpoints

NAMES = [*pickles.MAKERS, 'os.system', 'builtins.exec', 'builtins.getattr', 'torch.load']
TEXTS = ('storage', 'cpu', '0', 'f8', 'O', '<', 'min', '_metadata', 'latin1', 'statistics_methods')


def token(opcode):
    """The bytes of an opcode with an argument at random."""
    code = opcode.code.encode('latin1')
    kind = opcode.arg.name if opcode.arg else None
    if kind is None:
        return st.just(code)
    if opcode.name in ('GLOBAL', 'INST'):
        return st.sampled_from(NAMES).map(
            lambda name: (
                code + name.replace('.', '\n', name.count('.')).encode() + b'\n'
                if name.count('.') == 1
                else code + '\n'.join(name.rsplit('.', 1)).encode() + b'\n'
            )
        )
    if kind == 'unicodestring4':
        return st.sampled_from(TEXTS).map(
            lambda text: code + len(text).to_bytes(4, 'little') + text.encode()
        )
    return st.one_of(
        st.integers(0, 9).map(lambda number: code + bytes([number])),
        st.binary(max_size=9).map(lambda data: code + data),
    )


TOKENS = st.one_of([token(opcode) for opcode in pickletools.opcodes if opcode.name != 'STOP'])
# A few whole things, so that chance gets further.
PARTS = st.sampled_from(
    [
        b'cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R',
        b'(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb',
        b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ',
        b'ctorch._utils\n_rebuild_tensor_v2\n',
        b'K\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81',
        b'c__builtin__\ngetattr\n',
    ]
)


@cases(400)
@given(st.lists(st.one_of(TOKENS, PARTS), max_size=40), st.booleans())
def test_pickles(parts, storages):
    data = b'\x80\x02' + b''.join(parts) + b'.'
    memory = pickles.Storage(torch.zeros(4).untyped_storage(), torch.float32)
    attempt(
        lambda: pickles.load(io.BytesIO(data), (lambda _: memory) if storages else None),
        pickles.PickleError,
        pickles.UnknownNames,
    )


def saved():
    """A small checkpoint in each form, as bytes; of the archive also its pickle alone."""
    content = dict(
        meta=dict(epoch=1, classes=('a', 'b')),
        state_dict=nn.BatchNorm2d(2).state_dict(),
        views=(torch.arange(6.0)[2:], torch.ones(2, 3).t()),
    )
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        yield file.getvalue()


ZIP, SINGLE = saved()


def rezipped(data, changes):
    """The archive with its pickle changed and whole check sums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, 'w') as new:
        for name in old.namelist():
            inside = old.read(name)
            new.writestr(name, changed(inside, changes) if name.endswith('.pkl') else inside)
    return file.getvalue()


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz') / 'x.pth'


@cases(250)
@given(st.sampled_from(('zip', 'pickle', 'single', 'safetensors')), CHANGES)
def test_checkpoints(path, form, changes):
    name = path
    if form == 'safetensors':
        safetensors = pytest.importorskip('safetensors.torch')
        data = safetensors.save(dict(a=torch.ones(3), b=torch.zeros(2, 2)), dict(mmattn='{"a": 1}'))
        name = path.with_suffix('.safetensors')
        data = changed(data, changes)
    elif form == 'pickle':
        data = rezipped(ZIP, changes)
    else:
        data = changed(ZIP if form == 'zip' else SINGLE, changes)
    name.write_bytes(data)
    loaded = attempt(lambda: checkpoint.load(name), checkpoint.CheckpointError)
    assert loaded is None or isinstance(loaded, dict)
    attempt(lambda: checkpoint.load_meta(name), checkpoint.CheckpointError)


# ------------------------------------------------------------------------------ configs, plugins

ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 40),
        st.floats(-4, 40) | st.just(float('nan')),
        st.sampled_from(('', 'CAT', 'after_conv2', 'mmdet.ResNet', 'os.system', '..', '\0', 'é')),
        st.binary(max_size=3),
        st.just(nn.Conv2d),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.sampled_from(('type', 'cfg', 'stages', 'a', 1)), inner, max_size=3),
    ),
    max_leaves=6,
)
GATES = {
    'SE': ('reduction', 'bias'),
    'ECA': ('kernel_size',),
    'CBAM': ('reduction', 'kernel_size', 'norm'),
    'CoordAttention': ('reduction',),
    'CAT': ('reduction', 'arrangement', 'formula', 'pools', 'gaussian_size', 'interior', 'impl'),
    'DRTAM': ('reduction', 'num_chunks', 'num_channel_chunks', 'dual'),
}


@st.composite
def plugin(draw):
    """An entry that is right but for what chance changes."""
    gate = draw(st.sampled_from(sorted(GATES)))
    entry = dict(cfg=dict(type=gate), position=draw(st.sampled_from(POSITIONS)))
    for name in draw(st.lists(st.sampled_from(GATES[gate]), max_size=2)):
        entry['cfg'][name] = draw(ODD)
    if draw(st.booleans()):
        entry['stages'] = draw(st.one_of(STAGES, st.tuples(*[st.booleans()] * 4)))
    for key in draw(st.lists(st.sampled_from(('cfg', 'position', 'stages', 'typ', 3)), max_size=1)):
        entry[key] = draw(ODD)
    for key in draw(st.lists(st.sampled_from(('type', 'postfix', 'in_channels')), max_size=1)):
        if isinstance(entry['cfg'], dict):
            entry['cfg'][key] = draw(ODD)
    return entry


STAGES = st.one_of(
    st.lists(st.one_of(st.booleans(), st.integers(-1, 2), st.none(), ODD), max_size=6),
    st.lists(st.booleans(), max_size=6).map(tuple),
    st.text('TF01', max_size=4),
    ODD,
)


def build(entries):
    for item in Slots(entries, 'PluginResNet', POSITIONS, 4).plugins:
        item.add_to(nn.Sequential(), 8)


@cases(250)
@given(st.one_of(st.lists(st.one_of(plugin(), ODD), max_size=2), plugin(), ODD))
def test_plugins(entries):
    before = copy.deepcopy(entries)
    try:
        build(entries)
    except ValueError as error:
        assert str(error)
    assert repr(before) == repr(entries)


@cases(250)
@given(STAGES, st.sampled_from(POSITIONS))
def test_stages(stages, position):
    entry = dict(cfg=dict(type='SE'), position=position, stages=stages)
    try:
        slots = Slots([entry], 'PluginResNet', POSITIONS, 4)
    except ValueError as error:
        assert 'allowed' in str(error)
    else:
        assert slots.plugins[0].stages is None or len(slots.plugins[0].stages) == 4


SAMPLE = yaml.safe_load((config_root() / 'drtam' / 'paper_tables.yml').read_text(encoding='utf-8'))
SAMPLE['tables'] = [dict(table, rows=table['rows'][:2]) for table in SAMPLE['tables'][-1:]]
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


PLACES = list(places(SAMPLE))


@cases(60)
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), st.one_of(PLAIN, st.just('../../x.py')))), CHANGES
)
def test_tables(values, changes):
    changed_tables = copy.deepcopy(SAMPLE)
    put(changed_tables, values)
    text = yaml.safe_dump(changed_tables, allow_unicode=True)
    if not values:
        text = changed(text.encode(), changes).decode(errors='replace')
    found = attempt(lambda: tables.parse(text, 'x.yml'), ValueError)
    for table in (found or {}).values():
        for row in table['rows']:
            configs = row['config']
            for config in configs.values() if isinstance(configs, dict) else [configs]:
                inside = (config_root() / config).resolve()
                assert config_root() == inside or config_root() in inside.parents


CONFIG = """_base_ = ['base.py']
width = -64
model = dict(type='A', backbone=dict(plugins=[dict(cfg=dict(type='CAT'), stages=(True,))]))
names = ['x', *model, width + 1]
both = {'a': _base_.a, **model}
"""
WORDS = st.sampled_from(
    ('_base_', 'dict(', ')', '(', '[', ']', '{', '}', '=', ',', '.', '+', '*', '**', ':', '\n', ' ')
    + ('model', 'width', "'x'", '1', '-', 'lambda', 'import os', '__import__("os")', 'f"{1}"')
    + ('for x in y', 'if', '@', ';', '\\', '#', '"""', 'base.py', '{{ a }}', 'type', 'os.system')
)


@cases(250)
@given(
    st.sampled_from(('.py', '.json', '.yml')),
    st.one_of(CHANGES, st.lists(WORDS, max_size=25).map(' '.join), st.text(max_size=40)),
)
def test_plain_configs(path, suffix, change):
    (path.parent / 'base.py').write_text("a = dict(type='B')\n")
    name = path.with_suffix(suffix)
    data = changed(CONFIG.encode(), change) if isinstance(change, list) else change.encode('utf-8')
    name.write_bytes(data)
    # Python's parser reports itself as 'compile', and warns about what it reads.
    global CODE
    before, CODE = CODE, tuple(event for event in CODE if event != 'compile')
    try:
        attempt(lambda: plain_config.load(name), plain_config.PlainConfigError, OSError)
    finally:
        CODE = before
