"""Code in the documents: its blocks, and the command lines in them."""

import re
import shlex
from typing import NamedTuple

from mmdet_diffusion.testing import REPOSITORY

BLOCK = re.compile(r'(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>[\w{}-]*)\n(?P<code>.*?)^```$',
                   re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """Of a document: a fence, with the comment above it."""

    document: str
    line: int
    language: str
    mark: str
    code: str

    def __str__(self):
        return f'{self.document}:{self.line}'


def blocks_of(path):
    text = path.read_text()
    return [Block(str(path.relative_to(REPOSITORY)), text[:match.start('code')].count('\n'), match['language'],
                  match['mark'] or '', match['code']) for match in BLOCK.finditer(text)]


BLOCKS = [block for path in sorted([REPOSITORY / 'README.md', *(REPOSITORY / 'docs').glob('*.md')])
          for block in blocks_of(path)]


def commands_of(block):
    """Command lines of a block, as words."""
    lines = re.sub(r'\\\n\s*', ' ', block.code).splitlines()
    for line in lines:
        if re.match(r'\w+=\$\(', line):  # what another program prints
            continue
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'\w+=.*', words[0]):
            words = words[1:]
        if words:
            yield words


COMMAND_LINES = [(block, words) for block in BLOCKS if block.language == 'bash' for words in commands_of(block)]
