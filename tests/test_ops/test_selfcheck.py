"""Triton kernels are compared with the equations before they are used, and replaced if they fail.

There is no GPU here: the comparison runs in the interpreter, and what is kept and shared is that of
a device that is made up, with a check that is a script.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import selfcheck_cases
import torch
import triton_cases
from needs import needs_kernels

from mmattn import ops
from mmattn.ops import examples
from mmattn.ops.triton import selfcheck

pytest.importorskip('triton', reason='Triton does not come with this build of PyTorch')
CPU, FLOAT = torch.device('cpu'), torch.float32


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Run a case in a process that interprets the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRITON_INTERPRET', '1')
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        pool = ProcessPoolExecutor(1, get_context('spawn'), triton_cases.on_cpu)
        pool.submit(os.getpid).result()
    with pool:
        yield lambda case, *args, **kwargs: pool.submit(case, *args, **kwargs).result()


def test_every_operator_has_an_example():
    names = {op._schema.name.partition('::')[2] for op in ops.decompositions}
    assert names == set(examples.ARGUMENTS)


@needs_kernels
@pytest.mark.parametrize('dtype', (FLOAT, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize('op', examples.ARGUMENTS)
def test_the_bounds_are_wide_enough(op, dtype):
    """Rounding alone is no failure: the CPU's kernels, too, pass with the maps of a GPU."""
    assert selfcheck.examine(op, 'cpu', dtype) is None


# Those that the interpreter takes long for.
SLOW = ('cbam', 'cat', 'drtam', 'entropy_pool', 'spatial_conv')
OPS = [pytest.param(op, marks=pytest.mark.slow) if op in SLOW else op for op in examples.ARGUMENTS]


@pytest.mark.parametrize('op', OPS)
def test_kernels_as_they_are_pass(run, op):
    assert run(selfcheck_cases.examine, op, shapes=selfcheck.INTERPRETED[:1]) is None


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize('op', ('se', 'eca', 'coord', 'channel_pool', 'rank1_scale'))
def test_kernels_pass_in_16_bits(run, op, dtype):
    assert run(selfcheck_cases.examine, op, dtype, selfcheck.INTERPRETED[:1]) is None


@pytest.mark.slow
@pytest.mark.parametrize('dtype', (FLOAT, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize('op', examples.ARGUMENTS)
def test_all_kernels_pass_in_all_shapes(run, op, dtype):
    assert run(selfcheck_cases.examine, op, dtype) is None


@pytest.mark.parametrize(
    'spoil, said',
    (
        ('value', 'result 0 is off by'),
        ('nan', 'result 0 is off by nan'),
        ('gradient', 'gradient 1 is off by 0.0'),
        ('compile', 'ValueError: unsupported target'),
    ),
)
def test_a_spoiled_kernel_is_found(run, spoil, said):
    problem = run(selfcheck_cases.examine_spoiled, spoil)
    assert said in problem
    assert problem.endswith(', (2, 3, 4, 5), contiguous')


def test_a_spoiled_kernel_is_replaced_with_one_warning(run):
    off, said, asked, runs = run(selfcheck_cases.use_spoiled, 'value')
    assert off < 1e-5
    assert runs == 'reference'
    assert asked == ['channel_scale']
    assert len(said) == 1, said
    (message,) = said
    assert "the equations of 'channel_scale' in float32 on cpu" in message
    assert 'result 0 is off by' in message
    assert 'report' in message
    # And kept: nobody asks again.
    assert run(selfcheck_cases.use_spoiled, 'value')[1:] == ([message], [], 'reference')


def test_the_error_of_a_program_that_is_older_than_the_verdict(run):
    assert 'failed its self-check' in run(selfcheck_cases.a_stale_program)


@pytest.mark.slow
def test_a_failed_operator_is_compiled_as_equations(run):
    assert run(selfcheck_cases.compile_failed) < 1e-5


# ---------------------------------------------------------------- verdicts, kept and shared


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """A device that is made up, and a check that is a script: the file of all that were run."""
    log = tmp_path / 'log'
    about = dict(device='Made Up 100', driver='1', triton='3', torch='2', source='s')

    def script(body='print(json.dumps(dict(problem=None)))'):
        text = f'import json, os, time; open({str(log)!r}, "a").write("run\\n"); {body}'
        monkeypatch.setattr(selfcheck, 'command', lambda *_: [sys.executable, '-S', '-c', text])

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(selfcheck, 'describe', lambda device: dict(about))
    monkeypatch.setattr(selfcheck, '_verdicts', {})
    script()
    log.touch()
    return about, script, lambda: len(log.read_text().splitlines())


def ask(op='se', dtype=FLOAT):
    selfcheck._verdicts.clear()  # as in a new process
    return selfcheck.problem_of(op, CPU, dtype)


def test_a_verdict_is_kept_by_what_it_depends_on(made_up):
    about, script, runs = made_up
    assert [ask(), ask(), runs()] == [None, None, 1]
    ask(dtype=torch.bfloat16)
    ask('eca')
    assert runs() == 3
    for number, key in enumerate(about, 4):
        about[key] += '1'
        assert [ask(), ask(), runs()] == [None, None, number]
    (first, *_) = (v for v in selfcheck.verdicts() if v['driver'] == '1' and v['op'] == 'eca')
    assert (first['device'], first['dtype'], first['problem']) == ('Made Up 100', 'float32', None)


def test_processes_share_a_check(made_up):
    _, script, runs = made_up
    script('time.sleep(0.5); print(json.dumps(dict(problem="it is off")))')
    with ProcessPoolExecutor(2, get_context('fork')) as pool:
        found = [pool.submit(_ask_quietly) for _ in range(2)]
        assert [f.result(60) for f in found] == ['it is off'] * 2
    assert runs() == 1


def _ask_quietly():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return ask()


def test_a_damaged_verdict_is_made_anew(made_up):
    _, _, runs = made_up
    ask()
    for path in selfcheck.folder().glob('*.json'):
        path.write_text('{"op": "se"')
    assert [ask(), runs()] == [None, 2]


@pytest.mark.parametrize(
    'body, said, kept',
    (
        ('os.abort()', 'it ended with code -6', True),
        ('import sys; sys.exit("no such\\nkernel")', 'it ended with code 1: kernel', True),
        ('print("nothing")', 'it ended with code 0', True),
        ('time.sleep(60)', 'it was not over after 0.5 s', True),
        ('import sys; print("out of memory", file=sys.stderr); sys.exit(3)',
         'it did not come to the kernels: out of memory', False),
    ),
)  # fmt: skip
def test_a_check_may_fail_in_any_way(made_up, monkeypatch, body, said, kept):
    _, script, runs = made_up
    monkeypatch.setattr(selfcheck, 'SECONDS', 0.5 if 'sleep' in body else 60)
    script(body)
    with pytest.warns(UserWarning, match=said):
        problem = ask()
    assert [v['problem'] for v in selfcheck.verdicts()] == ([problem] if kept else [])
    with pytest.warns(UserWarning, match=said):
        ask()
    assert runs() in (
        (0, 1) if 'sleep' in body else (1,) if kept else (2,)
    )  # it may not have begun


def test_a_cache_that_cannot_be_written_is_done_without(made_up, monkeypatch, tmp_path):
    _, _, runs = made_up
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert [ask(), ask(), runs()] == [None, None, 2]


def test_it_can_be_turned_off(made_up, monkeypatch):
    monkeypatch.setattr(selfcheck, 'CHECKED', {'cpu'})
    monkeypatch.setenv('MMATTN_SELFCHECK', '0')
    assert selfcheck.passes('se', torch.ones(1))
    assert made_up[2]() == 0


def test_no_random_number_is_drawn(made_up):
    before = torch.get_rng_state()
    ask()
    examples.arguments('cat', (2, 3, 4, 5), FLOAT, False)
    assert torch.equal(before, torch.get_rng_state())


def test_the_check_itself(monkeypatch, tmp_path):
    """The process of a check, in the interpreter."""
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert selfcheck.run_check('channel_scale', CPU, FLOAT) == (None, True)


def test_a_device_that_is_not_there_is_no_verdict():
    problem, final = selfcheck.run_check('se', torch.device('cuda:77'), FLOAT)
    assert 'did not come to the kernels' in problem
    assert not final


def test_backend_of():
    x = torch.ones(1, 2, 3, 3)
    assert ops.backend_of(x, impl='reference') == 'reference'
    assert ops.backend_of(x, 'se') == ops.backend_of(x)
    assert ops.backend_of(torch.ones(3)) == 'reference'
    with pytest.raises(ValueError, match="got 'no_such'"):
        ops.backend_of(x, 'no_such')
