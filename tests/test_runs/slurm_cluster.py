"""A Slurm cluster of one node, this machine, for as long as a test needs it.

Debian's packages `slurm-wlm` and `munge` are all that it takes, and to be root.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'srun', 'scontrol')
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Why there can be no cluster here; empty if there can."""
    absent = [name for name in PROGRAMS if find(name) is None]
    if absent:
        return f'needs {", ".join(absent)} (apt-get install slurm-wlm munge)'
    return '' if os.getuid() == 0 else 'needs root, as whom a cluster of one node runs'


def find(name):
    return shutil.which(name, path=f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin')


@contextmanager
def running(folder, cpus=2):
    """Gives the environment in which Slurm's commands find a cluster that runs in a folder."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # munged asks for it
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    config = folder / 'slurm.conf'
    ports = dict(zip(('controller', 'daemon'), free_ports(2), strict=True))
    config.write_text(CONFIG.format(folder=folder, host=socket.gethostname(), cpus=cpus, **ports))
    environment = dict(os.environ, SLURM_CONF=str(config))
    munge = ['--foreground', '--force', f'--key-file={key}', f'--socket={folder}/munge.socket']
    munge += [f'--pid-file={folder}/munge.pid', f'--log-file={folder}/munge.log']
    munge += [f'--seed-file={folder}/munge.seed']
    commands = (
        [find('munged'), *munge],
        [find('slurmctld'), '-D', '-f', config],
        [find('slurmd'), '-D', '-f', config, '-N', 'node0'],
    )
    started = []
    try:
        for command in commands:
            with open(folder / 'daemons.log', 'a') as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        _wait_until_idle(environment, folder)
        yield environment
        with suppress(subprocess.SubprocessError):
            subprocess.run(['scancel', '-u', '0'], env=environment, timeout=20)
            _wait_until_empty(environment)
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_idle(environment, folder, seconds=60):
    deadline, said = time.monotonic() + seconds, ''
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            said = subprocess.run(
                ['sinfo', '-h', '-o', '%T'],
                env=environment,
                capture_output=True,
                text=True,
                timeout=10,
            ).stdout.strip()
        if said == 'idle':
            return
        time.sleep(0.5)
    logs = '\n'.join(
        f'{path.name}: {path.read_text()[-1500:]}' for path in sorted(folder.glob('*.log'))
    )
    raise RuntimeError(f'no cluster within {seconds} s, its node is {said!r}\n{logs}')


def _wait_until_empty(environment, seconds=40):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        command = ['squeue', '-h']
        if not subprocess.run(command, env=environment, capture_output=True).stdout.strip():
            return
        time.sleep(0.5)


def free_ports(count):
    """Different ones that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(('127.0.0.1', 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()
