"""Plain configs mean what OpenMMLab's reader makes of them, and hold nothing but data."""

import json
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmattn.runs import plain_config
from mmattn.runs.plain_config import PlainConfigError

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def write(tmp_path):
    def write(text, name='x.py'):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    'name',
    [
        'quickstart/resnet18-cat_digits-cifar.py',
        'cat/resnet50-cat-r16_8xb32_in1k.py',
        'drtam/fcn_r50-d8-drtam-pool_4xb4-20k_voc12aug-512x512.py',
    ],
)
def test_the_projects_configs_read_the_same(name, tmp_path):
    theirs = Config.fromfile(CONFIGS / name, import_custom_modules=False)
    ours = plain_config.load(CONFIGS / name)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.pretty_text == theirs.pretty_text
    # What a run leaves in its work directory is literals alone.
    theirs.dump(tmp_path / 'dumped.py')
    assert plain_config.load(tmp_path / 'dumped.py').to_dict() == theirs.to_dict()


def test_every_config_is_plain():
    """But for the alternatives, which are written in terms of a row's own values."""
    found = [path for path in CONFIGS.rglob('*.py') if path.parent.name != 'alternatives']
    assert len(found) > 190
    for path in found:
        plain_config.load(path)


def test_a_dumped_config_is_plain(write, tmp_path):
    """Also one that computes."""
    path = write(
        f"_base_ = '{CONFIGS}/quickstart/resnet18-cat_digits-cifar.py'\n"
        'scales = [(1333, short) for short in range(640, 801, 32)]\n'
    )
    with pytest.raises(PlainConfigError, match='ListComp'):
        plain_config.load(path)
    theirs = Config.fromfile(path, import_custom_modules=False)
    theirs.dump(tmp_path / 'dumped.py')
    assert plain_config.load(tmp_path / 'dumped.py').to_dict() == theirs.to_dict()


def test_what_a_file_may_hold(write):
    write('a = dict(b=1, c=[1, 2])\nwidth = 64\n', 'base.py')
    path = write(
        '"""A docstring."""\n'
        "_base_ = ['./base.py']\n"
        'one = two = -1.5\n'
        'names = ("x", "y" + "z", *["w"])\n'
        "a = dict(b=None, _delete_=True, **{'d': True})\n"
        'e = [a, _base_.a.c, _base_.width + 1]\n'
    )
    assert plain_config.load(path).to_dict() == {
        'a': {'b': None, 'd': True},
        'width': 64,
        'one': -1.5,
        'two': -1.5,
        'names': ('x', 'yz', 'w'),
        'e': [{'b': None, '_delete_': True, 'd': True}, [1, 2], 65],
    }
    assert plain_config.load(path).to_dict() == Config.fromfile(path).to_dict()


def test_json_and_yaml(write):
    write("a = dict(b=1, c=(1, 2))\nx = 'y'\n", 'base.py')
    child = dict(_base_='base.py', a=dict(b=2, plugins=[dict(stages=[True, False])]))
    expected = {'a': {'b': 2, 'c': (1, 2), 'plugins': [{'stages': [True, False]}]}, 'x': 'y'}
    for path in (write(json.dumps(child), 'x.json'), write(yaml.safe_dump(child), 'x.yml')):
        assert plain_config.load(path).to_dict() == expected


@pytest.mark.parametrize(
    'text, words',
    [
        ('import os', '1: Import'),
        ('from os import system', 'ImportFrom'),
        ("a = 1\nb = __import__('os')", ':2: a call of __import__'),
        ('a = dict([(1, 2)])', 'a call of dict'),
        ("a = open('x')", 'a call of open'),
        ('a = dict(b=print())', 'a call of print'),
        ('a = ().__class__', 'other than _base_'),
        ('a = [x for x in (1, 2)]', 'ListComp'),
        ('a = lambda: 1', 'Lambda'),
        ("a = f'{1}'", 'JoinedStr'),
        ('a = 1 if 2 else 3', 'IfExp'),
        ('a = [1][0]', 'Subscript'),
        ("a = 'x' * 10**9", 'operator'),
        ('a = 9 ** 9', 'operator'),
        ('a = b', 'b, which has no value'),
        ('a.b = 1', 'more than a name'),
        ('a, b = 1, 2', 'more than a name'),
        ('def f(): pass', 'FunctionDef'),
        ('class A: pass', 'ClassDef'),
        ('with read_base(): pass', 'With'),
        ('if True:\n    a = 1', 'If'),
        ('a = ...', 'Ellipsis'),
        ('a = 1j', '1j'),
        ("a = b'x'", "b'x'"),
        ('a = {1: 2}', 'a key that is no text'),
        ("a = dict(**'x')", 'no dict'),
        ('a = [*1]', 'no list'),
        ('a = _base_.b', '_base_ has no b'),
        ('a = dict(', 'never closed'),
        ('a = "\\x00', 'unterminated'),
        ("a = '{{ fileDirname }}'", 'template'),
        ("a = '{{$HOME:x}}'", 'template'),
        ("_base_ = 'gone.py'", 'gone.py'),
        ("_base_ = 'x.py'", 'based on itself'),
        ("_base_ = 'https://example.org/x.py'", 'local file'),
        ("_base_ = 'mmdet::retinanet.py'", 'local file'),
        ("_base_ = '/etc/passwd'", 'allowed are .py'),
        ('_base_ = 1', 'must be a path'),
        ("custom_imports = dict(imports=['os'])", 'custom_imports'),
        ("custom_imports = 'antigravity'", 'custom_imports'),
        ("default_scope = 'antigravity'", 'default_scope'),
        ("a = [dict(b=(dict(type='os.system'),))]", 'could be anything'),
        ("a = dict(type='mmengine.fileio.load')", 'could be anything'),
        ("a = dict(type='A', _scope_='os')", 'could be anything'),
        ("filename = 'x'", 'reserved'),
    ],
)
def test_what_it_may_not(write, text, words):
    path = write(text)
    with pytest.raises((PlainConfigError, FileNotFoundError), match=words) as error:
        plain_config.load(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('x.json', '{"a": 1, "a": 2}', 'comes twice'),
        ('x.json', '{"a": ', 'no JSON'),
        ('x.json', '[1]', 'must be a mapping'),
        ('x.json', '{"a": ' + '[' * 10**5 + ']' * 10**5 + '}', 'levels'),
        ('x.json', '{"a": ' + '9' * 5000 + '}', 'no JSON'),
        ('x.yml', 'a: !!python/object/apply:os.system [x]', 'no YAML'),
        ('x.yml', 'a: &b [1]\nc: *b', '2: aliases'),
        ('x.yml', 'a: 2020-01-01', 'date'),
        ('x.yml', '1: 2', 'a key that is no text'),
        ('x.yml', 'a: [', 'no YAML'),
        ('x.yml', '', 'must be a mapping'),
        ('x.py', 'a = ' + '[' * 150 + ']' * 150, 'levels'),
        ('x.py', 'a = ' + '-' * 10**5 + '1', 'levels'),
        ('x.py', 'a = 1\0', 'null bytes'),
        ('x.py', 'a = 1\n' * 10**6, 'bytes'),
        ('x.toml', 'a = 1', 'allowed are'),
    ],
)
def test_other_files(write, name, text, words):
    with pytest.raises(PlainConfigError, match=words):
        plain_config.load(write(text, name))


def test_nothing_takes_for_ever(write):
    doubled = '\n'.join(f'a{n + 1} = [a{n}, a{n}]' for n in range(60))
    with pytest.raises(PlainConfigError, match='items'):
        plain_config.load(write(f'a0 = [1]\n{doubled}'))
    longer = '\n'.join(f'a{n + 1} = a{n} + a{n}' for n in range(60))
    with pytest.raises(PlainConfigError, match='characters'):
        plain_config.load(write(f"a0 = 'x'\n{longer}"))
    lists = '\n'.join(f'a{n + 1} = a{n} + a{n}' for n in range(60))
    with pytest.raises(PlainConfigError, match='items'):
        plain_config.load(write(f'a0 = [1]\n{lists}'))
    # 2**40 files, each based on the next one twice over
    for n in range(40):
        write(f"_base_ = ['{n + 1}.py', '{n + 1}.py']", f'{n}.py')
    write('', '40.py')
    with pytest.raises(PlainConfigError, match='files'):
        plain_config.load(write("_base_ = '0.py'"))


def test_two_bases_with_one_key(write):
    write('a = 1', 'one.py')
    write('a = 2', 'two.py')
    with pytest.raises(PlainConfigError, match='two bases have the keys a'):
        plain_config.load(write("_base_ = ['one.py', 'two.py']"))


def test_a_dict_over_a_number(write):
    write('a = 1', 'one.py')
    with pytest.raises(PlainConfigError, match='cannot inherit'):
        plain_config.load(write("_base_ = 'one.py'\na = dict(b=1)"))
