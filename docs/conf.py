"""The documentation site: the same Markdown that a forge shows, and pages of all public names. ``make docs``."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mmdet_diffusion  # noqa: E402

project, author = 'mmdet_diffusion', 'The mmdet_diffusion authors'
copyright = author  # noqa: A001  Sphinx's name
version = release = mmdet_diffusion.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme, html_title = 'furo', f'{project} {release}'
myst_heading_anchors = 4
napoleon_use_ivar = True
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_typehints = 'none'  # docstrings give types, with shapes and units
autodoc_preserve_defaults = True
suppress_warnings = ['ref.python']  # 'Detections' is with torch in one package and without in another

# Pages that a forge looks for in the root of the repository, by their names here.
ROOT_PAGES = dict(index='README.md', changelog='CHANGELOG.md', contributing='CONTRIBUTING.md')


def read_page(app, docname: str, source: list[str]) -> None:
    """Bring a page of the root in, and let links lead to pages of the site."""
    path = Path(app.srcdir, f'{docname}.md')
    if docname in ROOT_PAGES:
        path = ROOT / ROOT_PAGES[docname]
        app.env.note_dependency(str(path), docname=docname)
        source[0] = f'{path.read_text(encoding="utf-8")}\n{source[0]}'
    source[0] = re.sub(r'(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)',
                       lambda link: link_on_site(link, path.parent, Path(app.srcdir, docname).parent), source[0])


def link_on_site(link: re.Match, folder: Path, page_folder: Path) -> str:
    """A link of a page in ``folder`` as its page on the site has it; to a file that is not on the site, its text."""
    image, text, target, anchor = link.groups(default='')
    target = (folder / target).resolve()
    pages = {ROOT / file: ROOT / 'docs' / f'{name}.md' for name, file in ROOT_PAGES.items()}
    target = pages.get(target, target)
    if not target.is_relative_to(ROOT / 'docs'):
        return text
    return f'{image}[{text}]({os.path.relpath(target, page_folder)}{anchor})'


def skip_fields(app, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples stand in their docstrings, with shapes."""
    return True if type(member).__name__ == '_tuplegetter' else None


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect('source-read', read_page)
    app.connect('autodoc-skip-member', skip_fields)
