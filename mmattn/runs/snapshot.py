"""The code as it is now, copied: what runs later does not depend on what is changed since."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import provenance

PACKAGE = Path(__file__).resolve().parents[1]


def make(folder: str | Path, package: str | Path = PACKAGE) -> Path:
    """Copy the package with its configs and tools, unless the same code is there already.

    A checkout becomes a clone at the same commit, with what is not committed, so that a training
    finds the same commit and differences in it (`provenance.code`). Files outside of
    `provenance.SOURCES` are as committed. An installed package is copied as it is.

    Args:
        folder (str or Path): Holds the copies.
        package (str or Path): The folder `mmattn` to copy.

    Returns:
        Path: The folder that holds `mmattn`, for PYTHONPATH.

    Raises:
        OSError: if it cannot be copied.
    """
    root = Path(package).parent
    commit, diff = provenance.code(root)
    if commit is None:
        # Installed: nothing changes it but another installation, which has another time.
        name = f'installed-{max(path.stat().st_mtime_ns for path in Path(package).rglob("*"))}'
    else:
        name = f'{commit[:12]}-{diff[:12] if diff else "clean"}'
    target = Path(folder).resolve() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix='.', dir=target.parent))
    try:
        if commit is None:
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(package, scratch / 'code' / 'mmattn', ignore=ignore)
        else:
            _clone(root, scratch / 'code')
        try:
            os.rename(scratch / 'code', target)
        except OSError:
            if not target.is_dir():  # another driver was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _clone(root: Path, target: Path) -> None:
    def git(*args: str, cwd: Path = root) -> bytes:
        try:
            return subprocess.run(
                ['git', *args], cwd=cwd, capture_output=True, check=True, stdin=subprocess.DEVNULL
            ).stdout
        except subprocess.CalledProcessError as error:
            raise OSError(f'git {args[0]}: {error.stderr.decode().strip()}') from error

    git('clone', '--quiet', '--depth', '1', root.as_uri(), str(target))
    changed = git('diff', 'HEAD', '--name-only', '-z', '--no-renames', '--', *provenance.SOURCES)
    new = git('ls-files', '-z', '--others', '--exclude-standard', '--', *provenance.SOURCES)
    for name in filter(None, (changed + new).split(b'\0')):
        source, copy = root / os.fsdecode(name), target / os.fsdecode(name)
        copy.unlink(missing_ok=True)
        if source.is_file() or source.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
