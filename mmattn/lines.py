"""Words of others (names of files, contents of records and checkpoints) as a line to be printed."""

import re

# What a terminal obeys, what begins a line, what turns the direction of writing or is not seen.
UNPRINTABLE = re.compile(
    r'[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]'
)
MOST = 2000


def one_line(text: object, most: int | None = MOST) -> str:
    """A text in one line that can be printed and written anywhere.

    Args:
        text (object): Whose `str` it is.
        most (int, optional): Characters after which it is cut; None leaves it as long as it is.

    Returns:
        str: with a space in the place of control characters; names of files that are no text have
        their bytes as `\\udcff`.
    """
    found = ' '.join(UNPRINTABLE.sub(' ', str(text)).split())
    found = found.encode('utf-8', 'backslashreplace').decode()
    return found if most is None or len(found) <= most else f'{found[:most]}...'


def indented(text: str) -> str:
    """As `one_line`, behind the spaces that the text begins with."""
    return ' ' * (len(text) - len(text.lstrip(' '))) + one_line(text)
