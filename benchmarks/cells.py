"""Time of one training step (forward and backward pass) of each recurrent layer, on input (128, 120, 14) with 32 units.

Each layer is compared, where they exist and in this order, with PyTorch's layer of the same size; with PyTorch's cell,
called at every step; and with a textbook loop over modules, two `nn.Linear` per gate, called at every step. Only the
last state is used.

Goal: three times as fast as the textbook loop. A layer saves the time that a loop spends on calls. The last table
therefore covers other sizes too: the larger the matrix products, the larger their share of the time, in both.
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
from benchmarks.measure import Result, measure_in_turn, round_results, time_call

STEPS_BACK, FEATURES = 120, 14
BATCH, UNITS = 128, 32
SIZES = ((8, 16), (32, 32), (BATCH, UNITS), (256, 64))
"""Batch sizes and numbers of units of the last table."""

LOOP = "textbook loop"

State = tuple[Tensor, ...]
LayerFactory = Callable[[int], nn.Module]
"""Makes a layer with a given number of units."""


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds per step on one CPU thread; those on a GPU are in the benchmark `gpu`."""
    times, rounds = (3, 2) if quick else (20, 9)
    torch.set_num_threads(1)

    def measure(factories: dict[str, LayerFactory], batch: int, units: int) -> list[Result]:
        x_BTF = torch.randn(batch, STEPS_BACK, FEATURES)
        steps = {contender: time_step(make_layer(units), x_BTF, times) for contender, make_layer in factories.items()}
        return measure_in_turn(steps, "ms", rounds, more_is_better=False)

    result: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    for layer, factories in CONTENDERS.items():
        result[f"{layer}, one CPU thread"] = round_results(measure(factories, BATCH, UNITS))
    result[f"how many times as long the {LOOP} takes, one CPU thread"] = {
        layer: {
            f"batch {batch}, {units} units": round(measure(_select_loop(factories), batch, units)[1].ratio, 2)
            for batch, units in SIZES
        }
        for layer, factories in CONTENDERS.items()
        if LOOP in factories
    }
    return result


def _select_loop(factories: dict[str, LayerFactory]) -> dict[str, LayerFactory]:
    """Recast's layer and the textbook loop alone."""
    return {contender: factories[contender] for contender in ("Recast", LOOP)}


def time_step(layer: nn.Module, x_BTF: Tensor, times: int) -> Callable[[], float]:
    """A measurement of a forward and a backward pass: the mean of `times` in a row, in milliseconds."""

    def run_steps() -> None:
        for _ in range(times):
            layer.zero_grad(set_to_none=True)
            _, state = layer(x_BTF)
            last = state[0] if isinstance(state, tuple) else state
            last.sum().backward()
        if x_BTF.is_cuda:
            torch.cuda.synchronize()

    return lambda: 1000 * time_call(run_steps) / times


class Loop(nn.Module):
    """A layer that calls a cell at every step."""

    def __init__(self, cell: nn.Module, units: int, states: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.units = units
        self.states = states

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, State]:
        state: State = (x_BTF.new_zeros(len(x_BTF), self.units),) * self.states
        outputs = []
        for t in range(x_BTF.shape[1]):
            next_state = self.cell(x_BTF[:, t], state if self.states > 1 else state[0])
            state = next_state if isinstance(next_state, tuple) else (next_state,)
            outputs.append(state[0])
        return torch.stack(outputs, 1), state


class TextbookCell(nn.Module):
    """A cell that computes W x + U h + b of every gate with two modules."""

    gates: ClassVar[int]

    def __init__(self, units: int) -> None:
        super().__init__()
        self.input_maps = nn.ModuleList(nn.Linear(FEATURES, units) for _ in range(self.gates))
        self.state_maps = nn.ModuleList(nn.Linear(units, units, bias=False) for _ in range(self.gates))

    def gate(self, i: int, x: Tensor, h: Tensor) -> Tensor:
        sum_BH: Tensor = self.input_maps[i](x) + self.state_maps[i](h)
        return sum_BH


class ElmanCell(TextbookCell):
    gates = 1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.gate(0, x, h))


class JordanCell(TextbookCell):
    gates = 1

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.out = nn.Linear(units, units)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.out(torch.tanh(self.gate(0, x, y))))


class LSTMCell(TextbookCell):
    gates = 4

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        i, f, o = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(3))
        c = f * c + i * torch.tanh(self.gate(3, x, h))
        return o * torch.tanh(c), c


class PeepholeCell(TextbookCell):
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


class GRUCell(TextbookCell):
    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        n = torch.tanh(self.input_maps[2](x) + r * self.state_maps[2](h))
        return (1 - z) * n + z * h


class GRUResetBeforeCell(TextbookCell):
    gates = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, r = (torch.sigmoid(self.gate(gate, x, h)) for gate in range(2))
        return (1 - z) * h + z * torch.tanh(self.gate(2, x, r * h))


def _recast_layer(kind: type[RecurrentLayer], recurrent_dropout: float = 0.0) -> LayerFactory:
    return lambda units: kind(FEATURES, units, recurrent_dropout=recurrent_dropout)


def _torch_layer(kind: Callable[..., nn.Module]) -> LayerFactory:
    return lambda units: kind(FEATURES, units, batch_first=True)


def _loop_over(cell: Callable[[int], nn.Module], states: int = 1) -> LayerFactory:
    return lambda units: Loop(cell(units), units, states)


def _loop_over_torch_cell(cell: Callable[..., nn.Module], states: int = 1) -> LayerFactory:
    return _loop_over(lambda units: cell(FEATURES, units), states)


CONTENDERS: dict[str, dict[str, LayerFactory]] = {
    "Elman": {
        "Recast": _recast_layer(Elman),
        "torch.nn.RNN": _torch_layer(nn.RNN),
        "loop over torch.nn.RNNCell": _loop_over_torch_cell(nn.RNNCell),
        LOOP: _loop_over(ElmanCell),
    },
    "Jordan": {"Recast": _recast_layer(Jordan), LOOP: _loop_over(JordanCell)},
    "LSTM": {
        "Recast": _recast_layer(LSTM),
        "torch.nn.LSTM": _torch_layer(nn.LSTM),
        "loop over torch.nn.LSTMCell": _loop_over_torch_cell(nn.LSTMCell, states=2),
        LOOP: _loop_over(LSTMCell, states=2),
    },
    "LSTM with recurrent dropout": {
        "Recast": _recast_layer(LSTM, 0.5),
        "torch.nn.LSTM, without dropout": _torch_layer(nn.LSTM),
        "loop over torch.nn.LSTMCell, without dropout": _loop_over_torch_cell(nn.LSTMCell, states=2),
        f"{LOOP}, without dropout": _loop_over(LSTMCell, states=2),
    },
    "peephole LSTM": {
        "Recast": _recast_layer(PeepholeLSTM),
        "torch.nn.LSTM, without peepholes": _torch_layer(nn.LSTM),
        LOOP: _loop_over(PeepholeCell, states=2),
    },
    "GRU": {
        "Recast": _recast_layer(GRU),
        "torch.nn.GRU": _torch_layer(nn.GRU),
        "loop over torch.nn.GRUCell": _loop_over_torch_cell(nn.GRUCell),
        LOOP: _loop_over(GRUCell),
    },
    "GRU with recurrent dropout": {
        "Recast": _recast_layer(GRU, 0.5),
        "torch.nn.GRU, without dropout": _torch_layer(nn.GRU),
        "loop over torch.nn.GRUCell, without dropout": _loop_over_torch_cell(nn.GRUCell),
        f"{LOOP}, without dropout": _loop_over(GRUCell),
    },
    "GRU, reset before": {
        "Recast": _recast_layer(GRUResetBefore),
        "torch.nn.GRU, reset after": _torch_layer(nn.GRU),
        LOOP: _loop_over(GRUResetBeforeCell),
    },
}
