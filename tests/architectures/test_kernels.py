"""The compiled loops of the recurrent layers against the loops of PyTorch's operations, in double precision."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from architectures.cells.elman import Elman
from architectures.cells.gru import GRU, GRUResetBefore
from architectures.cells.jordan import Jordan
from architectures.cells.layer import MIN_COMPILED_UNITS, MIN_COMPILED_WINDOWS, RecurrentLayer
from architectures.cells.loops import Activation
from architectures.cells.lstm import LSTM, PeepholeLSTM
from architectures.kernels import blocks
from architectures.kernels.blocks import LANES

LAYERS: list[type[RecurrentLayer]] = [Elman, Jordan, LSTM, PeepholeLSTM, GRU, GRUResetBefore]

# Windows on both sides of a tile's end, and sizes on both sides of a block's.
SHAPES = st.tuples(
    st.integers(MIN_COMPILED_WINDOWS, 2 * LANES + 5),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(MIN_COMPILED_UNITS, 36),
)


def run_layer(
    layer: RecurrentLayer, inputs: list[Tensor], factors: list[Tensor], mask_BH: Tensor | None, reads_steps: bool
) -> list[Tensor]:
    """The outputs, the state after the last step, and the derivatives of a sum of all, or of the state alone."""
    x_BTF, *state = (tensor.requires_grad_() for tensor in inputs)
    if layer.is_compiled(x_BTF):
        from architectures.kernels.layer_loop import KernelLoop

        h_BTH, *last = KernelLoop.apply(
            True, layer.cell, layer.activation, x_BTF, *layer.sum_weights(), mask_BH, *state
        )
    else:
        h_TBH, last = layer.run(x_BTF.transpose(0, 1), tuple(state), mask_BH)
        h_BTH = h_TBH.transpose(0, 1)
    read = [h_BTH, *last] if reads_steps else [*last]
    loss = sum((factor * tensor).sum() for factor, tensor in zip(factors[-len(read) :], read, strict=True))
    return [h_BTH, *last, *torch.autograd.grad(loss, [x_BTF, *state, *layer.parameters()])]


def compare_with_loop(
    kind: type[RecurrentLayer],
    shape: tuple[int, int, int, int],
    activation: Activation,
    has_mask: bool,
    reads_steps: bool,
    seed: int,
) -> None:
    B, T, F, H = shape
    torch.manual_seed(seed)
    layer = kind(F, H, activation)
    inputs = [torch.randn(B, T, F), *(torch.randn(B, H) for _ in range(kind.state_tensors))]
    factors = [torch.randn(B, T, H), *(torch.randn(B, H) for _ in range(kind.state_tensors))]
    mask_BH = functional.dropout(torch.ones(B, H), 0.4) if has_mask else None
    assert layer.is_compiled(inputs[0])
    computed = run_layer(layer, [tensor.clone() for tensor in inputs], factors, mask_BH, reads_steps)
    layer = layer.double()
    assert not layer.is_compiled(inputs[0].double())
    expected = run_layer(
        layer,
        [tensor.double() for tensor in inputs],
        [tensor.double() for tensor in factors],
        None if mask_BH is None else mask_BH.double(),
        reads_steps,
    )
    for ours, theirs in zip(computed, expected, strict=True):
        np.testing.assert_allclose(
            ours.detach(), theirs.detach(), rtol=2e-4, atol=2e-5 * (1 + theirs.abs().max().item())
        )


@pytest.mark.parametrize("kind", LAYERS)
@settings(max_examples=25)
@given(shape=SHAPES, has_mask=st.booleans(), reads_steps=st.booleans(), seed=st.integers(0, 1000))
@example(shape=(LANES, 3, 16, 16), has_mask=False, reads_steps=True, seed=0)
def test_a_compiled_loop_computes_what_the_loop_of_operations_does(
    kind: type[RecurrentLayer], shape: tuple[int, int, int, int], has_mask: bool, reads_steps: bool, seed: int
) -> None:
    compare_with_loop(kind, shape, "tanh", has_mask, reads_steps, seed)


@pytest.mark.long
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("kind", LAYERS)
def test_other_activations_are_compiled_too(kind: type[RecurrentLayer], activation: Activation) -> None:
    for seed in range(10):
        compare_with_loop(kind, (70, 5, 7, 9), activation, bool(seed % 2), bool(seed % 3), seed)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_window_alone_has_the_bits_that_it_has_in_a_batch(kind: type[RecurrentLayer]) -> None:
    torch.manual_seed(0)
    layer, x_BTF = kind(5, 9).eval(), torch.randn(LANES + 7, 12, 5)
    with torch.no_grad():
        h_BTH, _ = layer(x_BTF)
        alone, _ = layer(x_BTF[LANES + 3 :][:1])
        nothing, _ = layer(x_BTF[:0])
    assert torch.equal(alone[0], h_BTH[LANES + 3])
    assert nothing.shape == (0, 12, 9)
    trained, _ = layer(x_BTF)
    assert torch.equal(trained, h_BTH), "what is kept for the derivatives changes no value"


@pytest.mark.parametrize("kind", LAYERS)
def test_a_value_that_is_not_a_number_stays_one(kind: type[RecurrentLayer]) -> None:
    x_BTF = torch.zeros(MIN_COMPILED_WINDOWS, 3, 4)
    x_BTF[5, 1, 2] = torch.nan
    h_BTH, _ = kind(4, 6)(x_BTF)
    assert h_BTH[5, 1:].isnan().all()
    assert not h_BTH[:5].isnan().any()
    assert not h_BTH[5, 0].isnan().any()


def test_the_activations_are_exact_to_some_units_in_the_last_place() -> None:
    from numba import njit

    x = np.concatenate([np.linspace(-20, 20, 200_001), [0.0, np.inf, -np.inf, 1e-30, 3e38]]).astype(np.float32)
    exact = {"tanh": np.tanh(x.astype(np.float64)), "sigmoid": 1 / (1 + np.exp(-x.astype(np.float64)))}
    for name, expected in exact.items():
        activation = blocks.ACTIVATIONS[name][0]

        @njit
        def apply(values, activation=activation):  # type: ignore[no-untyped-def]
            return np.array([activation(value) for value in values])

        assert np.abs(apply(x) - expected).max() < 4e-7, name
