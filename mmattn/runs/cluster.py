"""What a user's YAML says of a Slurm cluster: where runs go, what they ask for."""

import reprlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

NUMBER = (int, float)
KINDS: dict[str, Any] = {
    'partition': str,
    'account': str,
    'qos': str,
    'constraint': str,
    'hours': NUMBER,
    'gpus_per_node': int,
    'nodes': int,
    'cpus_per_process': int,
    'memory_gb': NUMBER,
    'container': str,
    'python': str,
    'setup': list,
    'srun_args': list,
    'signal_seconds': int,
    'sbatch': dict,
}
LEAST: dict[str, float] = {
    'hours': 1 / 60,
    'gpus_per_node': 0,
    'memory_gb': 0.1,
    'signal_seconds': 5,
}  # else 1
MOST = {'hours': 8760, 'signal_seconds': 3600}  # YAML reads 12:00:00 as 43200


@dataclass(frozen=True)
class Cluster:
    """A YAML file's keys.

    `hours` is the time limit of a job, which is requeued when it is over, `signal_seconds` how long
    before it a training is asked to save. `nodes` are those of a run, by default as few as have
    its GPUs; with `gpus_per_node` 0 processes have none. `memory_gb` is that of a node. `container`
    are the words before Python, `setup` the lines of shell before it, `srun_args` and `sbatch`
    further options of those.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    hours: float = 24
    gpus_per_node: int = 8
    nodes: int | None = None
    cpus_per_process: int = 5
    memory_gb: float | None = None
    container: str | None = None
    python: str | None = None
    setup: list[str] = field(default_factory=list)
    srun_args: list[str] = field(default_factory=list)
    signal_seconds: int = 90
    sbatch: dict[str, Any] = field(default_factory=dict)

    def shape(self, processes: int) -> tuple[int, int]:
        """Nodes, and processes on each, of a run with so many processes.

        Raises:
            UserError: if they cannot be shared out equally.
        """
        per_node = self.gpus_per_node or processes
        nodes = self.nodes or -(-processes // per_node)
        if processes % nodes or (self.gpus_per_node and processes // nodes > self.gpus_per_node):
            raise UserError(
                f'{processes} processes of a run do not fit {nodes} node(s) with '
                f'{self.gpus_per_node} GPUs each; mind --gpus-per-run, gpus_per_node and nodes'
            )
        return nodes, processes // nodes


def read(path: str | Path | None, partition: str | None = None) -> Cluster:
    """A cluster as a file says, if there is one.

    Args:
        partition (str, optional): Takes the place of the file's.

    Raises:
        UserError: in one line, if the file cannot be read or has another form.
    """
    found: Any = {}
    if path is not None:
        try:
            found = yaml.safe_load(Path(path).read_text(encoding='utf-8')) or {}
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}') from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f'{path}: no YAML: {" ".join(str(error).split())}') from error
        _check(path, found)
    if partition is not None:
        found['partition'] = partition
    return Cluster(**found)


def _check(path: str | Path, found: Any) -> None:
    if not isinstance(found, dict):
        raise UserError(f'{path}: must have keys and values, got {reprlib.repr(found)}')
    for key, value in found.items():
        if key not in KINDS:
            allowed = ', '.join(item.name for item in fields(Cluster))
            raise UserError(f'{path}: unknown key {key!r}; allowed are {allowed}')
        kinds = KINDS[key] if isinstance(KINDS[key], tuple) else (KINDS[key],)
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = ' or '.join(kind.__name__ for kind in kinds)
            raise UserError(f'{path}: {key} must be of {names}, got {reprlib.repr(value)}')
        low, high = LEAST.get(key, 1), MOST.get(key, 10**6)
        if isinstance(value, NUMBER) and not low <= value <= high:
            raise UserError(f'{path}: {key} must be from {low:.3g} to {high}, got {value}')
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise UserError(f'{path}: {key} must be a list of texts, got {reprlib.repr(value)}')
        if isinstance(value, dict) and not all(isinstance(item, str) for item in value):
            raise UserError(f'{path}: {key} must have names of options, got {reprlib.repr(value)}')
