"""What all data sets share: a folder is unpacked beside its place and takes it when it is whole.

A *part* is a folder that stands or falls as a whole, such as `coco/train2017`. While it is being
unpacked it is `coco/.train2017.partial`, which an interruption leaves and the next start goes on
with. What stands under its final name is complete and on the disk, and is never written again.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmattn.datasets.progress import amount, track

from .archives import CHUNK, Archive, DataError, Member, broken_archives, find, read, verify

BLOCK = 4096  # what a small file takes on most disks
SPARE = 100 << 20  # bytes of the disk left free


@dataclass(frozen=True)
class Group:
    """Files that are unpacked together.

    Attributes:
        name (str): The folder of the part that they fill, '' for the part itself.
        size (int): Bytes on the disk, about.
        files (Callable): () -> the files, named relative to `name`.
    """

    name: str
    size: int
    files: Callable[[], Iterator[Member]]


def under(prefix: str) -> Callable[[list[Path]], list[Group]]:
    """Groups of a part that is a folder of its archives, as it is."""

    def files(paths: list[Path]) -> Iterator[Member]:
        for path in paths:
            for member in read(path):
                if member.name.startswith(prefix):
                    yield Member(member.name[len(prefix) :], member.size, member.open)

    return single(files)


def single(files: Callable[[list[Path]], Iterator[Member]]) -> Callable[[list[Path]], list[Group]]:
    """The one group of a part that is unpacked in one go; all names are read here already."""

    def groups(paths: list[Path]) -> list[Group]:
        return [Group('', sum(on_disk(file.size) for file in files(paths)), lambda: files(paths))]

    return groups


def on_disk(size: int) -> int:
    """The bytes that a file of this size takes."""
    return -(-size // BLOCK) * BLOCK


def link(tree: Path, target: Path) -> None:
    """Lets a part be a folder that the user has unpacked already."""
    target.symlink_to(tree.absolute())


@dataclass(frozen=True)
class Part:
    """A folder of a data set.

    Attributes:
        target (str): Its place below the data root.
        archives (tuple): All that are needed for it.
        groups (Callable): Paths of the archives, or of one folder that holds the same -> its
            groups.
        trees (tuple): Where below a source the folder may lie unpacked, best first.
        proof (tuple): Patterns of what such a folder holds.
        link (Callable, optional): (tree, target) -> None makes the part of it, without a copy;
            None if it has to be converted.
    """

    target: str
    archives: tuple[Archive, ...]
    groups: Callable[[list[Path]], list[Group]]
    trees: tuple[str, ...]
    proof: tuple[str, ...] = ()
    link: Callable[[Path, Path], None] | None = field(default=link)

    def there(self, root: Path) -> bool:
        """Whether the part is in its place."""
        return (root / self.target).exists()

    def tree(self, sources: list[Path]) -> Path | None:
        """An unpacked copy among the sources."""
        for place in self.trees:
            for source in sources:
                folder = source / place
                if folder.is_dir() and all(any(folder.glob(proof)) for proof in self.proof):
                    return folder
        return None


@dataclass
class Plan:
    """A part that is to be made: of archives, or of a tree."""

    part: Part
    paths: list[Path]
    tree: Path | None
    stage: Path
    groups: list[Group] = field(default_factory=list)

    @property
    def sources(self) -> list[Path]:
        """What is unpacked or converted: the archives, or else the tree."""
        return self.paths if self.tree is None else [self.tree]


def plan(part: Part, sources: list[Path], root: Path) -> Plan | None:
    """How a part can be made of what is there; None if something is missing for it."""
    stage = stage_of(part, root)
    found = [find(archive.name, sources) for archive in part.archives]
    paths = [path for path in found if path is not None]
    if len(paths) == len(found):
        return Plan(part, paths, None, stage)
    tree = part.tree(sources)
    return Plan(part, [], tree, stage) if tree else None


def build(plans: list[Plan], root: Path, checksums: bool) -> None:
    """Makes parts: verifies all archives, looks at the disk, and only then unpacks.

    Args:
        plans (list): What to make.
        root (Path): The data root.
        checksums (bool): Whether archives have to be the published ones.

    Raises:
        DataError: If an archive is not what it should be, the disk is too small, or somebody else
            is at it.
    """
    with ExitStack() as stack:
        for job in plans:
            stack.enter_context(_ours_alone(job.stage))
        # Another start may have finished one since we looked.
        plans = [job for job in plans if not job.part.there(root)]
        for job in plans:
            if checksums:
                for archive, path in zip(job.part.archives, job.paths, strict=False):
                    verify(archive, path, job.stage / 'verified.json')
            if job.paths or job.part.link is None:
                job.groups = job.part.groups(job.sources)
            if job.paths and not job.groups:
                names = ', '.join(path.name for path in job.paths)
                raise DataError(f'{names}: nothing in it is of {job.part.target}; get it again')
        _room(plans)
        for job in plans:
            if job.part.there(root):  # came with a folder that has just been linked
                shutil.rmtree(job.stage)
                continue
            whole = job.stage / 'whole'
            if job.groups:
                _unpack(job.part.target, job.groups, job.stage, whole)
                os.sync()
            else:
                make_link, tree = job.part.link, job.tree
                assert make_link is not None and tree is not None  # or there are groups
                _remove(whole)  # links alone, begun by an earlier start
                make_link(tree, whole)
            _put(whole, root / job.part.target)
            shutil.rmtree(job.stage)


def tidy(part: Part, root: Path) -> None:
    """Removes what an interruption has left of a part that is in its place."""
    stage = stage_of(part, root)
    if part.there(root) and stage.exists():
        with _ours_alone(stage):
            shutil.rmtree(stage)


def stage_of(part: Part, root: Path) -> Path:
    """Where a part is while it is not whole: not in another part, which may not be there yet."""
    data_set, *names = part.target.split('/')
    return root / data_set / f'.{"-".join(names)}.partial'


@contextmanager
def _ours_alone(stage: Path) -> Iterator[None]:
    stage.mkdir(parents=True, exist_ok=True)
    handle = os.open(stage, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f'another start is at work in {stage}; wait for it') from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # a file system that knows no locks is no reason to stop
        yield
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _put(whole: Path, target: Path) -> None:
    try:
        os.rename(whole, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A folder above is a link of the user's to another disk.
        near = target.with_name(f'.{target.name}.copied')
        _remove(near)
        shutil.copytree(whole, near, symlinks=True)
        os.sync()
        os.rename(near, target)


def _room(plans: Iterable[Plan]) -> None:
    """Looks at each disk: parts may lie on several, by links of the user's."""
    wanted = {}
    for job in plans:
        size = sum(group.size for group in job.groups)
        size -= sum(on_disk(path.lstat().st_size) for path in job.stage.rglob('*'))
        _, sizes = wanted.setdefault(job.stage.stat().st_dev, (job.stage.parent, []))
        sizes.append(max(size, 0))
    for folder, sizes in wanted.values():
        free = shutil.disk_usage(folder).free
        if any(sizes) and sum(sizes) + SPARE > free:
            raise DataError(
                f'the disk of {folder} has {amount(free)} free, {amount(sum(sizes) + SPARE)} are '
                'needed: free some, or choose another one with --to'
            )


def _unpack(label: str, groups: Sequence[Group], stage: Path, whole: Path) -> None:
    """Fills `whole`, which holds whole groups only unless its group is the part itself."""
    whole.mkdir(exist_ok=True)
    with track(f'unpacking {label}', sum(group.size for group in groups)) as advance:
        for group in groups:
            if group.name and (whole / group.name).exists():
                advance(group.size)
                continue
            folder = stage / group.name if group.name else whole
            folder.mkdir(exist_ok=True)
            for file in group.files():
                with broken_archives(f'{label}: {file.name}'):
                    _write(file, folder / file.name)
                advance(on_disk(file.size))
            if group.name:
                os.sync()
                os.rename(folder, whole / group.name)


def _write(file: Member, path: Path) -> None:
    # An earlier start may have left half of it; after a power cut, zeros of the right length.
    if path.exists() and _same(file, path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open() as stream, open(path, 'wb') as out:
        while chunk := stream.read(CHUNK):
            out.write(chunk)


def _same(file: Member, path: Path) -> bool:
    with file.open() as stream, open(path, 'rb') as there:
        while chunk := stream.read(CHUNK):
            if there.read(len(chunk)) != chunk:
                return False
        return not there.read(1)
