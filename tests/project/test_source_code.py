"""The digest of source code: what changes it, what does not, and that it is the same under every Python."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from problems.errors import RecastError
from project.source_code import PACKAGES, ROOT, digest_source, find_imported_modules, list_modules, read_source

SOURCE = '''
"""A module."""

import math
from collections import abc, deque

LIMIT = 3
"""An attribute."""


class Cell:
    """A class."""

    def forward(self, x):
        """A method,
        described in two lines."""
        # It is doubled.
        text = """
  a

  b"""
        return x * 2, f"{x:{'.3f'}} # {self!r}", text
'''


def digest_text(text: str) -> str:
    source = read_source(text)
    return hashlib.sha256(repr((sorted(map(repr, source.imports)), source.code)).encode()).hexdigest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        # It is doubled.\n", "\n\n  # twice\n"),
        ('self!r}", text', 'self!r}", text  # and more'),
        ('"""A module."""', '"""Another\n\nmodule."""'),
        ('"""A module."""', ""),
        ('"""An attribute."""', "'A limit.'"),
        ('"""A class."""', '"""A class\n\n    of cells.\n    """'),
        ('described in two lines."""', 'described\n\n   in three lines."""  # as a comment says'),
        ("import math\nfrom collections import abc, deque\n", "from collections import deque, abc\nimport math\n"),
        ("from collections import abc, deque\n", "from collections import (\n    abc,\n    deque,  # a queue\n)\n"),
        ("LIMIT = 3\n", "LIMIT = 3   \n\n\n"),
    ],
)
def test_comments_blank_lines_docstrings_and_the_order_of_imports_do_not_count(old: str, new: str) -> None:
    assert old in SOURCE
    assert digest_text(SOURCE.replace(old, new)) == digest_text(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * 2", "x * 3"),
        ("        return", "    return"),
        ("LIMIT = 3", "LIMIT = 3\ny = 1"),
        ("import math\n", ""),
        ("import math\n", "import math as m\n"),
        ("abc, deque", "abc, deque as queue"),
        ("# {self!r}", "## {self!r}"),
        ("  a\n\n  b", "  a\n  b"),
        ("  a\n\n  b", "  a \n\n  b"),
        ('        text = """', '        text = f"""'),
    ],
)
def test_any_other_change_counts(old: str, new: str) -> None:
    assert old in SOURCE
    assert digest_text(SOURCE.replace(old, new)) != digest_text(SOURCE)


def test_the_digest_of_a_text_is_the_same_under_every_python() -> None:
    """Versions of Python differ in how they take an f-string apart; a key that machines share must not."""
    digest = hashlib.sha256(read_source(SOURCE).code.encode()).hexdigest()
    assert digest == "31681b27ddbf1da0a5672a92fccbca59456ba3dd44c66ae0d1f91ebb1e8442a9"


def find_other_pythons() -> list[str]:
    """Pythons of other versions on the path, or where version managers install them: side by side."""
    names = [f"python3.{minor}" for minor in (11, 12, 13, 14) if minor != sys.version_info.minor]
    installed = [next(Path(sys.base_prefix).parent.glob(f"*/bin/{name}"), None) or shutil.which(name) for name in names]
    return [str(path) for path in installed if path]


OTHER_PYTHONS = find_other_pythons()


@pytest.mark.skipif(not OTHER_PYTHONS, reason="this machine has no other Python")
@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_another_python_computes_the_same_digest(python: str) -> None:
    starts = ("stages.training.bundle", "architectures.combined")
    script = f"from project.source_code import digest_source; print(digest_source({starts!r}))"
    answer = subprocess.run([python, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode == 127:
        pytest.skip(f"{python} starts no Python")
    assert answer.stdout.strip() == digest_source(starts), answer.stderr


# Imports


def write_modules(root: Path, modules: dict[str, str]) -> Path:
    """Write modules, by their names with dots, into packages below a new folder."""
    root.mkdir()
    for name, text in modules.items():
        file = root.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in [*file.relative_to(root).parents][:-1]:
            (root / folder / "__init__.py").touch()
        file.write_text(text)
    return root


MODULES = {
    "stages.start": "from stages import near, constants\nimport torch\ndef f():\n    from stages.inner import g\n",
    "stages.near": "import problems.deep as deep\n",
    "stages.constants": "X = 1\n",
    "stages.inner": "",
    "problems.deep": "from problems.deepest import Y as Z\n",
    "problems.deepest": "Y = 1\n",
    "stages.other": "",
}


@pytest.mark.parametrize("changed", MODULES)
def test_a_module_counts_for_all_that_import_it(tmp_path: Path, changed: str) -> None:
    """Directly, through others, within a function, and under another name."""
    before = write_modules(tmp_path / "before", MODULES)
    after = write_modules(tmp_path / "after", MODULES | {changed: MODULES[changed] + "W = 2\n"})
    digests = [digest_source(["stages.start"], root=root) for root in (before, after)]
    assert (digests[0] != digests[1]) == (changed != "stages.other")
    assert find_imported_modules(["stages.start"], root=before) == set(MODULES) - {"stages.other"}


def test_where_a_module_is_does_not_count(tmp_path: Path) -> None:
    moved = {
        "stages.sub.start": MODULES["stages.start"].replace("stages", "learning.sub"),
        "learning.sub.near": MODULES["stages.near"].replace("problems.deep", "project.a.b.deep"),
        "learning.sub.constants": MODULES["stages.constants"],
        "learning.sub.inner": "",
        "project.a.b.deep": MODULES["problems.deep"].replace("problems", "learning"),
        "learning.deepest": MODULES["problems.deepest"],
    }
    before = digest_source(["stages.start"], root=write_modules(tmp_path / "before", MODULES))
    assert digest_source(["stages.sub.start"], root=write_modules(tmp_path / "after", moved)) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from stages import near, constants", "from stages import near as n, constants"),
        ("from stages import near, constants", "from stages import near"),
        ("import torch", "import numpy"),
        ("from stages.inner import g", "from stages.inner import h"),
        ("from stages.inner import g", "from stages.other import g\n    b = 1"),
    ],
)
def test_what_is_imported_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in MODULES["stages.start"]
    changed = MODULES | {"stages.start": MODULES["stages.start"].replace(old, new)}
    before, after = write_modules(tmp_path / "before", MODULES), write_modules(tmp_path / "after", changed)
    assert digest_source(["stages.start"], root=before) != digest_source(["stages.start"], root=after)


def test_modules_that_decide_nothing_are_not_followed(tmp_path: Path) -> None:
    before = write_modules(tmp_path / "before", MODULES)
    changed = MODULES | {"problems.deep": "A = 1\n", "problems.deepest": "B = 2\n", "stages.inner": "C = 3\n"}
    after = write_modules(tmp_path / "after", changed)
    ignored = ("problems", "stages.inner")
    assert digest_source(["stages.start"], ignored, before) == digest_source(["stages.start"], ignored, after)
    assert find_imported_modules(["stages.start"], ignored, before) == {
        "stages.start",
        "stages.near",
        "stages.constants",
    }
    # "stages.in" is not a package that holds "stages.inner".
    assert "stages.inner" in find_imported_modules(["stages.start"], ["stages.in"], before)


def test_a_package_stands_for_all_of_its_modules(tmp_path: Path) -> None:
    root = write_modules(tmp_path / "root", MODULES)
    every = {*MODULES, "stages", "problems"}
    assert find_imported_modules(["stages", "problems"], root=root) == every == set(list_modules(root))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"stages.start": "from stages import a\n", "stages.a": "import stages.start\n"}, "import each other: stages"),
        ({"stages.start": "from .inner import g\n"}, r"from \.inner import g: write the full name"),
        ({"stages.start": "import stages.missing\n"}, r"missing\.py: the project does not have a module stages\.miss"),
        ({"stages.other": ""}, "does not have a module stages.start"),
    ],
)
def test_code_that_cannot_be_followed_is_an_error(tmp_path: Path, modules: dict[str, str], message: str) -> None:
    with pytest.raises(RecastError, match=message):
        digest_source(["stages.start"], root=write_modules(tmp_path / "root", modules))


def test_the_whole_project_can_be_followed() -> None:
    """No module is imported by a relative name, and no two import each other."""
    modules = find_imported_modules(PACKAGES)
    assert {"project.source_code", "stages.training.fit", "learning.answers"} <= modules == set(list_modules())
    assert len(digest_source(PACKAGES)) == 64
