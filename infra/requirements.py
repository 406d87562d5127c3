"""Write requirements.lock: every version, pinned, for Python 3.11 to 3.13, on any system.

python -m infra.requirements
"""

import re
import subprocess
import sys
from pathlib import Path

from project.atomic import replace_file

HEADER = """\
# Every version, pinned, for Python 3.11 to 3.13. Made by `make lock`; do not edit.
# CUDA's own packages are left to torch: a CUDA build pins exactly those it needs, a CPU build needs none.
"""


def main() -> None:
    """Resolve pyproject.toml for every version of Python and every system that it allows."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--no-emit-index-url", "--no-header", "--no-annotate"]
    options = ["--quiet", "--universal", "--python-version", "3.11", "--extra", "dev", "--extra", "cluster"]
    resolved = subprocess.run([*uv, *options, "pyproject.toml"], capture_output=True, text=True, check=True).stdout
    # nvidia-ml-py is not a part of CUDA: MLflow reads the metrics of GPUs with it, where there is a driver.
    locked = [line for line in resolved.splitlines() if not re.match(r"(?!nvidia-ml-py==)(nvidia|cuda|triton)", line)]
    with replace_file(Path("requirements.lock")) as temporary:
        temporary.write_text(HEADER + "\n".join(locked) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
