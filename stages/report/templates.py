"""The HTML templates of all pages: each lies beside the module that renders it, and all share a style and macros."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

SHARED = Path(__file__).parent
"""The folder of what the pages share: `style.css.jinja` and `parts.html.jinja`."""


def load_template(name: str, folder: Path) -> Template:
    """The template `name` in `folder`. A name that a template uses and is not given is an error, not an empty text."""
    return Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    ).get_template(name)
