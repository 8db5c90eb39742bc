"""Two machines, played by two launchers on this one."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import toy

from mmattn.runs import launch

DIST_TRAIN = Path(__file__).parents[2] / 'tools' / 'dist_train.sh'


def train(tmp_path, folders, *options, processes=1):
    """Trains in one launcher a folder; returns exit codes and what they said."""
    path = toy.write(tmp_path / 'run.py', toy.config('unused', epochs=2, size=12))
    machines = dict(NNODES=str(len(folders)), MASTER_ADDR='127.0.0.1', PORT=str(launch.free_port()))
    running = [
        subprocess.Popen(
            ['bash', DIST_TRAIN, path, str(processes), '--work-dir', folder, *options],
            env=toy.environment(**machines, NODE_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    said = [process.communicate(timeout=200)[0] for process in running]
    return [process.returncode for process in running], said


@pytest.mark.slow
def test_train_like_one_machine_and_need_one_work_dir(tmp_path):
    assert train(tmp_path, [tmp_path / 'one'], processes=2)[0] == [0]
    codes, said = train(tmp_path, [tmp_path / 'shared', tmp_path / 'shared'])
    assert codes == [0, 0], said
    one, two = (
        torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)['state_dict']
        for name in ('one', 'shared')
    )
    assert toy.same(one, two)

    # The second machine sees none of the first one's checkpoints, and would begin anew beside it.
    os.remove(tmp_path / 'shared' / 'epoch_2.pth')
    codes, said = train(tmp_path, [tmp_path / 'shared', tmp_path / 'own'], '--resume')
    assert codes == [2, 2]
    assert 'process 0 goes on from iteration 3 and process 1 from 0: all machines' in said[0]
