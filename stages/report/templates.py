"""The HTML templates of all pages. Each is beside the module that renders it; all share a style and macros."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

SHARED = Path(__file__).parent
"""The folder of the templates that all pages share: `style.css.jinja` and `parts.html.jinja`."""


def load_template(name: str, folder: Path) -> Template:
    """The template `name` in `folder`. A variable that it uses but does not get is an error, not an empty text."""
    return _open_environment(folder).get_template(name)


@cache
def _open_environment(folder: Path) -> Environment:
    """The environment of the templates in a folder. It keeps each template that it has compiled."""
    return Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
