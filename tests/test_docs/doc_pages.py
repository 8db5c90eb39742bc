"""The pages of the documentation and the blocks of code in them.

A block of `bash` or `python` is run by a test, unless a comment before it says otherwise:

    <!-- run: slow -->                     run, among the tests that take longer
    <!-- run: slow, needs numpy -->        the same, if that module is there
    <!-- run: no, needs ImageNet -->       only looked at: files are there, options are right
    <!-- example: my_gate.py -->           a file that a test of its own writes and uses
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PATTERNS = ('*.md', 'docs/**/*.md', 'configs/**/*.md')
PROGRAMS = ('python', 'bash', 'pip', 'uv')
SHELLS = ('bash', 'shell', 'sh', 'console')
COMMENT = re.compile(r'<!--\s*(run|example):\s*(.*?)\s*-->', re.S)


def pages():
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return sorted(path for path in found if '_build' not in path.parts)


def tokens(text):
    return MarkdownIt('commonmark').enable('table').parse(text)


@dataclass(frozen=True)
class Block:
    """A block of code; `mark` is 'run', 'slow', 'no' or 'example', `words` its reason or file."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    words: str

    @property
    def name(self):
        return f'{self.page}:{self.line}'


def _marked(comment):
    if comment is None:
        return 'run', ''
    kind, words = comment
    if kind == 'example':
        return 'example', words
    mark, _, reason = words.partition(',')
    return mark.strip(), reason.strip()


def blocks_of(text, page):
    """All blocks with a language, and indented ones that are commands by their first word."""
    found, comment = [], None
    for token in tokens(text):
        if token.type == 'html_block' and (match := COMMENT.search(token.content)):
            comment = match.groups()
            continue
        language = token.info.split()[0] if token.type == 'fence' and token.info else ''
        if token.type == 'code_block' and token.content.startswith(('python ', 'pip ', 'bash ')):
            language = 'bash'
        language = 'bash' if language in SHELLS else language
        if language:
            mark, words = _marked(comment)
            found.append(Block(page, token.map[0] + 1, language, token.content, mark, words))
        comment = None
    return found


def commands_in_lines(text):
    """Commands that stand in a sentence, between backticks."""
    for token in tokens(text):
        for child in token.children or ():
            words = child.content.split()
            tool = words and words[0].startswith('tools/') and words[0].endswith(('.py', '.sh'))
            if child.type == 'code_inline' and len(words) > 1 and (tool or words[0] in PROGRAMS):
                program = 'python' if words[0].endswith('.py') else 'bash'
                yield f'{program} {child.content}' if tool else child.content


def blocks(language):
    return [
        block
        for path in pages()
        for block in blocks_of(path.read_text(encoding='utf-8'), str(path.relative_to(ROOT)))
        if block.language == language
    ]
