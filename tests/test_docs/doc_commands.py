"""What can be said of a command without running it: its files are there, its options are right."""

import argparse
import glob
import os
import re
import runpy
import shlex
import string
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASSIGNMENT = re.compile(r'[A-Za-z_]\w*=')
FOLDERS = ('configs/', 'docs/', 'mmattn/', 'requirements/', 'tests/', 'tools/')
# Programs that are not ours, whose own options are theirs.
OTHERS = ('cd', 'git', 'source', '.', 'pre-commit', 'sphinx-build', 'jupyter', 'mmattn_need')
# Which tool the words after a script's own go to: (script, how many words it takes itself).
SCRIPTS = {
    'tools/dist_train.sh': ('tools/train.py', 2, [0]),
    'tools/dist_test.sh': ('tools/test.py', 3, [0, 1]),
    'tools/slurm_train.sh': ('tools/train.py', 4, [2]),
    'tools/slurm_test.sh': ('tools/test.py', 4, [2, 3]),
}


class Wrong(AssertionError):
    """A command that cannot work, and why."""


def commands(text):
    """The commands of a block as lists of words, its own variables put in."""
    values, found = {}, []
    for line in text.replace('\\\n', ' ').splitlines():
        line = string.Template(line).safe_substitute(values)
        words, command = shlex.split(line, comments=True), []
        for word in [*words, '&&']:
            if word not in ('&&', ';', '|'):
                command.append(word)
            elif command:
                found.append(command)
                command = []
        if len(words) == 1 and ASSIGNMENT.match(words[0]):
            name, _, values[words[0].partition('=')[0]] = words[0].partition('=')
    return found


def check_harmless(words):
    """Raise Wrong for a command that no test may run, as it would change more than its folder."""
    words = [*words]
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words and not (
        words[0] in ('export', 'cd')
        or (words[0] == 'python' and words[1] not in ('-m', '-c'))
        or (words[0] == 'python' and words[1:2] == ['-m'] and words[2].startswith('mmattn'))
        or (words[0] == 'bash' and words[1].startswith('tools/dist_'))
    ):
        raise Wrong(f'no test may run {words[0]}: mark the block <!-- run: no, ... -->')


def check(words):
    """Raise Wrong for a command that names a file that is not there, or a wrong option.

    Args:
        words (list[str]): The command. Words in capitals or with <> stand for something else.
    """
    words = [*words]
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if not words or words[0] == 'export':
        return
    for word in words:
        if word.startswith(FOLDERS) and not glob.glob(str(ROOT / word)):
            raise Wrong(f'{word} is not there')
    program, *rest = words
    if program == 'python':
        _check_python(rest)
    elif program == 'bash':
        _check_script(*rest)
    elif program in ('pip', 'uv'):
        _check_pip(rest)
    elif program not in OTHERS:
        raise Wrong(f'{program} is not known here: is it a program that readers have?')


def _check_python(rest):
    if rest[0] != '-m':
        if rest[0].startswith('tools/') and _has_parser(rest[0]):
            parse(rest[0], rest[1:])
        return
    module, rest = rest[1], rest[2:]
    if module == 'mmattn.mmcv_ops':
        return
    if module.startswith('mmattn'):
        path = ROOT / module.replace('.', '/')
        if not path.with_suffix('.py').exists() and not (path / '__main__.py').exists():
            raise Wrong(f'no module {module}')
    elif module == 'pip':
        _check_pip(rest)
    elif module not in ('pytest', 'venv', 'sphinx', 'ruff', 'mypy'):
        raise Wrong(f'python -m {module} is not known here')


def _has_parser(tool):
    path = ROOT / tool
    return path.is_file() and 'argparse' in path.read_text(encoding='utf-8')


def _check_script(script, *rest):
    if script == '-c':
        for words in commands(rest[0]):
            check(words)
        return
    if script in SCRIPTS:
        tool, own, handed = SCRIPTS[script]
        if len(rest) < own:
            raise Wrong(f'{script} takes {own} words')
        parse(tool, [*(rest[i] for i in handed), *rest[own:]])
        return
    known = (ROOT / script).read_text() + (ROOT / 'tools/env.sh').read_text()
    ours = script != 'tools/run_tests.sh'  # which hands the others to pytest
    for word in rest:
        if ours and word.startswith('-') and word not in known:
            raise Wrong(f'{script} has no {word}')


def _check_pip(rest):
    table = (ROOT / 'pyproject.toml').read_text().split('[project.optional-dependencies]')[1]
    extras = re.findall(r'^(\w+) = \[', table.split('\n[')[0], re.M)
    for word in rest:
        match = re.match(r'(?:mmattn|\.)\[([\w,]+)\]$', word)
        for extra in match[1].split(',') if match else ():
            if extra not in extras:
                raise Wrong(f'mmattn has no extra {extra}')


def check_words(words):
    """`check` for a command in a sentence, which may leave out what it is not about."""
    tool = next((word for word in words if word.startswith('tools/')), None)
    if words[0] != 'python' or tool is None or not _has_parser(tool):
        check(words)
        return
    known = _stopped(tool, [], lambda parser, *_: {*parser._option_string_actions})
    for word in words:
        if word.startswith('--') and word.partition('=')[0] not in known:
            raise Wrong(f'{tool} has no {word}')


class _Stop(BaseException):
    pass


def parse(tool, args):
    """The namespace that a tool makes of its arguments; it stops there.

    Raises:
        Wrong: if the tool refuses them.
    """
    args = [path for word in args for path in _globbed(word)]
    return _stopped(tool, args, argparse.ArgumentParser.parse_args)


def _stopped(tool, args, function):
    """What `function` makes of a tool's parser, in place of parsing; the tool ends there."""

    def parse_args(self, given=None, namespace=None):
        raise _Stop(function(self, given, namespace))

    original, argv = argparse.ArgumentParser.parse_args, sys.argv
    argparse.ArgumentParser.parse_args = parse_args
    sys.argv = [tool, *args]
    try:
        runpy.run_path(str(ROOT / tool), run_name='__main__')
    except _Stop as stop:
        return stop.args[0]
    except SystemExit as ended:
        raise Wrong(f'{tool} {" ".join(args)}: exit code {ended.code}') from ended
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = original, argv
    raise Wrong(f'{tool} has no parser')


def _globbed(word):
    here = sorted(glob.glob(str(ROOT / word))) if word.startswith(FOLDERS) else []
    return [os.path.relpath(path, ROOT) for path in here] if '*' in word and here else [word]
