"""What the fuzzing tests share: how many cases, and bytes with a few changes.

    MMATTN_FUZZ=20000 python -m pytest tests -k fuzz

tries that many of each kind, others every time; without it, as many as take seconds, the same ones.
"""

import os

from hypothesis import settings
from hypothesis import strategies as st

COUNT = int(os.environ.get('MMATTN_FUZZ', 0))


def cases(number):
    """Settings of a test that tries so many by default."""
    return settings(max_examples=COUNT or number, derandomize=not COUNT)


CHANGES = st.lists(
    st.tuples(st.sampled_from(('put', 'drop', 'add', 'cut')), st.floats(0, 1), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


def changed(data, changes):
    """Bytes after `CHANGES`."""
    data = bytearray(data)
    for kind, where, byte in changes:
        place = int(where * max(len(data) - 1, 0))
        if kind == 'add' or not data:
            data.insert(place, byte)
        elif kind == 'put':
            data[place] = byte
        elif kind == 'drop':
            del data[place]
        elif byte < 64:
            del data[place:]
    return bytes(data)


# What JSON and YAML may hold where something else is expected.
ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 9),
        st.sampled_from((2**63, -(2**70), 10**400, 1e308, -0.0, 0.5)),
        st.sampled_from(
            ('', '..', '/', '\0', '\x1b[2J', '\ud800', 'é\u202e', '=1+1', '<script>', '[x]')
        ),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(item, above=()):
    """The paths of all values in a nest of dicts and lists."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item)
    for key, value in pairs:
        yield (*above, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*above, key))


def put(item, changes):
    """Puts values at places: [(path, value)]; an earlier one may have taken a place away."""
    for (*above, last), value in changes:
        inner = item
        try:
            for key in above:
                inner = inner[key]
            inner[last] = value
        except (KeyError, IndexError, TypeError):
            continue


def tree(folder):
    """All files and folders below a folder, with the contents of files."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob('*'))
    }
