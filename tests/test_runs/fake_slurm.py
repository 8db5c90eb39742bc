"""Commands that answer as Slurm's do, for tests of what submits; jobs run at once, here."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

SCRIPTS = {
    'sbatch': """
[ ! -e $FAKE/refuse ] || { echo 'sbatch: error: invalid partition' >&2; exit 1; }
exec 9> $FAKE/lock; flock 9
number=$(($(cat $FAKE/count 2> /dev/null || echo 0) + 1)); echo $number > $FAKE/count
cp "$1" $FAKE/$number.sh
sed -n 's/^#SBATCH --job-name=//p' "$1" > $FAKE/$number.name
setsid bash $FAKE/bin/job $number > /dev/null 2>&1 9>&- &
echo "Submitted batch job $number"
""",
    # All that becomes of a job.
    'job': """
export SLURM_JOB_ID=$1 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_JOB_NODELIST=localhost
while [ -e $FAKE/pending ]; do sleep 0.1; done
while bash $FAKE/$1.sh > $FAKE/$1.out 2>&1; [ -e $FAKE/$1.requeue ]; do rm $FAKE/$1.requeue; done
rm $FAKE/$1.name
""",
    'srun': r"""
while [[ $1 == --* ]]; do
    [[ $1 == --output ]] && { out=${2/\%j/$SLURM_JOB_ID}; shift; }
    shift
done
echo $$ > $FAKE/$SLURM_JOB_ID.pid
exec "$@" >> "${out/\%t/0}" 2>&1
""",
    'squeue': """
[ ! -e $FAKE/down ] || { echo 'slurm_load_jobs error' >&2; exit 1; }
state=RUNNING; [ ! -e $FAKE/pending ] || state=PENDING
for file in $FAKE/*.name; do
    [ ! -e $file ] || echo "$(basename $file .name)|$state|None|$(cat $file)"
done
""",
    'scontrol': 'touch $FAKE/$2.requeue',
}


class Slurm:
    """It lives in a folder; `monkeypatch` puts its commands first.

    A file `pending` there keeps jobs from starting, `refuse` lets sbatch fail, `down` squeue.
    """

    def __init__(self, folder, monkeypatch):
        self.folder = folder / 'fake'
        (self.folder / 'bin').mkdir(parents=True)
        for name, text in SCRIPTS.items():
            path = self.folder / 'bin' / name
            path.write_text(f'#!/bin/bash\n{text.strip()}\n')
            path.chmod(0o755)
        monkeypatch.setenv('FAKE', str(self.folder))
        monkeypatch.setenv('PATH', f'{self.folder}/bin{os.pathsep}{os.environ["PATH"]}')

    def set(self, name, value=True):
        path = self.folder / name
        path.touch() if value else path.unlink()

    @property
    def submitted(self):
        """How many jobs there have been."""
        path = self.folder / 'count'
        return int(path.read_text()) if path.exists() else 0

    def script(self, number):
        return (self.folder / f'{number}.sh').read_text()

    def output(self, driver, name):
        """What submitit printed in a run's jobs."""
        (job,) = [job for job in driver.jobs.values() if f'/{name}/' in job.run.name]
        return ''.join(path.read_text() for path in (job.folder / 'slurm').glob('*.out'))

    def is_over(self, number):
        return not (self.folder / f'{number}.name').exists()

    def signal(self, number, signum):
        """To the job's process, as before its time limit."""
        os.kill(int((self.folder / f'{number}.pid').read_text()), signum)

    def end(self, seconds=20):
        """Kills what still runs."""
        deadline = time.monotonic() + seconds
        while any(self.folder.glob('*.name')) and time.monotonic() < deadline:
            if (self.folder / 'pending').exists():
                self.set('pending', False)
            for path in self.folder.glob('*.pid'):
                if not self.is_over(path.stem):
                    with suppress(ProcessLookupError, ValueError):
                        os.kill(int(path.read_text()), signal.SIGKILL)
            time.sleep(0.1)


def package(root, launch):
    """A snapshot of the code whose launcher is another, at `root`."""
    real = Path(__file__).parents[2] / 'mmattn' / 'runs'
    folder = root / 'mmattn' / 'runs'
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('leases.py', 'leash.py'):
        (folder / name).write_text((real / name).read_text())
    (folder / 'launch.py').write_text(launch)
    return root
