"""What a stranger's checkpoint or config cannot do, whichever way a tool comes to it."""

import os
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import evil
import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'quickstart' / 'resnet18-cat_digits-cifar.py'
PRETRAINED = 'model.backbone.init_cfg'


@pytest.fixture
def trace(tmp_path):
    """The folder that a checkpoint makes if its code is run."""
    return tmp_path / 'trace'


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a folder, `served`; what is downloaded goes to a folder of the test's own."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.mark.parametrize('form', evil.FORMS)
def test_a_tested_checkpoint_runs_no_code(error_of, tmp_path, trace, form):
    path = evil.save(tmp_path / 'evil.pth', trace, form)
    line = error_of('test', CONFIG, path, '--work-dir', tmp_path / 'work')
    assert not trace.exists()
    assert evil.NAMES[form] in line and '--trust-checkpoint' in line


@pytest.mark.parametrize('way', ['--resume', '--resume auto', 'load_from', 'init_cfg', 'http'])
def test_a_trained_checkpoint_runs_no_code(error_of, tmp_path, trace, served, way):
    path = evil.save(tmp_path / 'served' / 'evil.pth', trace, 'zip')
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    args = {
        '--resume': ['--resume', path],
        '--resume auto': ['--resume'],
        'load_from': ['--cfg-options', f'load_from={path}'],
        'init_cfg': [
            '--cfg-options',
            f'{PRETRAINED}._delete_=True',
            f'{PRETRAINED}.type=Pretrained',
            f'{PRETRAINED}.checkpoint={path}',
        ],
        'http': ['--cfg-options', f'load_from={served}/evil.pth'],
    }[way]
    if way == '--resume auto':
        (work_dir / 'last_checkpoint').write_text(str(path))
    line = error_of('train', CONFIG, '--work-dir', work_dir, *args)
    assert not trace.exists()
    assert 'mkdir' in line and '--trust-checkpoint' in line


@pytest.mark.parametrize('form', evil.FORMS)
def test_who_trusts_a_checkpoint_has_it_run(run_tool, tmp_path, trace, form):
    """The checkpoints above would be seen to run."""
    path = evil.save(tmp_path / 'evil.pth', trace, form)
    run_tool('test', CONFIG, path, '--work-dir', tmp_path / 'work', '--trust-checkpoint')
    assert trace.exists()


def resumable(**more):
    """What --resume asks of a checkpoint, at the end of the fifth epoch of six."""
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    return dict(meta=dict(epoch=5, iter=5, seed=0), state_dict={}, message_hub=hub, **more)


SHORT = ('--cfg-options', 'train_dataloader.batch_size=12', 'param_scheduler=None')


def test_the_config_in_a_checkpoint_is_not_run(run_tool, tmp_path, trace):
    """Runner.resume reads meta['config'] as a config file, and so runs it."""
    content = resumable()
    content['meta']['config'] = f'import os\nos.mkdir({str(trace)!r})\n'
    torch.save(content, tmp_path / 'x.pth')
    options = ('--no-validate', '--work-dir', tmp_path / 'work', *SHORT)
    run_tool('train', CONFIG, '--resume', tmp_path / 'x.pth', *options)
    assert not trace.exists()
    assert (tmp_path / 'work' / 'last_checkpoint').exists()


def test_a_checkpoint_names_nothing_to_delete(run_tool, tmp_path):
    """CheckpointHook deletes what a checkpoint says to be the best one before, be it a folder."""
    victim = tmp_path / 'mine'
    victim.mkdir()
    (victim / 'thesis.tex').write_text('years')
    content = resumable()
    content['message_hub']['runtime_info'] = dict(
        best_ckpt=str(victim), best_score=-1.0, keep_ckpt_ids=['/../../mine', 5]
    )
    content['message_hub']['resumed_keys'] = dict(best_ckpt=True, best_score=True)
    torch.save(content, tmp_path / 'x.pth')
    options = (
        *SHORT,
        'default_hooks.checkpoint.save_best=auto',
        'train_cfg.val_begin=1',
        'train_cfg.val_interval=1',
    )
    work_dir = tmp_path / 'work'
    run_tool('train', CONFIG, '--resume', tmp_path / 'x.pth', '--work-dir', work_dir, *options)
    assert list(work_dir.glob('best_*.pth'))
    assert (victim / 'thesis.tex').exists()


@pytest.fixture
def unrestricted(monkeypatch):
    """--plain-config changes the registries for the life of the process."""
    from mmengine.fileio.handlers.registry_utils import file_handlers
    from mmengine.registry import registry

    monkeypatch.setattr(registry, 'get_object_from_string', registry.get_object_from_string)
    monkeypatch.setattr(registry, 'import_module', registry.import_module)
    for suffix in ('pkl', 'pickle'):
        monkeypatch.setitem(file_handlers, suffix, file_handlers[suffix])


def test_a_plain_config_runs_no_code(error_of, run_tool, tmp_path, trace, unrestricted):
    path = tmp_path / 'evil.py'
    path.write_text(f"import os\nos.mkdir({str(trace)!r})\n_base_ = '{CONFIG}'\n")
    line = error_of('train', path, '--plain-config')
    assert f'{path}:1: Import' in line and not trace.exists()
    # As data: registries build whatever a type names. Only `type` is looked at when the file is
    # read, other keys are met by the registries themselves.
    for key, word in (('type', 'could be anything'), ('constructor', 'os.mkdir')):
        extra = f'optim_wrapper = dict({key}="os.mkdir")'
        if key == 'type':
            extra = f'custom_hooks = [dict(type="os.mkdir", path={str(trace)!r})]'
        path.write_text(f"_base_ = '{CONFIG}'\n{extra}\n")
        line = error_of('train', path, '--plain-config', '--work-dir', tmp_path / 'work')
        assert word in line and not trace.exists()


def test_a_plain_config_trains(run_tool, tmp_path, unrestricted):
    options = ('--work-dir', tmp_path, *SHORT, 'train_cfg.max_epochs=1')
    run_tool('train', CONFIG, '--plain-config', *options)
    assert (tmp_path / 'last_checkpoint').exists()


NASTY = ('$(touch trace)', '`touch trace`', '; touch trace', '| touch trace', '*', "a'b", 'a "b"')


@pytest.mark.parametrize(
    'script, first',
    [
        ('dist_train.sh', ['CONFIG', '1']),
        ('dist_test.sh', ['CONFIG', 'CHECKPOINT', '1']),
        ('slurm_train.sh', ['$(touch trace)', '; touch trace', 'CONFIG', 'WORK']),
        ('slurm_test.sh', ['$(touch trace)', '; touch trace', 'CONFIG', 'CHECKPOINT']),
    ],
)
def test_scripts_pass_on_what_they_get(tmp_path, script, first):
    """No shell sees a user's words as anything but words: they arrive as they were given."""
    echo = tmp_path / 'bin' / 'srun'
    echo.parent.mkdir()
    echo.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "[$word]"; done\n')
    echo.chmod(0o755)
    ran = subprocess.run(
        ['bash', ROOT / 'tools' / script, *first, *NASTY],
        cwd=tmp_path,
        env=dict(os.environ, PYTHON=str(echo), PATH=f'{echo.parent}:{os.environ["PATH"]}'),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.splitlines()
    assert words[-len(NASTY) :] == [f'[{word}]' for word in NASTY]
    assert os.listdir(tmp_path) == ['bin']


def test_no_shell_is_handed_a_line():
    """Nothing here builds a shell's command line: neither scripts nor Python."""
    words = {
        '.sh': ('eval ', 'bash -c', 'sh -c'),
        '.py': ('shell=True', 'os.system(', 'os.popen(', 'getoutput('),
    }
    files = [ROOT / '.ci' / 'run', *(ROOT / 'tools').rglob('*'), *(ROOT / 'mmattn').rglob('*.py')]
    looked = 0
    for path in files:
        for word in words.get(path.suffix or '.sh', ()) if path.is_file() else ():
            assert word not in path.read_text(encoding='utf-8'), f'{path}: {word}'
            looked += 1
    assert looked > 100
