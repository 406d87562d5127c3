"""The Neural Turing Machine and adaptive computation time against NumPy, window by window and stage by stage."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from architectures import WindowShape, memory
from architectures.memory import ACT, NTM
from tests.architectures.test_architectures import B, F, T, network_of, windows

RTOL = 1e-9


def arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softplus(x: Any) -> Any:
    return np.log(1 + np.exp(x))


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


# The stages of addressing, for one head, as Graves writes them: M (N, W), k (W,), a (N,), s over the shifts -1, 0, 1.


def content_scores(M: np.ndarray, k: np.ndarray, strength: float) -> np.ndarray:
    return np.array([strength * (k @ slot) / (math.sqrt(k @ k) * math.sqrt(slot @ slot)) for slot in M])


def interpolate(a: np.ndarray, before: np.ndarray, gate: float) -> np.ndarray:
    return gate * a + (1 - gate) * before


def shift(a: np.ndarray, s: np.ndarray) -> np.ndarray:
    """A convolution in a circle, by its sum."""
    moved = np.zeros_like(a)
    for i in range(len(a)):
        for j in range(len(a)):
            for offset in (-1, 0, 1):
                if (i - j - offset) % len(a) == 0:
                    moved[i] += a[j] * s[offset + 1]
    return moved


def sharpen(a: np.ndarray, power: float) -> np.ndarray:
    return a**power / (a**power).sum()


def read(M: np.ndarray, a: np.ndarray) -> np.ndarray:
    return sum(a[i] * M[i] for i in range(len(M)))


def write(M: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack([a[i] * w + (1 - a[i]) * M[i] for i in range(len(M))])


HEADS, WIDTH = 2, 4


def drawn(slots: int, seed: int) -> dict[str, Tensor]:
    """A memory, what two heads ask of it, and weights over its slots: for 3 windows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(3, *shape, dtype=torch.float64, generator=generator)

    return {
        "M": normal(slots, WIDTH),
        "k": normal(HEADS, WIDTH),
        "w": normal(WIDTH),
        "a": normal(HEADS, slots).mul(2).softmax(2),
        "before": normal(HEADS, slots).mul(2).softmax(2),
        "scores": normal(HEADS, slots).mul(5),
        "shifts": normal(HEADS, 3).softmax(2),
        "strength": normal(HEADS).exp(),
        "gate": normal(HEADS).sigmoid(),
        "power": 1 + normal(HEADS).exp(),
    }


STAGES: dict[str, tuple[Callable[..., Tensor], Callable[..., np.ndarray], list[str]]] = {
    "content scores": (memory.score_slots, content_scores, ["M", "k", "strength"]),
    "content": (memory.weigh_by_content, softmax, ["scores"]),
    "interpolate": (memory.interpolate, interpolate, ["a", "before", "gate"]),
    "shift": (memory.shift, shift, ["a", "shifts"]),
    "sharpen": (memory.sharpen, sharpen, ["a", "power"]),
}


@pytest.mark.parametrize("stage", STAGES)
@settings(max_examples=30)
@given(slots=st.integers(2, 9), seed=st.integers(0, 99))
def test_each_stage_of_addressing_follows_its_equation(stage: str, slots: int, seed: int) -> None:
    ours, theirs, names = STAGES[stage]
    values = drawn(slots, seed)
    actual = ours(*(values[name] for name in names))
    assert actual.shape == (3, HEADS, slots)
    for b in range(3):
        for d in range(HEADS):
            arguments = [values[name][b] if name == "M" else values[name][b, d] for name in names]
            np.testing.assert_allclose(
                actual[b, d], theirs(*(tensor.numpy() for tensor in arguments)), rtol=1e-9, atol=1e-11
            )
    if stage != "content scores":
        torch.testing.assert_close(actual.sum(dim=2), torch.ones(3, HEADS, dtype=torch.float64))
        assert (actual >= 0).all()


@settings(max_examples=30)
@given(slots=st.integers(2, 9), seed=st.integers(0, 99))
def test_reading_and_writing_follow_their_equations(slots: int, seed: int) -> None:
    values = drawn(slots, seed)
    M, a, w = values["M"], values["a"][:, 0], values["w"]
    r_BW, written_BNW = memory.read_memory(M, a), memory.write_memory(M, a, w)
    for b in range(3):
        np.testing.assert_allclose(r_BW[b], read(M[b].numpy(), a[b].numpy()), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(written_BNW[b], write(M[b].numpy(), a[b].numpy(), w[b].numpy()), rtol=1e-9)
    erase, add = torch.ones_like(w), w
    erased_BNW = M * (1 - a[:, :, None] * erase[:, None]) + a[:, :, None] * add[:, None]
    torch.testing.assert_close(written_BNW, erased_BNW)


def test_what_is_written_to_one_slot_is_read_from_it() -> None:
    M, w = drawn(5, 0)["M"], drawn(5, 0)["w"]
    at = nn.functional.one_hot(torch.tensor([0, 3, 4]), 5).double()
    written = memory.write_memory(M, at, w)
    assert torch.equal(memory.read_memory(written, at), w)
    assert torch.equal(written[0, 1:], M[0, 1:])


@pytest.mark.parametrize(("by", "expected"), [(-1, [0, 0, 1, 0]), (0, [0, 0, 0, 1]), (1, [1, 0, 0, 0])])
def test_a_shift_goes_round_the_circle(by: int, expected: list[int]) -> None:
    at, shifts = torch.eye(4)[3].view(1, 1, 4), torch.eye(3)[by + 1].view(1, 1, 3)
    assert memory.shift(at, shifts).flatten().tolist() == expected


@pytest.mark.parametrize("a", [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("power", [1.0, 1000.0])
def test_sharpening_stays_a_distribution(a: list[float], power: float) -> None:
    """0.25 ** 1000 is zero in floating point."""
    a_BDN = torch.tensor([[a]], requires_grad=True)
    power_BD = torch.tensor([[power]], requires_grad=True)
    actual = memory.sharpen(a_BDN, power_BD)
    torch.testing.assert_close(actual, a_BDN)
    actual[0, 0, 0].backward()
    for value in (a_BDN, power_BD):
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_a_slot_of_zeros_is_like_no_key() -> None:
    M, k = torch.zeros(1, 3, WIDTH, requires_grad=True), torch.ones(1, 1, WIDTH)
    scores = memory.score_slots(M, k, torch.ones(1, 1))
    assert not scores.any()
    scores.sum().backward()
    assert M.grad is not None
    assert M.grad.isfinite().all()


# The machine.


def ntm_of(controller: str, **axes: int) -> NTM:
    network = network_of("ntm", {"controller": controller, "units": 5, "slots": 6, "width": WIDTH, **axes}).double()
    assert isinstance(network, NTM)
    return network


def turing_machine(weights: dict[str, np.ndarray], x_TF: np.ndarray) -> tuple[float, np.ndarray]:
    """The forecast of one window and the weights (T, 2, N) of the heads."""
    M = weights["memory_NW"]
    units, (slots, width) = weights["heads.weight"].shape[1], M.shape
    h = c = np.zeros(units)
    r = np.zeros(width)
    heads = [np.eye(slots)[0], np.eye(slots)[0]]
    seen = []
    for x in x_TF:
        arguments = np.concatenate([x, r])
        if "controller.weight_ih" in weights:
            gates = weights["controller.weight_ih"] @ arguments + weights["controller.bias_ih"]
            gates = gates + weights["controller.weight_hh"] @ h + weights["controller.bias_hh"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = np.tanh(weights["controller.weight"] @ arguments + weights["controller.bias"])
        outputs = weights["heads.weight"] @ h + weights["heads.bias"]
        w, *head_outputs = np.split(outputs, [width, 2 * width + 6])
        for d, outputs_of_head in enumerate(head_outputs):
            k, (strength, gate, power), shifts = np.split(outputs_of_head, [width, width + 3])
            a = softmax(content_scores(M, k, softplus(strength)))
            a = interpolate(a, heads[d], sigmoid(gate))
            a = shift(a, softmax(shifts))
            heads[d] = sharpen(a, 1 + softplus(power))
        r = read(M, heads[0])
        M = write(M, heads[1], w)
        seen.append(np.stack(heads))
    return float(weights["output.weight"][0] @ np.concatenate([h, r]) + weights["output.bias"][0]), np.stack(seen)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_the_turing_machine_follows_its_equations(controller: str) -> None:
    network, x_BTF = ntm_of(controller), windows().double()
    expected = [turing_machine(arrays(network), x_TF) for x_TF in x_BTF.numpy()]
    np.testing.assert_allclose(network(x_BTF)[:, 0, 0].detach().numpy(), [y for y, _ in expected], rtol=RTOL)
    a_BTDN = network.addressing(x_BTF).detach()
    np.testing.assert_allclose(a_BTDN.numpy(), np.stack([a for _, a in expected]), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(a_BTDN.sum(dim=3), torch.ones(B, T, 2, dtype=torch.float64))


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_the_gradients_of_the_turing_machine_are_its_finite_differences(controller: str) -> None:
    network = ntm_of(controller, units=2, slots=3, width=2)
    x_BTF = windows(batch=2)[:, :3].double().requires_grad_()
    names, values = zip(*network.named_parameters(), strict=True)

    def forecast(x_BTF: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x_BTF,))

    assert torch.autograd.gradcheck(forecast, (x_BTF, *values), rtol=1e-5)


def test_the_turing_machine_remembers_by_its_memory_alone() -> None:
    """With a feed-forward controller no state but the memory and the heads links two steps."""
    network, x_BTF = ntm_of("feedforward"), windows().double().requires_grad_()
    network(x_BTF).sum().backward()
    assert x_BTF.grad is not None
    assert x_BTF.grad.any(dim=2).all()


# Adaptive computation time.


def act_of(cell: str, bias: float, **axes: Any) -> ACT:
    network = network_of("act_rnn", {"cell": cell, "units": 5, **axes}).double()
    assert isinstance(network, ACT)
    nn.init.constant_(network.halting.bias, bias)
    nn.init.normal_(network.halting.weight, std=2)
    return network


def cell_step(weights: dict[str, np.ndarray], x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Elman's cell, or the GRU as cuDNN computes it, after the number of its gates."""
    a = weights["cell.weight_ih"] @ x + weights["cell.bias_ih"]
    b = weights["cell.weight_hh"] @ s + weights["cell.bias_hh"]
    if len(a) == len(s):
        return np.tanh(a + b)
    (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
    z = sigmoid(az + bz)
    return (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * s


def pondering(weights: dict[str, np.ndarray], x_TF: np.ndarray, max_ponder: int) -> tuple[float, list[int], float]:
    """The forecast of one window, its steps at each input and its ponder cost, as in the paper's section 2."""
    s, steps, cost = np.zeros(weights["halting.weight"].shape[1]), [], 0.0
    for x in x_TF:
        states, probabilities = [s], []
        while not probabilities or (sum(probabilities) < 1 - 0.01 and len(probabilities) < max_ponder):
            flag = 0.0 if probabilities else 1.0
            states.append(cell_step(weights, np.append(x, flag), states[-1]))
            probabilities.append(sigmoid(weights["halting.weight"][0] @ states[-1] + weights["halting.bias"][0]))
        remainder = 1 - sum(probabilities[:-1])
        probabilities[-1] = remainder
        s = sum(p * state for p, state in zip(probabilities, states[1:], strict=True))
        steps.append(len(probabilities))
        cost += len(probabilities) + remainder
    return float(weights["output.weight"][0] @ s + weights["output.bias"][0]), steps, cost


@pytest.mark.parametrize("cell", ["gru", "elman"])
@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("max_ponder", [2, 6])
def test_adaptive_computation_follows_its_equations(cell: str, bias: float, max_ponder: int) -> None:
    network, x_BTF = act_of(cell, bias, max_ponder=max_ponder, ponder_cost=0.01), windows().double()
    actual, penalty = network(x_BTF), network.penalty()
    steps_BT = network.count_steps(x_BTF)
    expected = [pondering(arrays(network), x_TF, max_ponder) for x_TF in x_BTF.numpy()]
    np.testing.assert_allclose(actual[:, 0, 0].detach().numpy(), [y for y, _, _ in expected], rtol=RTOL)
    assert steps_BT.tolist() == [steps for _, steps, _ in expected]
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.01 * np.mean([cost for _, _, cost in expected]), rel=RTOL)


def test_windows_ponder_each_for_itself() -> None:
    steps_BT = act_of("gru", bias=0.0, max_ponder=6).count_steps(windows().double())
    assert steps_BT.shape == (B, T)
    assert len(steps_BT.unique()) > 2


@pytest.mark.parametrize(("bias", "steps"), [(50.0, 1), (-50.0, 3)])
def test_a_cell_that_halts_at_once_is_the_cell_and_one_that_never_does_takes_all_steps(bias: float, steps: int) -> None:
    network, x_BTF = act_of("gru", bias, max_ponder=3), windows().double()
    nn.init.zeros_(network.halting.weight)
    assert (network.count_steps(x_BTF) == steps).all()
    h_BH = torch.zeros(B, 5, dtype=torch.float64)
    for x_BF in x_BTF.unbind(1):
        for n in range(steps):
            h_BH = network.cell(nn.functional.pad(x_BF, (0, 1), value=float(n == 0)), h_BH)
    torch.testing.assert_close(network(x_BTF), network.output(h_BH))


def test_there_is_a_penalty_in_training_only() -> None:
    network, x_BTF = act_of("gru", bias=0.0), windows().double()
    assert network.penalty() is None
    network.train()(x_BTF)
    assert network.penalty() is not None
    network.eval()(x_BTF)
    assert network.penalty() is None


def test_training_on_the_penalty_alone_makes_a_cell_halt_earlier() -> None:
    network, x_BTF = act_of("gru", bias=-2.0, max_ponder=6, ponder_cost=0.01), windows().double()
    before = network.count_steps(x_BTF).mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(15):
        network(x_BTF)
        penalty = network.penalty()
        assert penalty is not None
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    assert network.count_steps(x_BTF).mean() < before / 1.5


@pytest.mark.parametrize("cell", ["gru", "elman"])
def test_the_gradients_of_adaptive_computation_are_its_finite_differences(cell: str) -> None:
    """Of forecast and penalty, where no number of steps changes."""
    shape = WindowShape(3, F, 0, horizon=1, day=24)
    network = network_of("act_rnn", {"cell": cell, "units": 3, "ponder_cost": 0.1}, shape=shape).double()
    x_BTF = windows(batch=2)[:, :3].double().requires_grad_()
    names, values = zip(*network.named_parameters(), strict=True)

    def both(x_BTF: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        y_B = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x_BTF,))
        penalty = network.penalty()
        assert penalty is not None
        return y_B, penalty

    assert torch.autograd.gradcheck(both, (x_BTF, *values), rtol=1e-5)
