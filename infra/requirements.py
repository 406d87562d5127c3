"""Write requirements.lock: every version, pinned, for Python 3.11 to 3.13, on any system.

python -m infra.requirements
"""

import re
import subprocess
import sys
from pathlib import Path

from project.atomic import replaced_file

HEADER = """\
# Every version, pinned, for Python 3.11 to 3.13. Made by `make lock`; do not edit.
# CUDA's own packages are left to torch: a CUDA build pins exactly those it needs, a CPU build needs none.
"""


def main() -> None:
    """Resolve pyproject.toml for every Python and system that it allows."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--no-emit-index-url", "--no-header", "--no-annotate"]
    options = ["--quiet", "--universal", "--python-version", "3.11", "--extra", "dev", "--extra", "cluster"]
    resolved = subprocess.run([*uv, *options, "pyproject.toml"], capture_output=True, text=True, check=True).stdout
    # nvidia-ml-py is no part of CUDA: MLflow reads the GPUs' metrics by it, where there is a driver.
    kept = [line for line in resolved.splitlines() if not re.match(r"(?!nvidia-ml-py==)(nvidia|cuda|triton)", line)]
    with replaced_file(Path("requirements.lock")) as temporary:
        temporary.write_text(HEADER + "\n".join(kept) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
