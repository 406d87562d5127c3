"""A training step's forward and backward pass of each recurrent layer, on (128, 120, 14) with 32 units.

Beside each, in this order where they exist: PyTorch's layer of the same size; PyTorch's cell, called at each step; and
a loop over modules as a textbook has it, two `nn.Linear` a gate, called at each step. Only the last state is read.

Aim: three times the textbook's loop. What a layer saves is what a loop spends on calls, so the last table has other
sizes too: the larger the products, the more of the time is theirs, in both.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from architectures.cells.elman import Elman
from architectures.cells.gru import GRU, GRUResetBefore
from architectures.cells.jordan import Jordan
from architectures.cells.layer import RecurrentLayer
from architectures.cells.lstm import LSTM, PeepholeLSTM
from benchmarks.measure import Result, alternate, seconds, table

STEPS_BACK, FEATURES = 120, 14
BATCH, UNITS = 128, 32
SIZES = ((8, 16), (32, 32), (BATCH, UNITS), (256, 64))
"""Sequences in a batch, and units, of the last table."""

LOOP = "textbook's loop"

State = tuple[Tensor, ...]
Maker = Callable[[int], nn.Module]
"""A layer of so many units."""


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds of a step on one CPU thread; those on a GPU are in the benchmark `gpu`."""
    times, rounds = (3, 2) if quick else (20, 9)
    torch.set_num_threads(1)

    def measure(made: dict[str, Maker], batch: int, units: int) -> list[Result]:
        x_BTF = torch.randn(batch, STEPS_BACK, FEATURES)
        work = {what: _step(make(units), x_BTF, times) for what, make in made.items()}
        return alternate(work, "ms", rounds, more_is_better=False)

    found: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    for name, made in CONTENDERS.items():
        found[f"{name}, one CPU thread"] = table(measure(made, BATCH, UNITS))
    found[f"the {LOOP} takes so many times as long, one CPU thread"] = {
        name: {
            f"batch {batch}, {units} units": round(measure(_two(made), batch, units)[1].ratio, 2)
            for batch, units in SIZES
        }
        for name, made in CONTENDERS.items()
        if LOOP in made
    }
    return found


def _two(made: dict[str, Maker]) -> dict[str, Maker]:
    return {name: made[name] for name in ("Recast", LOOP)}


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

    def __init__(self, cell: nn.Module, units: int, states: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.units = units
        self.states = states

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, State]:
        state: State = (x_BTF.new_zeros(len(x_BTF), self.units),) * self.states
        given = []
        for t in range(x_BTF.shape[1]):
            after = self.cell(x_BTF[:, t], state if self.states > 1 else state[0])
            state = after if isinstance(after, tuple) else (after,)
            given.append(state[0])
        return torch.stack(given, 1), state


class Textbook(nn.Module):
    """W x + U h + b of each gate, by two modules."""

    gates: ClassVar[int]

    def __init__(self, units: int) -> None:
        super().__init__()
        self.of_x = nn.ModuleList(nn.Linear(FEATURES, units) for _ in range(self.gates))
        self.of_h = nn.ModuleList(nn.Linear(units, units, bias=False) for _ in range(self.gates))

    def gate(self, i: int, x: Tensor, h: Tensor) -> Tensor:
        sum_BH: Tensor = self.of_x[i](x) + self.of_h[i](h)
        return sum_BH


class ElmanCell(Textbook):
    gates = 1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.gate(0, x, h))


class JordanCell(Textbook):
    gates = 1

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.out = nn.Linear(units, units)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.gate(0, x, y))))


class LSTMCell(Textbook):
    gates = 4

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, o = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(3))
        c = f * c + i * torch.tanh(self.gate(3, x, h))
        return o * torch.tanh(c), c


class PeepholeCell(Textbook):
    gates = 4

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.p = nn.Parameter(torch.zeros(3, units))

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i = torch.sigmoid(self.gate(0, x, h) + self.p[0] * c)
        f = torch.sigmoid(self.gate(1, x, h) + self.p[1] * c)
        c = f * c + i * torch.tanh(self.gate(3, x, h))
        return torch.sigmoid(self.gate(2, x, h) + self.p[2] * c) * torch.tanh(c), c


class GRUCell(Textbook):
    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        n = torch.tanh(self.of_x[2](x) + r * self.of_h[2](h))
        return (1 - z) * n + z * h


class GRUResetBeforeCell(Textbook):
    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        return (1 - z) * h + z * torch.tanh(self.gate(2, x, r * h))


def _ours(kind: type[RecurrentLayer], recurrent_dropout: float = 0.0) -> Maker:
    return lambda units: kind(FEATURES, units, recurrent_dropout=recurrent_dropout)


def _peer(kind: Callable[..., nn.Module]) -> Maker:
    return lambda units: kind(FEATURES, units, batch_first=True)


def _loop(cell: Callable[[int], nn.Module], states: int = 1) -> Maker:
    return lambda units: Loop(cell(units), units, states)


def _peer_loop(cell: Callable[..., nn.Module], states: int = 1) -> Maker:
    return _loop(lambda units: cell(FEATURES, units), states)


CONTENDERS: dict[str, dict[str, Maker]] = {
    "Elman": {
        "Recast": _ours(Elman),
        "torch.nn.RNN": _peer(nn.RNN),
        "loop over torch.nn.RNNCell": _peer_loop(nn.RNNCell),
        LOOP: _loop(ElmanCell),
    },
    "Jordan": {"Recast": _ours(Jordan), LOOP: _loop(JordanCell)},
    "LSTM": {
        "Recast": _ours(LSTM),
        "torch.nn.LSTM": _peer(nn.LSTM),
        "loop over torch.nn.LSTMCell": _peer_loop(nn.LSTMCell, states=2),
        LOOP: _loop(LSTMCell, states=2),
    },
    "LSTM with recurrent dropout": {
        "Recast": _ours(LSTM, 0.5),
        "torch.nn.LSTM, without": _peer(nn.LSTM),
        "loop over torch.nn.LSTMCell, without": _peer_loop(nn.LSTMCell, states=2),
        f"{LOOP}, without": _loop(LSTMCell, states=2),
    },
    "peephole LSTM": {
        "Recast": _ours(PeepholeLSTM),
        "torch.nn.LSTM, no peepholes": _peer(nn.LSTM),
        LOOP: _loop(PeepholeCell, states=2),
    },
    "GRU": {
        "Recast": _ours(GRU),
        "torch.nn.GRU": _peer(nn.GRU),
        "loop over torch.nn.GRUCell": _peer_loop(nn.GRUCell),
        LOOP: _loop(GRUCell),
    },
    "GRU with recurrent dropout": {
        "Recast": _ours(GRU, 0.5),
        "torch.nn.GRU, without": _peer(nn.GRU),
        "loop over torch.nn.GRUCell, without": _peer_loop(nn.GRUCell),
        f"{LOOP}, without": _loop(GRUCell),
    },
    "GRU, reset before": {
        "Recast": _ours(GRUResetBefore),
        "torch.nn.GRU, reset after": _peer(nn.GRU),
        LOOP: _loop(GRUResetBeforeCell),
    },
}
