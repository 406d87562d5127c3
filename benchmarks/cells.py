"""A training step's forward and backward pass of each recurrent layer, on (128, 120, 14) with 32 units.

Beside each, in this order where they exist: PyTorch's layer of the same size; PyTorch's cell, called at each step; and
a loop over modules as a textbook has it, two `nn.Linear` a gate, called at each step. Only the last state is read.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from architectures.cells import GRU, LSTM, Elman, GRUResetBefore, Jordan, Layer, PeepholeLSTM
from benchmarks.measure import alternate, seconds, table

BATCH, STEPS_BACK, FEATURES, UNITS = 128, 120, 14, 32
State = tuple[Tensor, ...]


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds of a step. Where there is a GPU, there too."""
    times, rounds = (3, 2) if quick else (20, 9)
    found: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    torch.set_num_threads(1)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for device in devices:
        x_BTF = torch.randn(BATCH, STEPS_BACK, FEATURES, device=device)
        for name, contenders in CONTENDERS.items():
            work = {what: _step(make().to(device), x_BTF, times) for what, make in contenders.items()}
            on = "one CPU thread" if device == "cpu" else "GPU"
            found[f"{name}, {on}"] = table(alternate(work, "ms", rounds, more_is_better=False))
    return found


def _step(layer: nn.Module, x_BTF: Tensor, times: int) -> Callable[[], float]:
    """Milliseconds of a forward and a backward pass, of so many in a row."""

    def steps() -> None:
        for _ in range(times):
            layer.zero_grad(set_to_none=True)
            _, state = layer(x_BTF)
            last = state[0] if isinstance(state, tuple) else state
            last.sum().backward()
        if x_BTF.is_cuda:
            torch.cuda.synchronize()

    return lambda: 1000 * seconds(steps) / times


class Loop(nn.Module):
    """A cell called at each step."""

    def __init__(self, cell: nn.Module, states: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.states = states

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, State]:
        state: State = (x_BTF.new_zeros(len(x_BTF), UNITS),) * self.states
        given = []
        for t in range(x_BTF.shape[1]):
            after = self.cell(x_BTF[:, t], state if self.states > 1 else state[0])
            state = after if isinstance(after, tuple) else (after,)
            given.append(state[0])
        return torch.stack(given, 1), state


class Textbook(nn.Module):
    """W x + U h + b of each gate, by two modules."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.of_x = nn.ModuleList(nn.Linear(FEATURES, UNITS) for _ in range(gates))
        self.of_h = nn.ModuleList(nn.Linear(UNITS, UNITS, bias=False) for _ in range(gates))

    def gate(self, i: int, x: Tensor, h: Tensor) -> Tensor:
        sum_BH: Tensor = self.of_x[i](x) + self.of_h[i](h)
        return sum_BH


class ElmanCell(Textbook):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.gate(0, x, h))


class JordanCell(Textbook):
    def __init__(self, gates: int) -> None:
        super().__init__(gates)
        self.out = nn.Linear(UNITS, UNITS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.gate(0, x, y))))


class LSTMCell(Textbook):
    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, o = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(3))
        c = f * c + i * torch.tanh(self.gate(3, x, h))
        return o * torch.tanh(c), c


class PeepholeCell(Textbook):
    def __init__(self, gates: int) -> None:
        super().__init__(gates)
        self.p = nn.Parameter(torch.zeros(3, UNITS))

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i = torch.sigmoid(self.gate(0, x, h) + self.p[0] * c)
        f = torch.sigmoid(self.gate(1, x, h) + self.p[1] * c)
        c = f * c + i * torch.tanh(self.gate(3, x, h))
        return torch.sigmoid(self.gate(2, x, h) + self.p[2] * c) * torch.tanh(c), c


class GRUCell(Textbook):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        n = torch.tanh(self.of_x[2](x) + r * self.of_h[2](h))
        return (1 - z) * n + z * h


class GRUResetBeforeCell(Textbook):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        return (1 - z) * h + z * torch.tanh(self.gate(2, x, r * h))


def _ours(kind: type[Layer], recurrent_dropout: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: kind(FEATURES, UNITS, recurrent_dropout=recurrent_dropout)


def _peer(kind: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    return lambda: kind(FEATURES, UNITS, batch_first=True)


CONTENDERS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "Elman": {
        "Recast": _ours(Elman),
        "torch.nn.RNN": _peer(nn.RNN),
        "loop over torch.nn.RNNCell": lambda: Loop(nn.RNNCell(FEATURES, UNITS)),
        "textbook's loop": lambda: Loop(ElmanCell(1)),
    },
    "Jordan": {"Recast": _ours(Jordan), "textbook's loop": lambda: Loop(JordanCell(1))},
    "LSTM": {
        "Recast": _ours(LSTM),
        "torch.nn.LSTM": _peer(nn.LSTM),
        "loop over torch.nn.LSTMCell": lambda: Loop(nn.LSTMCell(FEATURES, UNITS), states=2),
        "textbook's loop": lambda: Loop(LSTMCell(4), states=2),
    },
    "LSTM with recurrent dropout": {
        "Recast": _ours(LSTM, 0.5),
        "torch.nn.LSTM, without": _peer(nn.LSTM),
        "loop over torch.nn.LSTMCell, without": lambda: Loop(nn.LSTMCell(FEATURES, UNITS), states=2),
        "textbook's loop, without": lambda: Loop(LSTMCell(4), states=2),
    },
    "peephole LSTM": {
        "Recast": _ours(PeepholeLSTM),
        "torch.nn.LSTM, no peepholes": _peer(nn.LSTM),
        "textbook's loop": lambda: Loop(PeepholeCell(4), states=2),
    },
    "GRU": {
        "Recast": _ours(GRU),
        "torch.nn.GRU": _peer(nn.GRU),
        "loop over torch.nn.GRUCell": lambda: Loop(nn.GRUCell(FEATURES, UNITS)),
        "textbook's loop": lambda: Loop(GRUCell(3)),
    },
    "GRU with recurrent dropout": {
        "Recast": _ours(GRU, 0.5),
        "torch.nn.GRU, without": _peer(nn.GRU),
        "loop over torch.nn.GRUCell, without": lambda: Loop(nn.GRUCell(FEATURES, UNITS)),
        "textbook's loop, without": lambda: Loop(GRUCell(3)),
    },
    "GRU, reset before": {
        "Recast": _ours(GRUResetBefore),
        "torch.nn.GRU, reset after": _peer(nn.GRU),
        "textbook's loop": lambda: Loop(GRUResetBeforeCell(3)),
    },
}
