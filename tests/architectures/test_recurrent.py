"""The recurrent layers against their equations in NumPy, against torch.nn, and the networks made of them."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from architectures import REGISTRY, Network, WindowShape, graphs
from architectures.cells.elman import Elman
from architectures.cells.gru import GRU, GRUResetBefore
from architectures.cells.jordan import Jordan
from architectures.cells.layer import RecurrentLayer
from architectures.cells.lstm import LSTM, PeepholeLSTM
from architectures.cells.stack import Stack
from problems.errors import RecastError
from project.settings.grid import expand_grid
from project.settings.sections import Grid
from stages.training.fit import initialize_network

NETWORKS = ["gru", "gru_reset_before", "jordan", "lstm", "lstm_peephole", "simple_rnn"]
B, T, F, H = 4, 7, 3, 5

Array = np.ndarray
Step = Callable[..., tuple[Array, ...]]


# The equations, a step at a time. k is the state as the recurrent products see it, after recurrent dropout.


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
}


def elman(s: Any, x: Array, m: Array, h: Array, W: Array, U: Array, b: Array) -> tuple[Array, ...]:
    return (s(x @ W.T + (m * h) @ U.T + b),)


def jordan(s: Any, x: Array, m: Array, y: Array, W: Array, U: Array, b: Array, V: Array, c: Array) -> tuple[Array, ...]:
    h = s(x @ W.T + (m * y) @ U.T + b)
    return (s(h @ V.T + c),)


def lstm(s: Any, x: Array, m: Array, h: Array, c: Array, W: Array, U: Array, b: Array) -> tuple[Array, ...]:
    return lstm_peephole(s, x, m, h, c, W, U, b, np.zeros((3, h.shape[1])))


def lstm_peephole(
    s: Any, x: Array, m: Array, h: Array, c: Array, W: Array, U: Array, b: Array, p: Array
) -> tuple[Array, ...]:
    Wi, Wf, Wg, Wo = np.split(W, 4)
    Ui, Uf, Ug, Uo = np.split(U, 4)
    bi, bf, bg, bo = np.split(b, 4)
    k = m * h
    i = sigmoid(x @ Wi.T + k @ Ui.T + bi + p[0] * c)
    f = sigmoid(x @ Wf.T + k @ Uf.T + bf + p[1] * c)
    new = f * c + i * s(x @ Wg.T + k @ Ug.T + bg)
    o = sigmoid(x @ Wo.T + k @ Uo.T + bo + p[2] * new)
    return o * s(new), new


def gru(s: Any, x: Array, m: Array, h: Array, W: Array, U: Array, b: Array, d: Array) -> tuple[Array, ...]:
    Wr, Wz, Wn = np.split(W, 3)
    Ur, Uz, Un = np.split(U, 3)
    (br, bz, bn), (dr, dz, dn) = np.split(b, 3), np.split(d, 3)
    k = m * h
    r = sigmoid(x @ Wr.T + br + k @ Ur.T + dr)
    z = sigmoid(x @ Wz.T + bz + k @ Uz.T + dz)
    n = s(x @ Wn.T + bn + r * (k @ Un.T + dn))
    return ((1 - z) * n + z * h,)


def gru_reset_before(s: Any, x: Array, m: Array, h: Array, W: Array, U: Array, b: Array) -> tuple[Array, ...]:
    """In the lecture's form: of [h, x] one matrix a gate."""
    Wz, Wr, Wn = np.split(np.concatenate([U, W], axis=1), 3)
    bz, br, bn = np.split(b, 3)
    k = m * h
    z = sigmoid(np.concatenate([k, x], axis=1) @ Wz.T + bz)
    r = sigmoid(np.concatenate([k, x], axis=1) @ Wr.T + br)
    n = s(np.concatenate([r * k, x], axis=1) @ Wn.T + bn)
    return ((1 - z) * h + z * n,)


STEPS: dict[type[RecurrentLayer], Step] = {
    Elman: elman,
    Jordan: jordan,
    LSTM: lstm,
    PeepholeLSTM: lstm_peephole,
    GRU: gru,
    GRUResetBefore: gru_reset_before,
}
every_layer = pytest.mark.parametrize("kind", STEPS, ids=lambda kind: kind.__name__)


def loop(
    layer: RecurrentLayer, x_BTF: Array, state: list[Array], m: Array, weights: list[Array]
) -> tuple[Array, list[Array]]:
    """What the layer gives at each step, and the state after the last."""
    given = []
    for x in x_BTF.swapaxes(0, 1):
        state = list(STEPS[type(layer)](ACTIVATIONS[layer.activation], x, m, *state, *weights))
        given.append(state[0])
    return np.stack(given, axis=1), state


def tensors(
    layer: RecurrentLayer, batch: int = B, steps: int = T, inputs: int = F
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A sequence and a state to begin from, in float64, of which derivatives can be asked."""
    generator = torch.Generator().manual_seed(7)
    x_BTF = torch.randn(batch, steps, inputs, generator=generator, dtype=torch.float64)
    state = [
        torch.randn(batch, layer.units, generator=generator, dtype=torch.float64) for _ in range(layer.state_tensors)
    ]
    return x_BTF.requires_grad_(), tuple(tensor.requires_grad_() for tensor in state)


def layer_of(kind: type[RecurrentLayer], *args: Any, seed: int = 0, **kwargs: Any) -> RecurrentLayer:
    torch.manual_seed(seed)
    return kind(*args, **kwargs).double()


def arrays(values: Any) -> list[Array]:
    return [value.detach().numpy().copy() for value in values]


@every_layer
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    dropped=st.booleans(),
)
def test_a_layer_follows_its_equations(
    kind: type[RecurrentLayer], activation: Any, sizes: tuple[int, int, int, int], dropped: bool
) -> None:
    batch, steps, inputs, units = sizes
    layer = layer_of(kind, inputs, units, activation, recurrent_dropout=0.4 * dropped)
    x_BTF, state = tensors(layer, batch, steps, inputs)
    torch.manual_seed(3)
    found_BTH, last = layer(x_BTF, state)
    torch.manual_seed(3)
    mask_BH = functional.dropout(torch.ones(batch, units, dtype=torch.float64), 0.4 * dropped)
    expected, expected_last = loop(
        layer, x_BTF.detach().numpy(), arrays(state), mask_BH.numpy(), arrays(layer.parameters())
    )
    np.testing.assert_allclose(found_BTH.detach(), expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(arrays(last), expected_last, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@every_layer
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dropped", [False, True])
def test_derivatives_are_the_differences_of_the_equations(
    kind: type[RecurrentLayer], activation: Any, dropped: bool
) -> None:
    """Of a loss on every step and on the last state, by inputs, first state and weights; the equations are NumPy's."""
    layer = layer_of(kind, F, H, activation)
    x_BTF, state = tensors(layer)
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (B, H)) * 2.0 if dropped else np.ones((B, H))
    on_steps, on_last = rng.standard_normal((B, T, H)), rng.standard_normal((B, H))
    mask_BH = torch.from_numpy(mask) if dropped else None
    h_TBH, last = layer.run(x_BTF.transpose(0, 1), state, mask_BH)
    loss = (h_TBH.transpose(0, 1) * torch.from_numpy(on_steps)).sum() + (last[-1] * torch.from_numpy(on_last)).sum()
    asked = [x_BTF, *state, *layer.parameters()]
    values = arrays(asked)

    def loss_of_equations() -> float:
        x, *rest = values
        given, after = loop(layer, x, rest[: layer.state_tensors], mask, rest[layer.state_tensors :])
        return float((given * on_steps).sum() + (after[-1] * on_last).sum())

    assert loss_of_equations() == pytest.approx(loss.item(), rel=1e-12)
    for derivative, value in zip(torch.autograd.grad(loss, asked), values, strict=True):
        differences = np.empty_like(value)
        for at in np.ndindex(value.shape):
            kept, size = value[at], 1e-5
            value[at] = kept + size
            above = loss_of_equations()
            value[at] = kept - size
            differences[at] = (above - loss_of_equations()) / (2 * size)
            value[at] = kept
        np.testing.assert_allclose(derivative.numpy(), differences, rtol=1e-6, atol=1e-6 * np.abs(differences).max())


@every_layer
@pytest.mark.parametrize("read", ["steps", "last", "both"])
@pytest.mark.parametrize("dropped", [False, True])
def test_derivatives_pass_gradcheck(kind: type[RecurrentLayer], read: str, dropped: bool) -> None:
    """Whatever of the result the loss reads."""
    layer = layer_of(kind, F, H, recurrent_dropout=0.5 * dropped)
    x_BTF, state = tensors(layer)
    names = [name for name, _ in layer.named_parameters()]

    def run(x_BTF: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        given = dict(zip(names, rest[layer.state_tensors :], strict=True))
        h_BTH, last = torch.func.functional_call(layer, given, (x_BTF, rest[: layer.state_tensors]))
        return {"steps": (h_BTH,), "last": last, "both": (h_BTH, *last)}[read]

    assert torch.autograd.gradcheck(run, (x_BTF, *state, *layer.parameters()), fast_mode=True)


def test_elman_is_the_loop_of_the_lecture() -> None:
    """Row C3, as it is written there."""
    rng = np.random.default_rng(0)
    timesteps, input_features, output_features = 100, 32, 64
    inputs = rng.random((timesteps, input_features))
    state_t = np.zeros((output_features,))
    W = rng.random((output_features, input_features))
    U = rng.random((output_features, output_features))
    b = rng.random((output_features,))
    # Centred and scaled, for with the lecture's weights every state is 1.
    W, U, b = (W - 0.5) / 4, (U - 0.5) / 4, b - 0.5
    successive_outputs = []
    for input_t in inputs:
        output_t = np.tanh(np.dot(W, input_t) + np.dot(U, state_t) + b)
        successive_outputs.append(output_t)
        state_t = output_t

    layer = layer_of(Elman, input_features, output_features)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (W, U, b), strict=True):
            parameter.copy_(torch.from_numpy(value))
    found_1TH, _ = layer(torch.from_numpy(inputs)[None])
    np.testing.assert_allclose(found_1TH[0].detach(), np.stack(successive_outputs), rtol=1e-10)


@pytest.mark.parametrize(("kind", "peer"), [(Elman, nn.RNN), (LSTM, nn.LSTM), (GRU, nn.GRU)])
@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_layer_equals_pytorchs(kind: type[RecurrentLayer], peer: Any, in_loop: bool, steps: int) -> None:
    """Whether PyTorch's kernel or our own loop computes it, which a mask that keeps all asks for."""
    layer, theirs = layer_of(kind, F, H), peer(F, H).double()
    with torch.no_grad():
        theirs.bias_hh_l0.zero_()
        for name, parameter in layer.named_parameters():
            theirs.get_parameter(name.removeprefix("fused.")).copy_(parameter)
    x_BTF, state = tensors(layer, steps=steps)
    mask_BH = torch.ones(B, H, dtype=torch.float64) if in_loop else None
    ours_TBH, _ = layer.run(x_BTF.transpose(0, 1), state, mask_BH)
    before = tuple(tensor[None] for tensor in state)
    theirs_TBH, _ = theirs(x_BTF.transpose(0, 1), before if kind is LSTM else before[0])
    torch.testing.assert_close(ours_TBH, theirs_TBH)
    asked = [x_BTF, *state]
    ours = torch.autograd.grad(ours_TBH.square().sum(), [*asked, *layer.parameters()])
    by_peer = torch.autograd.grad(
        theirs_TBH.square().sum(),
        [*asked, *(theirs.get_parameter(name.removeprefix("fused.")) for name, _ in layer.named_parameters())],
    )
    for one, other in zip(ours, by_peer, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@every_layer
def test_on_a_gpu_graphs_compute_what_the_loop_does(
    kind: type[RecurrentLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of inputs that come after the capture, and of two calls before the backward pass of the first."""
    torch.manual_seed(0)
    layer = kind(F, H, recurrent_dropout=0.5).cuda()
    inputs = torch.randn(2, B, T, F, device="cuda")

    def actual() -> list[Tensor]:
        layer.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        (one_BTH, _), (other_BTH, _) = layer(inputs[0]), layer(inputs[1])
        (one_BTH.sin().sum() + other_BTH.cos().sum()).backward()
        return [one_BTH, other_BTH, *(parameter.grad for parameter in layer.parameters() if parameter.grad is not None)]

    with monkeypatch.context() as without:
        without.setattr(graphs, "MAX_GRAPHS", 0)
        expected = actual()
    for _ in range(graphs.CALLS_BEFORE_CAPTURE):
        actual()
    for one, other in zip(actual(), expected, strict=True):
        assert torch.equal(one, other)


@every_layer
def test_a_sequence_goes_on_from_a_state(kind: type[RecurrentLayer]) -> None:
    layer = layer_of(kind, F, H)
    x_BTF, _ = tensors(layer)
    whole_BTH, (last_BH, *_) = layer(x_BTF)
    first_BTH, state = layer(x_BTF[:, :3])
    second_BTH, (after_BH, *_) = layer(x_BTF[:, 3:], state)
    torch.testing.assert_close(torch.cat((first_BTH, second_BTH), 1), whole_BTH)
    torch.testing.assert_close(after_BH, last_BH)
    assert torch.equal(whole_BTH[:, -1], last_BH)


@every_layer
def test_a_layer_learns_under_mixed_precision(kind: type[RecurrentLayer]) -> None:
    torch.manual_seed(0)
    layer = kind(F, H, recurrent_dropout=0.5)
    x_BTF = torch.randn(B, T, F)
    torch.manual_seed(1)
    exact_BTH, _ = layer(x_BTF)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_BTH, _ = layer(x_BTF.bfloat16())
    torch.testing.assert_close(mixed_BTH.float(), exact_BTH, rtol=0.05, atol=0.05)
    mixed_BTH.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


# Dropout.


def test_recurrent_dropout_drops_the_same_units_at_every_step() -> None:
    """A layer that does nothing but keep its state: what is dropped once is dropped always, the rest always grows."""
    layer = layer_of(Elman, F, 1000, "relu", recurrent_dropout=0.2)
    W, U, b = layer.parameters()
    with torch.no_grad():
        W.zero_(), b.zero_(), U.copy_(torch.eye(1000))
    ones_BH = torch.ones(B, 1000, dtype=torch.float64)
    h_BTH, _ = layer(torch.zeros(B, T, F, dtype=torch.float64), (ones_BH,))
    dropped_BH = h_BTH[:, 0] == 0
    for t in range(T):
        expected_BH = torch.where(dropped_BH, 0.0, 1.25 ** (t + 1)).double()
        torch.testing.assert_close(h_BTH[:, t], expected_BH)
    assert dropped_BH.double().mean().item() == pytest.approx(0.2, abs=0.05)
    assert not torch.equal(dropped_BH[0], dropped_BH[1]), "each sequence has a mask of its own"
    assert torch.equal(layer.eval()(torch.zeros(B, T, F).double(), (ones_BH,))[0][:, -1], ones_BH)


def test_dropout_drops_the_same_inputs_at_every_step() -> None:
    layer = layer_of(Elman, 1000, 1000, "relu", dropout=0.2)
    W, U, b = layer.parameters()
    with torch.no_grad():
        W.copy_(torch.eye(1000)), b.zero_(), U.zero_()
    h_BTH, _ = layer(torch.ones(B, T, 1000, dtype=torch.float64))
    assert torch.equal(h_BTH, h_BTH[:, :1].expand_as(h_BTH))
    assert set(h_BTH.unique().tolist()) == {0.0, 1.25}
    assert (h_BTH == 0).double().mean().item() == pytest.approx(0.2, abs=0.05)
    assert not torch.equal(h_BTH[0], h_BTH[1])


@every_layer
def test_dropout_comes_from_the_global_generator_and_ends_with_training(kind: type[RecurrentLayer]) -> None:
    dropping, plain = layer_of(kind, F, H, dropout=0.5, recurrent_dropout=0.5), layer_of(kind, F, H)
    x_BTF, _ = tensors(plain)
    actual = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        actual.append(dropping(x_BTF)[0])
    assert torch.equal(actual[0], actual[1])
    assert not torch.equal(actual[0], actual[2])
    assert torch.equal(dropping.eval()(x_BTF)[0], plain(x_BTF)[0])


# Stacks and networks.


@every_layer
def test_a_stack_hands_whole_sequences_on(kind: type[RecurrentLayer]) -> None:
    torch.manual_seed(0)
    stack = Stack(kind, F, [4, 6], ["tanh", "relu"]).double()
    x_BTF, _ = tensors(layer_of(kind, F, H))
    one, two = stack.onwards
    assert (one.units, one.activation, two.units, two.activation) == (4, "tanh", 6, "relu")
    expected_BTH, (last_BH, *_) = two(one(x_BTF)[0])
    actual = stack(x_BTF)
    assert stack.width == 6
    assert torch.equal(actual[0], expected_BTH)
    assert torch.equal(actual[1], last_BH)


@every_layer
def test_a_bidirectional_stack_reads_from_both_ends(kind: type[RecurrentLayer]) -> None:
    torch.manual_seed(0)
    stack = Stack(kind, F, [4, 6], bidirectional=True).double()
    x_BTF, _ = tensors(layer_of(kind, F, H))
    expected = x_BTF
    for onwards, backwards in zip(stack.onwards, stack.from_the_end, strict=True):
        one, two = onwards(expected)[0], backwards(expected.flip(1))[0]
        expected, last = torch.cat((one, two.flip(1)), 2), torch.cat((one[:, -1], two[:, -1]), 1)
    actual = stack(x_BTF)
    assert stack.width == 12
    assert torch.equal(actual[0], expected)
    assert torch.equal(actual[1], last)


def network_of(name: str, features: int = F, **axes: Any) -> Network:
    shape = WindowShape(120, features, 1, horizon=24, day=24)
    return initialize_network(name, REGISTRY[name].Hyperparameters(**axes), shape, seed=0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("axes", [{}, {"layers": 2, "bidirectional": True}])
def test_a_reversed_network_reads_the_window_from_its_end(name: str, axes: dict[str, Any]) -> None:
    x_BTF = torch.randn(B, T, F)
    there, back = network_of(name, **axes), network_of(name, reversed=True, **axes)
    assert torch.equal(there(x_BTF), back(x_BTF.flip(1)))
    assert not torch.equal(there(x_BTF), back(x_BTF))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_forecast_is_linear_in_the_last_state(name: str) -> None:
    network = network_of(name, units=(4, 6))
    x_BTF = torch.randn(B, T, F)
    _, last_BH = network.recurrent(x_BTF)
    (output,) = network.output
    expected_B = (last_BH * output.weight[0]).sum(1) + output.bias
    torch.testing.assert_close(network(x_BTF)[:, 0, 0], expected_B)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_of_keras(name: str) -> None:
    """A state's weights are orthogonal, all gates' as one matrix; inputs' within Glorot's bound; biases 0 or 1."""
    network = network_of(name, units=16, layers=2, regressor=8, initial="keras")
    seen = set()
    for path, weight in network.named_parameters():
        last = path.rpartition(".")[2]
        seen.add(last)
        if last in ("U", "weight_hh_l0"):
            torch.testing.assert_close(weight.t() @ weight, torch.eye(16), atol=1e-5, rtol=0)
        elif last in ("W", "V", "weight_ih_l0", "weight"):
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.8 * bound < weight.abs().max() <= bound or weight.numel() < 32
        elif last in ("b", "bias_ih_l0") and name.startswith("lstm"):
            assert weight.tolist() == [0.0] * 16 + [1.0] * 16 + [0.0] * 32
        else:
            assert not weight.any()
    assert seen & {"U", "weight_hh_l0"}
    assert not torch.equal(network.output[0][0].weight, network_of(name, units=16, regressor=8).output[0][0].weight)


# Parameters.


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


COUNTS = {
    "simple_rnn": lambda n, h: h * n + h * h + h,
    "jordan": lambda n, h: h * n + h * h + h + h * h + h,
    "lstm": lambda n, h: 4 * (h * n + h * h + h),
    "lstm_peephole": lambda n, h: 4 * (h * n + h * h + h) + 3 * h,
    "gru": lambda n, h: 3 * (h * n + h * h + 2 * h),
    "gru_reset_before": lambda n, h: 3 * (h * n + h * h + h),
}
"""Of a layer of h units with n inputs: Keras's counts of SimpleRNN, LSTM and GRU (reset_after), and in its manner."""


@pytest.mark.parametrize("name", NETWORKS)
@given(units=st.lists(st.integers(1, 9), min_size=1, max_size=3), features=st.integers(1, 4), both=st.booleans())
def test_a_network_has_as_many_parameters_as_keras_gives_it(
    name: str, units: list[int], features: int, both: bool
) -> None:
    network = network_of(name, features, units=units, bidirectional=both)
    directions = 1 + both
    reads = [features, *(directions * width for width in units)]
    layers = sum(directions * COUNTS[name](n, h) for n, h in zip(reads, units, strict=False))
    assert parameters(network) == layers + reads[-1] + 1


@pytest.mark.parametrize(
    ("row", "name", "axes", "count"),
    [
        ("D5", "dense", {}, 53_825),
        ("D6", "gru", {}, 4_641),
        ("D7", "gru", {"units": [32, 64], "activation": ["tanh", "relu"]}, 23_489),
        ("D8", "gru", {"reversed": True}, 4_641),
        ("D9", "gru", {"bidirectional": True}, 9_281),
    ],
)
def test_the_lectures_networks_have_the_parameters_of_keras(
    row: str, name: str, axes: dict[str, Any], count: int
) -> None:
    assert parameters(network_of(name, 14, **axes)) == count


def test_the_lectures_stack_of_simple_rnns_has_328320_parameters() -> None:
    """Row P2."""
    assert parameters(nn.Embedding(10_000, 32)) + parameters(Stack(Elman, 32, [32] * 4)) == 328_320


# The axes.


def hyperparameters(**axes: Any) -> Any:
    (actual,) = expand_grid(Grid(seeds=(0,), architectures={"gru": axes}))
    return actual.hyperparameters


def test_a_value_of_an_axis_may_be_a_list_with_one_for_each_layer() -> None:
    actual = hyperparameters(units=[[32, 64]], activation=[["tanh", "relu"]])
    assert actual.widths == (32, 64)
    assert actual.activation == ("tanh", "relu")
    assert type(actual).model_validate_json(actual.model_dump_json()) == actual
    assert hash(actual) == hash(hyperparameters(units=[[32, 64]], activation=[["tanh", "relu"]]))


@given(units=st.integers(1, 99), layers=st.integers(1, 5))
def test_one_value_is_for_all_layers(units: int, layers: int) -> None:
    assert hyperparameters(units=[units], layers=[layers]).widths == (units,) * layers


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"units": [[8, 0]]}, r"gru\.units: must be at least 1; it is \[8, 0\]"),
        ({"units": [[8, "8"]]}, r"gru\.units: must be a whole number; it is \[8, \"8\"\]"),
        ({"units": [[]]}, r"gru\.units: must not be empty"),
        ({"units": [8, 0]}, r"gru\.units: must be at least 1; it is 0"),
        ({"units": [[8, 4]], "layers": [2]}, r"gru\.layers: layers must be left out where units lists"),
        ({"activation": ["than"]}, r"gru\.activation: must be 'tanh', 'relu' or 'sigmoid'; it is \"than\".*mean tanh"),
        ({"activation": [["tanh", "relu"]]}, r"gru\.activation: activation must be one, or one for each of the 1 lay"),
    ],
)
def test_a_wrong_value_is_named(axes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        hyperparameters(**axes)


@pytest.mark.parametrize(("name", "axis"), itertools.product(NETWORKS, ["units", "activation"]))
def test_the_schema_of_the_settings_knows_both_forms(name: str, axis: str) -> None:
    one, each = REGISTRY[name].Hyperparameters.model_json_schema()["properties"][axis]["anyOf"]
    assert each["type"] == "array"
    assert each["items"] == one
