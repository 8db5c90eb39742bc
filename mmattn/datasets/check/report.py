"""What a check of data has found."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 10  # problems of a kind printed; a report in JSON has all


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        level (str): 'error', what a training would stop at or learn wrongly from; 'warning', what
            it would pass over, and what published data sets have as well.
        kind (str): 'missing', 'broken', 'format', 'size', 'class', 'label', 'box', 'list',
            'config' or 'leak'.
        file (str): Where.
        detail (str): What, in words.
    """

    level: str
    kind: str
    file: str
    detail: str

    @property
    def loses_file(self) -> bool:
        """Whether the file is not there, or not whole."""
        return self.level == 'error' and self.kind in ('missing', 'broken')


def error(kind: str, file: Any, detail: str) -> Problem:
    return Problem('error', kind, str(file), detail)


def warning(kind: str, file: Any, detail: str) -> Problem:
    return Problem('warning', kind, str(file), detail)


@dataclass
class Checked:
    """A data set of a config.

    Attributes:
        name (str): Its type and where it is.
        samples (int): The samples that a training or test reads.
        checked (int): Those of them whose files were looked at.
        decoded (int): Those of these whose files are there and whole.
        problems (list): What was found.
        files (list): The images of all samples, by their real paths.
        digests (dict): Digest of the content of each checked image -> its number in `files`.
    """

    name: str
    samples: int = 0
    checked: int = 0
    decoded: int = 0
    problems: list[Problem] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    digests: dict[bytes, int] = field(default_factory=dict)


@dataclass
class Report:
    """Of all configs.

    Attributes:
        data_sets (list): Each data set once, whatever the number of configs that read it.
        configs (dict): Path of a config -> split -> the numbers of its data sets in the list.
        problems (dict): Path of a config -> what concerns it alone: leaks, mismatched classes.
        quick (bool): Whether only a part of the files was decoded.
    """

    data_sets: list[Checked]
    configs: dict[str, dict[str, list[int]]]
    problems: dict[str, list[Problem]]
    quick: bool

    def all_problems(self) -> Iterator[Problem]:
        """Those of data sets, then those of configs."""
        for data_set in self.data_sets:
            yield from data_set.problems
        for problems in self.problems.values():
            yield from problems

    def count(self, level: str) -> int:
        """How many there are of a level."""
        return sum(problem.level == level for problem in self.all_problems())

    @property
    def right(self) -> bool:
        """Whether nothing keeps the configs from being trained."""
        return self.count('error') == 0

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file: everything but the files' names and digests."""
        return dict(
            right=self.right,
            quick=self.quick,
            errors=self.count('error'),
            warnings=self.count('warning'),
            data_sets=[
                dict(
                    name=data_set.name,
                    samples=data_set.samples,
                    checked=data_set.checked,
                    decoded=data_set.decoded,
                    problems=[asdict(problem) for problem in data_set.problems],
                )
                for data_set in self.data_sets
            ],
            configs=self.configs,
            config_problems={
                path: [asdict(problem) for problem in problems]
                for path, problems in self.problems.items()
                if problems
            },
        )

    def lines(self) -> Iterator[str]:
        """For people: each data set with its problems, then the configs'."""
        for data_set in self.data_sets:
            lost = data_set.checked - data_set.decoded
            yield (
                f'{data_set.name}: {data_set.samples} samples, {data_set.decoded} decoded'
                + (f', {lost} missing or broken' if lost else '')
            )
            yield from _shown(data_set.problems)
        for path, problems in self.problems.items():
            if problems:
                yield f'{path}:'
                yield from _shown(problems)
        part = ' (quick: of a part of the files)' if self.quick else ''
        yield f'{self.count("error")} errors, {self.count("warning")} warnings{part}'


def _shown(problems: Iterable[Problem]) -> Iterator[str]:
    seen = Counter()
    for problem in problems:
        key = problem.level, problem.kind
        seen[key] += 1
        if seen[key] <= SHOWN:
            yield f'    {problem.level}: {problem.kind}: {problem.file}: {problem.detail}'
    for (level, kind), number in seen.items():
        if number > SHOWN:
            yield f'    {level}: {kind}: {number - SHOWN} more'
