"""The one place where checkpoints are read: as data, in each format that they come in.

`install` puts it where mmengine reads its own (`load_from`, `resume`, `init_cfg`, downloads), which
falls back to running a file's code. Formats: PyTorch's archive and the single pickle before it,
safetensors.
"""

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlparse

import mmengine.runner.checkpoint as theirs
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from . import pickled
from .errors import UserError

Device = str | torch.device | dict | Callable | None
HELP = 'if whoever made it may act as you, --trust-checkpoint lets it run'


class CheckpointError(UserError):
    """A checkpoint that is not loaded, in one line that says why."""


class Damaged(CheckpointError):
    """It is no whole checkpoint: cut off, empty, of another format."""


class Unsafe(CheckpointError):
    """It wants more than data."""


class WrongHash(CheckpointError):
    """Its contents are not those that were published."""


def load(
    path: str | os.PathLike,
    trust: bool | None = None,
    map_location: Device = 'cpu',
    sha256: str = '',
) -> dict[str, Any]:
    """The contents of a checkpoint file.

    Args:
        path (str or PathLike): A local file.
        trust (bool, optional): Let the file run whatever code it holds, as torch.load does. None is
            what the command line says (`install`), else no.
        map_location (str, device, dict or callable, optional): Where to put tensors, as for
            torch.load; None is the CPU.
        sha256 (str): What the contents' hash must begin with, beside what `expected_hashes` finds.

    Returns:
        dict: As it was saved; of a safetensors file `state_dict` and `meta`.

    Raises:
        FileNotFoundError, OSError: if the file cannot be read.
        Unsafe, Damaged, WrongHash: if it wants more than data, is not whole, or is another one.
    """
    path = Path(path)
    check_hash(path, sha256)
    if path.suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    if _trust if trust is None else trust:
        print_log(f'{path} is trusted: it may run code', logger='current')
        return torch.load(path, map_location=map_location or 'cpu', weights_only=False)
    with open(path, 'rb') as file:
        return _checked(path, _read(file, str(path), map_location))


def load_meta(path: str | os.PathLike, trust: bool | None = None) -> dict[str, Any]:
    """The `meta` of a checkpoint, read without its tensors; raises as `load` does."""
    if (_trust if trust is None else trust) or Path(path).suffix == '.safetensors':
        return load(path, trust).get('meta', {})
    with open(path, 'rb') as file:
        return _checked(path, _read(file, str(path), 'meta')).get('meta', {})


def _checked(path, checkpoint):
    if not isinstance(checkpoint, dict):
        raise Damaged(f'{path} holds no dict of weights but a {type(checkpoint).__name__}')
    meta = checkpoint.get('meta')
    if 'meta' in checkpoint and not isinstance(meta, dict):
        raise Damaged(f'{path}: its meta is no dict')
    if meta and meta.pop('config', None) is not None:
        # Runner.resume would run this text as a config file. mmengine itself writes 'cfg'.
        print_log(f'{path}: the config inside is left out, as it is code', logger='current')
    return checkpoint


# ---------------------------------------------------------------------------------- hashes


def expected_hashes(path: str | os.PathLike) -> list[str]:
    """What the SHA-256 of a file must begin with, in hexadecimal digits.

    Published weights carry it in their name (`resnet50-0676ba61.pth`) or in a file beside them
    (`resnet50.pth.sha256`, as sha256sum writes it). Eight digits that are a date are no hash.

    Raises:
        WrongHash: if the file beside holds no hash.
    """
    path = Path(path)
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', path.name)
    hashes = [found[1]] if found and not re.fullmatch(r'20\d\d[01]\d[0-3]\d', found[1]) else []
    beside = path.with_name(path.name + '.sha256')
    if beside.is_file():
        words = beside.read_text(errors='replace')[:4096].split()
        if not words or not re.fullmatch(r'[0-9a-fA-F]{64}', words[0]):
            raise WrongHash(f'{beside} holds no SHA-256')
        hashes.append(words[0].lower())
    return hashes


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: str | os.PathLike, sha256: str = '') -> None:
    """Raises WrongHash if a file is not the one that its name, its .sha256 or `sha256` says."""
    wanted = [*expected_hashes(path), *([sha256.lower()] if sha256 else [])]
    found = sha256_of(path) if wanted else ''
    for hash in wanted:
        if not found.startswith(hash):
            raise WrongHash(
                f'{path} is not what was published: its SHA-256 is {found[: len(hash)]}..., not '
                f'{hash}; load it again from its source (a file of yours: rename it)'
            )


# --------------------------------------------------------------------------------- formats


# What a reader of pickles and Python's of archives say of one that is not whole.
DAMAGE = (pickled.PickleError, zipfile.BadZipFile, EOFError, struct.error) + (
    UnicodeError,
    NotImplementedError,
    OverflowError,
)


def _read(file: BinaryIO, name: str, map_location: Device) -> Any:
    try:
        head = file.read(4)
        file.seek(0)
        if not head:
            raise EOFError('it is empty')
        if head[:2] == b'PK':
            return _read_zip(file, map_location)
        if isinstance(file, io.BytesIO):
            return _read_single(file, map_location)
        # Unlike a file, a map gives no more room to what is read than there is in the file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_single(mapped, map_location)
    except pickled.UnknownNames as error:
        names = sorted(error.names)
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        wanted = ', '.join(name[:100] for name in names[:5])
        raise Unsafe(f'{name} wants to use {wanted}{more}, which is not data; {HELP}') from error
    except DAMAGE as error:
        raise Damaged(f'{name} is no whole checkpoint: {error}') from error
    except OSError as error:
        # A place before the file's begin, which a damaged table of contents may name.
        if error.errno != errno.EINVAL:
            raise
        raise Damaged(f'{name} is no whole checkpoint: {error}') from error


def _size(file):
    file.seek(0, os.SEEK_END)
    return file.tell()


def _place(storage, location, map_location):
    """A storage on the device that `map_location` says, as torch.load understands it."""
    if isinstance(map_location, dict):
        map_location = map_location.get(location)
    if callable(map_location):
        return map_location(storage, location) or storage
    if map_location is None or torch.device(map_location).type == 'cpu':
        return storage
    holder = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),))
    return holder.to(map_location).untyped_storage()


def _storages(read, room, map_location):
    """What gives the pickle its storages.

    Args:
        read (Callable): From (key, bytes) to a storage on the CPU.
        room (int): Bytes of the file: no storage can be larger.
        map_location: As for `load`; 'meta' reads nothing.
    """
    known = {}

    def storage_of(number):
        if type(number) is not tuple or len(number) not in (5, 6) or number[0] != 'storage':
            raise pickled.PickleError('a persistent number that is no storage')
        _, kind, key, location, count = number[:5]
        if kind not in pickled.STORAGE_KINDS.values() or number[5:] not in ((), (None,)):
            raise pickled.PickleError('a storage of unknown form')
        if not (type(key) is type(location) is str) or type(count) is not int or count < 0:
            raise pickled.PickleError('a storage of unknown form')
        size = count * kind.value.itemsize
        if size > room:
            raise pickled.PickleError(f'a storage of {size} bytes in a file of {room}')
        if key not in known:
            if map_location == 'meta':
                memory = torch.UntypedStorage(size, device='meta')
            else:
                memory = _place(read(key, size), location, map_location)
            known[key] = pickled.Storage(memory, kind.value), size
        storage, before = known[key]
        if size != before:
            raise pickled.PickleError('a storage of two sizes')
        return storage._replace(dtype=kind.value)

    return storage_of, known


def _read_zip(file, map_location):
    """PyTorch's archive: data.pkl, and a stored member for each storage."""
    room = _size(file)
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if re.fullmatch(r'[^/]*/data\.pkl', name)]
        if len(pickles) != 1:
            raise pickled.PickleError('an archive without one data.pkl')
        root = pickles[0].removesuffix('data.pkl')
        if f'{root}constants.pkl' in names:
            raise pickled.UnknownNames({'a TorchScript program'})

        def member(name):
            if name not in names:
                raise pickled.PickleError(f'{name} is missing')
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise pickled.PickleError('compressed, which torch.save never does')
            return archive.read(name)

        if f'{root}byteorder' in names and member(f'{root}byteorder') != sys.byteorder.encode():
            raise pickled.PickleError('written on a machine of another byte order')

        def read(key, size):
            data = bytearray(member(f'{root}data/{key}'))
            if len(data) != size:
                raise pickled.PickleError(f'a storage of {size} bytes holds {len(data)}')
            if not data:
                return torch.UntypedStorage(0)
            return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()

        try:
            return pickled.load(
                io.BytesIO(member(pickles[0])), _storages(read, room, map_location)[0]
            )
        except (NotImplementedError, RuntimeError) as error:  # what zipfile says of odd members
            raise pickled.PickleError(str(error)) from error


# torch.save before 1.6: three pickles about the file, one with the contents, one with the keys of
# the storages, then these one after the other, each behind its number of elements.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def _read_single(file, map_location):
    room = _size(file)
    file.seek(min(257, room))
    if file.read(5) == b'ustar':
        raise pickled.UnknownNames({"torch's .tar format of 2016"})
    file.seek(0)
    if pickled.load(file) != MAGIC:
        raise pickled.PickleError('no file of torch.save')
    if pickled.load(file) != PROTOCOL:
        raise pickled.PickleError('of an unknown version')
    about = pickled.load(file)
    little = about.get('little_endian') if isinstance(about, dict) else None
    if little is not (sys.byteorder == 'little'):
        raise pickled.PickleError('written on a machine of another byte order')
    start = file.tell()
    # Once without the storages, to find where they are.
    storage_of, known = _storages(None, room, 'meta')
    contents = pickled.load(file, storage_of)
    keys = pickled.load(file)
    if map_location == 'meta':
        return contents
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise pickled.PickleError('no list of storages')
    places = {}
    for key in keys:
        if key not in known:
            raise pickled.PickleError('a storage that nobody uses')
        storage, size = known[key]
        (count,) = struct.unpack('<q', file.read(8))
        if count * storage.dtype.itemsize != size or file.tell() + size > room:
            raise pickled.PickleError('cut off in a storage')
        places[key] = file.tell()
        file.seek(size, os.SEEK_CUR)

    def read(key, size):
        if key not in places:
            raise pickled.PickleError('a storage is missing')
        here = file.tell()
        file.seek(places[key])
        data = bytearray(file.read(size))
        file.seek(here)
        return (
            torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
            if data
            else (torch.UntypedStorage(0))
        )

    file.seek(start)
    return pickled.load(file, _storages(read, room, map_location)[0])


def _load_safetensors(path, map_location):
    safetensors = safetensors_or_error()
    if not isinstance(map_location, (str, torch.device)):
        map_location = 'cpu'
    try:
        with safetensors.safe_open(path, 'pt', device=str(map_location)) as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = (file.metadata() or {}).get('mmattn', '{}')
        meta = json.loads(described)
    except FileNotFoundError:
        raise
    except Exception as error:  # its own error class, in Rust, is of no fixed name
        raise Damaged(f'{path} is no whole safetensors file: {error}') from error
    return _checked(path, dict(state_dict=state_dict, meta=meta))


def safetensors_or_error() -> Any:
    """The package, or a CheckpointError that says how to get it."""
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(
            'safetensors files need the package of that name: pip install safetensors'
        ) from None
    return safetensors


# -------------------------------------------------------------------------- where mmengine reads

_trust = False
_before = None  # mmengine's readers, while ours are in their place


def install(trust: bool | None = None) -> None:
    """Lets mmengine read every checkpoint of this process by `load`, whatever it is loaded for.

    Args:
        trust (bool, optional): Whether checkpoints may run code; None leaves it as it was (at
            first False).
    """
    global _trust, _before
    if trust is not None:
        _trust = trust
    if _before is not None:
        return
    names = ('load_from_http', '_safe_torch_load')
    _before = {**CheckpointLoader._schemes}, {n: getattr(theirs, n, None) for n in names}
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    CheckpointLoader.register_scheme(
        [r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'], load_from_store, force=True
    )
    # torchvision:// and the like find an address, and have it loaded by what stands here. OneDL's
    # mmengine reads all its own files by one function, which OpenMMLab's does not have.
    theirs.load_from_http = load_from_http
    theirs._safe_torch_load = _load_anything
    if 'open-mmlab://' in CheckpointLoader._schemes:
        CheckpointLoader.register_scheme(
            ('open-mmlab://', 'openmmlab://'), load_from_openmmlab, force=True
        )


def uninstall() -> None:
    """Puts mmengine's own readers back, if `install` has replaced them."""
    global _before
    if _before is not None:
        schemes, functions = _before
        CheckpointLoader._schemes.clear()
        CheckpointLoader._schemes.update(schemes)
        for name, function in functions.items():
            setattr(theirs, name, function)
        _before = None


def load_from_local(filename: str, map_location: Device = None) -> dict[str, Any]:
    """mmengine's reader of local files, by `load`."""
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} can not be found.')
    return load(path, map_location=map_location)


def load_from_http(
    filename: str, map_location: Device = None, model_dir: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Downloads a checkpoint once, to where torch.hub keeps them, and reads it by `load`.

    The first process downloads, the others wait. A file whose name carries its hash is kept only if
    it has that hash.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    name = os.path.basename(urlparse(filename).path)
    if not name or name.startswith('.'):
        raise CheckpointError(f'{filename} names no file')
    path = folder / name
    rank, processes = get_dist_info()
    # Where each machine has a disk of its own, the others find nothing after the wait.
    for turn in range(2 if processes > 1 else 1):
        if (rank == 0) == (turn == 0) and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            hashes = expected_hashes(path)
            torch.hub.download_url_to_file(
                filename, str(path), hashes[0] if hashes else None, progress=progress
            )
        if processes > 1 and turn == 0:
            barrier()
    return load(path, map_location=map_location)


def load_from_openmmlab(filename: str, map_location: Device = None) -> dict[str, Any]:
    """The weights that mmengine knows by name, by their address or in its own folder."""
    name = filename.split('://', 1)[1]
    name = theirs.get_deprecated_model_names().get(name, name)
    known = theirs.get_external_models()
    if name not in known:
        raise CheckpointError(f'{filename}: mmengine knows no such weights')
    if known[name].startswith(('http://', 'https://')):
        return load_from_http(known[name], map_location)
    return load_from_local(os.path.join(theirs._get_mmengine_home(), known[name]), map_location)


def load_from_store(filename: str, map_location: Device = None) -> dict[str, Any]:
    """What mmengine's other file backends give (s3, petrel), read as a local file would be."""
    return _load_anything(io.BytesIO(get_file_backend(filename).get(filename)), map_location)


def _load_anything(
    file: Any, map_location: Device = None, weights_only: bool | None = None
) -> dict[str, Any]:
    if isinstance(file, (str, os.PathLike)):
        return load(file, _trust, map_location)
    if _trust:
        return torch.load(file, map_location=map_location or 'cpu', weights_only=False)
    with contextlib.closing(file):
        return _checked('the checkpoint', _read(file, 'the checkpoint', map_location))


# ------------------------------------------------------------------------------------ converting


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    trust: bool = False,
    sha256: str = '',
    publish: bool = False,
) -> Path:
    """Writes the weights and the plain part of the meta of a checkpoint in the other format.

    Args:
        source, target (str or PathLike): One of them ends in .safetensors, the other does not.
        trust (bool), sha256 (str): As for `load`.
        publish (bool): Whether to put the first eight digits of the hash into the target's name.

    Returns:
        Path: What was written, whole or not at all.

    Raises:
        FileExistsError: if there is such a file already.
        CheckpointError: as `load` does, and for weights that are no tensors.
    """
    source, target = Path(source), Path(target)
    if (source.suffix == '.safetensors') == (target.suffix == '.safetensors'):
        raise CheckpointError('one of the two files must end in .safetensors, and only one')
    if target.exists():  # said before the work; with a hash in its name, it is known after it
        raise FileExistsError(f'{target} exists; it is left as it is')
    found = load(source, trust, sha256=sha256)
    weights = found.get('state_dict', found)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(f'{source} holds no weights, or more than tensors among them')
    meta = _plain(found.get('meta', {}) if 'state_dict' in found else {})
    half = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        if target.suffix == '.safetensors':
            # Each with memory of its own, which the format asks for.
            weights = {name: value.detach().contiguous().clone() for name, value in weights.items()}
            described = {'format': 'pt', 'mmattn': json.dumps(meta)}
            safetensors_or_error().torch.save_file(weights, half, described)
        else:
            torch.save(dict(meta=meta, state_dict=weights), half)
        if publish:
            target = target.with_name(f'{target.stem}-{sha256_of(half)[:8]}{target.suffix}')
        if target.exists():
            raise FileExistsError(f'{target} exists; it is left as it is')
        os.replace(half, target)
    finally:
        half.unlink(missing_ok=True)
    return target


def _plain(value: Any) -> Any:
    """What JSON can hold of a value: tuples become lists, arrays too, and the rest is left out."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if isinstance(key, str)}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool)) else None
