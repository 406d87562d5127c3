"""The networks of convolutions against loops over their equations, and what the TCN sees of its window."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from architectures import Network, WindowShape
from architectures.tcn import TCN, ResidualBlock
from tests.architectures.test_architectures import B, F, T, network_of, parameters, windows


def tcn_of(kernel: int, levels: int, channels: int, steps: int = T, features: int = F) -> TCN:
    shape = WindowShape(steps, features, 0, horizon=1, day=24)
    network = network_of("tcn", {"kernel": kernel, "levels": levels, "channels": channels}, shape=shape).double()
    assert isinstance(network, TCN)
    return network


def arrays(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def convolved(x_BTF: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """relu of a convolution, filter by filter where all of it lies in the window; W is (out, in, width)."""
    steps = range(x_BTF.shape[1] - W.shape[2] + 1)
    windows = [x_BTF[:, t : t + W.shape[2]].swapaxes(1, 2) for t in steps]
    return np.maximum(np.stack([(window[:, None] * W).sum(axis=(2, 3)) + b for window in windows], axis=1), 0)


def convolutions(network: Network, x_BTF: np.ndarray, pool: int) -> np.ndarray:
    weights = {name.removeprefix("convolutions."): value for name, value in arrays(network).items()}
    h = convolved(x_BTF, weights["first.weight"], weights["first.bias"])
    h = np.stack([h[:, t : t + pool].max(axis=1) for t in range(0, h.shape[1] - pool + 1, pool)], axis=1)
    return convolved(h, weights["second.weight"], weights["second.bias"])


@settings(max_examples=40)
@given(width=st.integers(1, 5), pool=st.integers(1, 4), steps=st.integers(1, 40), channels=st.integers(1, 5))
def test_the_convnet_follows_its_equations(width: int, pool: int, steps: int, channels: int) -> None:
    """A window from which less than two steps would come out has zeros before it."""
    shape = WindowShape(steps, F, 0, horizon=1, day=24)
    network = network_of("convnet", {"channels": channels, "width": width, "pool": pool}, shape=shape).double()
    x_BTF = torch.randn(4, steps, F, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    long = x_BTF.numpy()
    while (long.shape[1] - width + 1) // pool - width + 1 < 2:
        long = np.concatenate([np.zeros((4, 1, F)), long], axis=1)
    h = convolutions(network, long, pool).max(axis=1)
    weights = arrays(network)
    expected = (h @ weights["output.weight"].T + weights["output.bias"])[:, 0]
    np.testing.assert_allclose(network(x_BTF)[:, 0, 0].detach().numpy(), expected, rtol=1e-10)


def test_the_convnet_of_the_book_has_its_parameters() -> None:
    """Lecture row P4 without its embedding: 28,704 and 7,200 and 33, as Keras's summary in the book says."""
    shape = WindowShape(500, 128, 0, horizon=1, day=24)
    network = network_of("convnet", {"channels": 32, "width": 7, "pool": 5}, shape=shape)
    assert parameters(network) == 28_704 + 7_200 + 33
    assert network.convolutions(torch.zeros(1, 500, 128)).shape == (1, 92, 32), "(500 - 6) // 5 - 6 steps"


@pytest.mark.parametrize(("steps", "left"), [(120, 34), (240, 74)])
def test_the_conv_gru_of_the_lecture_has_keras_steps_and_parameters(steps: int, left: int) -> None:
    """Lecture row D10 on 14 features, a step each hour and each half hour; Keras's GRU has two biases a gate."""
    network = network_of("conv_gru", {}, shape=WindowShape(steps, 14, 0, horizon=24, day=24))
    convolutional = (14 * 5 * 32 + 32) + (32 * 5 * 32 + 32)
    assert parameters(network) == convolutional + 3 * (32 * 32 + 32 * 32 + 2 * 32) + 33
    assert network.convolutions(torch.zeros(1, steps, 14)).shape == (1, left, 32)


def test_the_conv_gru_is_a_gru_on_what_the_convolutions_leave() -> None:
    network = network_of("conv_gru", {"width": 3, "pool": 2, "channels": 5, "units": 4}).double()
    left = torch.from_numpy(convolutions(network, windows().double().numpy(), pool=2))
    assert left.shape == (B, 9, 5)
    gru = torch.nn.GRU(5, 4, batch_first=True).double()
    gru.load_state_dict(network.gru.fused.state_dict())
    expected = network.output(gru(left)[0][:, -1])
    torch.testing.assert_close(network(windows().double()), expected, rtol=1e-10, atol=0)


# The temporal convolutional network.


def block(weights: dict[str, np.ndarray], x_CT: np.ndarray, dilation: int) -> np.ndarray:
    """A residual block by its paper's equations, for one window, value by value."""
    h_CT = x_CT
    for at in ("transform.0", "transform.3"):
        name = f"{at}.convolution.parametrizations.weight.original"
        g, v, b = weights[f"{name}0"], weights[f"{name}1"], weights[f"{at}.convolution.bias"]
        y_CT = np.zeros((len(v), x_CT.shape[1]))
        for c in range(len(v)):
            W = g[c] * v[c] / np.sqrt((v[c] ** 2).sum())
            for t in range(x_CT.shape[1]):
                y_CT[c, t] = b[c]
                for i in range(v.shape[2]):
                    before = t - (v.shape[2] - 1 - i) * dilation
                    if before >= 0:
                        y_CT[c, t] += W[:, i] @ h_CT[:, before]
        h_CT = np.maximum(y_CT, 0)
    if "skip.weight" in weights:
        x_CT = weights["skip.weight"][:, :, 0] @ x_CT + weights["skip.bias"][:, None]
    return np.maximum(x_CT + h_CT, 0)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("dilation", [1, 4])
@pytest.mark.parametrize("channels_in", [F, 5])
def test_a_block_of_the_tcn_follows_its_equations(kernel: int, dilation: int, channels_in: int) -> None:
    torch.manual_seed(0)
    made = ResidualBlock(channels_in, 5, kernel, dilation, dropout=0.5).double().eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.endswith("original0"):
                value *= 1.7  # the norm is its own parameter, not that of the filter as it was drawn
    x_BCT = torch.randn(2, channels_in, 13, dtype=torch.float64)
    expected = np.stack([block(arrays(made), x_CT, dilation) for x_CT in x_BCT.numpy()])
    np.testing.assert_allclose(made(x_BCT).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_tcn_is_blocks_of_doubling_dilation() -> None:
    network = tcn_of(kernel=2, levels=3, channels=4)
    x_BTF = windows().double()
    h_BCT = x_BTF.numpy().swapaxes(1, 2)
    for level in range(3):
        weights = {
            name.removeprefix(f"blocks.{level}."): value
            for name, value in arrays(network).items()
            if name.startswith(f"blocks.{level}.")
        }
        h_BCT = np.stack([block(weights, h_CT, dilation=2**level) for h_CT in h_BCT])
    y_B = h_BCT[:, :, -1] @ arrays(network)["output.weight"][0] + arrays(network)["output.bias"]
    np.testing.assert_allclose(network(x_BTF)[:, 0, 0].detach().numpy(), y_B, rtol=1e-10)


def positive(network: TCN) -> TCN:
    """The same network with no weight below zero: on positive inputs no relu hides what arrives."""
    with torch.no_grad():
        for value in network.parameters():
            value.abs_()
    return network


@settings(max_examples=40)
@given(kernel=st.integers(2, 4), levels=st.integers(1, 4), at=st.floats(0, 1), features=st.sampled_from([3, 5]))
def test_no_state_of_the_tcn_sees_a_later_input(kernel: int, levels: int, at: float, features: int) -> None:
    steps = 40
    network = positive(tcn_of(kernel, levels, channels=5, steps=steps, features=features))
    x_BTF = torch.rand(2, steps, features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = round(at * (steps - 1))
    other = x_BTF.clone()
    other[:, t] += 1
    before, after = network.states(x_BTF), network.states(other)
    assert torch.equal(after[:, :t], before[:, :t])
    seen = (after != before).any(dim=2)[0]
    assert seen[t]
    assert not seen[t + network.receptive_field :].any()


@given(kernel=st.integers(2, 4), levels=st.integers(1, 4))
def test_the_receptive_field_is_that_of_the_formula(kernel: int, levels: int) -> None:
    steps = 1 + 2 * (kernel - 1) * (2**levels - 1) + 5
    network = positive(tcn_of(kernel, levels, channels=2, steps=steps))
    x_BTF = torch.rand(1, steps, F, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network(x_BTF.requires_grad_()).sum().backward()
    assert x_BTF.grad is not None
    seen_T: Tensor = x_BTF.grad[0].any(dim=1)
    assert network.receptive_field == steps - 5 == int(seen_T.sum())
    assert seen_T[5:].all()


def test_the_default_tcn_sees_five_days_of_hours() -> None:
    network = network_of("tcn", {})
    assert isinstance(network, TCN)
    assert network.receptive_field >= 120


def test_the_tcn_drops_whole_channels() -> None:
    torch.manual_seed(0)
    made = ResidualBlock(200, 200, kernel=2, dilation=1, dropout=0.25)
    dropped = made.transform[2](torch.ones(8, 200, 11))
    assert torch.equal(dropped.amin(dim=2), dropped.amax(dim=2))
    assert (dropped[:, :, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
