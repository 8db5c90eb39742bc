"""What a model's gates look at on pictures: from a config, a checkpoint and files to figures."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.config import Config

from mmattn.runs.errors import UserError

from .attention_figure import Shot, attention_figure, save_parts
from .gates import gates_of, recording, select
from .outputs import folder
from .panels import panels
from .pictures import enter_scope, load_model, look, picture


class Network:
    """A config's model with a checkpoint's weights, and those of its gates that are looked at.

    Args:
        cfg (Config): Of any of the three codebases.
        path (str or Path): The checkpoint.
        stages, names (sequence): As `gates.select` takes them.
        device (str): Where it runs.

    Raises:
        UserError: as `load_model`, or if there is no such gate.
    """

    def __init__(
        self,
        cfg: Config,
        path: str | Path,
        stages: Sequence[int] = (),
        names: Sequence[str] = (),
        device: str = 'cpu',
    ) -> None:
        self.cfg, self.path = cfg, Path(path)
        self.title = Path(cfg.filename).stem if cfg.filename else self.path.stem
        self.model = load_model(cfg, path, device)
        try:
            self.places = select(gates_of(self.model), stages, names)
        except ValueError as error:
            raise UserError(f'{self.title}: {error}') from None

    def look(self, source: str, size: tuple[int, int] | None = None) -> tuple[str, Shot]:
        """A picture's name, and what the gates did with it.

        Raises:
            UserError: as `pictures.picture`, or if a gate does not run on pictures (one of a head
                that sees regions).
        """
        enter_scope(self.cfg)
        seen_picture = picture(self.cfg, source, size)
        inputs, run = look(self.model, seen_picture)
        with recording(self.places) as seen:
            run()
        silent = [place.name for place in self.places if place.name not in seen]
        if silent:
            raise UserError(f'{silent[0]} does not run on whole pictures')
        rows = [(place, seen[place.name]) for place in self.places]
        shot = Shot(self.title, seen_picture.rgb, tuple(inputs.shape[-2:]), rows)
        return seen_picture.name, shot


def draw(
    networks: Sequence[Network],
    sources: Sequence[str],
    out: str | Path,
    size: tuple[int, int] | None = None,
    keys: Iterable[str] | None = None,
    parts: bool = True,
    stretch: bool = False,
) -> list[Path]:
    """Write a figure for each picture, `<out>/<picture>.png`; returns their paths.

    With `parts`, the single maps go below `<out>/<picture>/`, in a folder a network. `stretch` is
    that of `attention_figure`. A second picture of a name is written as `<picture>-2`.
    """
    out, written = Path(out), []
    folder(out)
    keys, names = list(keys or ()), Counter()
    for source in sources:
        looks = [network.look(source, size) for network in networks]
        name, shots = looks[0][0], [shot for _, shot in looks]
        _check_keys(keys, shots)
        names[name] += 1
        name += f'-{names[name]}' if names[name] > 1 else ''
        path = out / f'{name}.png'
        attention_figure(shots, keys, stretch).savefig(path)
        written.append(path)
        if parts:
            for number, shot in enumerate(shots):
                own = '' if len(shots) == 1 else f'{number + 1}-{_as_name(shot.title)}'
                save_parts(out / name / own, shot, stretch)
    return written


def _check_keys(keys, shots):
    known = dict.fromkeys(key for shot in shots for _, seen in shot.rows for key in panels(seen))
    for key in keys:
        if key not in known:
            raise UserError(f'no map is called {key}; there are {", ".join(known)}')


def _as_name(title):
    """A title as a part of a file's name."""
    return re.sub(r'[^\w.+-]+', '_', title)
