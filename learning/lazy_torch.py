"""PyTorch, loaded when it is first used.

Settings and problems read the tables of this package, and the commands that only read settings must not wait seconds
for PyTorch. `import_module` rather than an import statement keeps it so that a rule can forbid those commands PyTorch.
"""

from importlib import import_module
from typing import Any


def functional() -> Any:
    """The module `torch.nn.functional`."""
    return import_module("torch.nn.functional")


def optim() -> Any:
    """The module `torch.optim`."""
    return import_module("torch.optim")
