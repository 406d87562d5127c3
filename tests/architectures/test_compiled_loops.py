"""Where compiled loops are kept, when they are compiled, and what happens where they cannot be."""

import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from architectures.kernels.compiled import Loop
from stages.training.recurrent_loops import compile_missing_loops
from tests.support.checkout import ROOT, Checkout

COMPARE_WITH_PYTORCH = """
import sys, torch
from architectures.cells.elman import Elman

x_BTF, zeros_BH = torch.randn(64, 5, 3), torch.zeros(64, 8)
for activation in sys.argv[1:]:
    layer = Elman(3, 8, activation)
    with torch.no_grad():
        assert layer.is_compiled(x_BTF)
        h_BTH, _ = layer(x_BTF)
        expected_TBH, _ = layer.run(x_BTF.transpose(0, 1), (zeros_BH,), None)
    assert torch.allclose(h_BTH.transpose(0, 1), expected_TBH, atol=1e-5), activation
print("numba.np.arrayobj" in sys.modules)
"""

TRAIN_WITHOUT = """
import sys, torch
from architectures.cells.elman import Elman
from architectures.kernels.loading import find_obstacle

layer, x_BTF = Elman(3, 8), torch.randn(64, 5, 3)
assert not layer.is_compiled(x_BTF)
layer(x_BTF)[0].sum().backward()
assert all(weight.grad is not None for weight in layer.parameters())
print(find_obstacle())
"""

PRINT_BITS = """
import hashlib, torch
from architectures.cells.gru import GRU
from architectures.kernels.compiled import find_processor

torch.manual_seed(0)
layer, x_BTF = GRU(5, 20), torch.randn(128, 6, 5, requires_grad=True)
assert layer.is_compiled(x_BTF)
h_BTH, (last_BH,) = layer(x_BTF)
gates, states = h_BTH.grad_fn.arguments[-2:]
derivatives = torch.autograd.grad((h_BTH * torch.randn_like(h_BTH)).sum(), [x_BTF, *layer.parameters()])
arrays = [gates, states, *(tensor.detach().numpy() for tensor in (h_BTH, last_BH, *derivatives))]
digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays))
print(find_processor().name, digest.hexdigest())
"""


def run_python(script: str, *arguments: str, **environment: str) -> str:
    """What a script prints that a new process runs."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def list_loops(folder: Path) -> list[str]:
    """The names of the loops in a folder."""
    return sorted(file.name.rpartition("-")[0] for file in folder.glob("*.loop"))


def read_loops_of_trials(checkout: Checkout) -> list[str]:
    """Which loops each trial was trained by."""
    return sorted(
        json.loads(file.read_text())["recurrent_loops"] for file in checkout.file("trials/demo").glob("*/trial.json")
    )


@pytest.mark.long
def test_a_run_compiles_what_it_lacks_or_says_that_pytorch_trains(
    fresh: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "loops"
    fresh.settings(grid={"seeds": [0], "architectures": {"simple_rnn": {"units": [4]}}}, runner__kind="local")
    said = fresh.recast("run", NUMBA_CACHE_DIR=str(folder))
    assert "compiled 2 loops of recurrent layers in" in said
    assert f"they are kept in {folder}" in said
    assert list_loops(folder) == ["backward-elman-tanh", "forward-elman-tanh"]
    assert read_loops_of_trials(fresh) == ["compiled"]
    assert "are compiled; 2 loops" in fresh.recast("doctor", NUMBA_CACHE_DIR=str(folder))

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    compile_missing_loops([Loop("forward", "elman", "tanh"), Loop("backward", "elman", "tanh")])
    assert "".join(capfd.readouterr()) == "", "nothing is said where all are kept"

    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    fresh.settings(grid__seeds=[0, 1])
    said = fresh.recast("run", NUMBA_CACHE_DIR=str(open_to_all))
    assert said.count("PyTorch's loops") == 1
    assert f"`chmod o-w {open_to_all}`" in said
    assert read_loops_of_trials(fresh) == ["compiled", "pytorch"]
    assert not list(open_to_all.iterdir())
    said = fresh.recast("doctor", status=1, NUMBA_CACHE_DIR=str(open_to_all))
    assert "recurrent layers use PyTorch's loops" in said


def test_loops_that_different_processes_have_compiled_are_kept_apart_in_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads:
        list(threads.map(partial(run_python, COMPARE_WITH_PYTORCH, NUMBA_CACHE_DIR=str(tmp_path)), ("relu", "tanh")))
    assert list_loops(tmp_path) == ["forward-elman-relu", "forward-elman-tanh"]
    for order in (("tanh", "relu"), ("relu", "tanh")):
        has_compiler = run_python(COMPARE_WITH_PYTORCH, *order, NUMBA_CACHE_DIR=str(tmp_path)).strip()
        assert has_compiler == "False", "kept loops are loaded without Numba's compiler"
    assert list_loops(tmp_path) == ["forward-elman-relu", "forward-elman-tanh"]


@pytest.mark.parametrize("package", ["llvmlite", "numba"])
def test_where_the_compiler_cannot_be_loaded_pytorch_trains(package: str, tmp_path: Path) -> None:
    broken = tmp_path / package / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("raise OSError('libLLVM.so: cannot open')")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    assert run_python(TRAIN_WITHOUT, PYTHONPATH=path).strip() == "OSError: libLLVM.so: cannot open"


@pytest.mark.long
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have other widths")
def test_the_bits_do_not_depend_on_the_width_of_the_vectors(tmp_path: Path) -> None:
    narrow = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+avx,+fma,-avx2,-avx512f"}
    here, digest = run_python(PRINT_BITS).split()
    there, narrow_digest = run_python(PRINT_BITS, NUMBA_CACHE_DIR=str(tmp_path), **narrow).split()
    assert there == "x86-64" != here
    assert digest == narrow_digest
