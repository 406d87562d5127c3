"""Time of a training step (forward and backward pass) of recurrent layers, on input (128, 120, 14), one CPU thread.

Each layer is compared, where they exist and in this order, with PyTorch's layer of the same size; with PyTorch's cell,
called at every step; with a textbook loop over modules, two `nn.Linear` per gate, called at every step; and with
Recast's own loops of PyTorch's operations, which it uses where no loop can be compiled. Only the last state is used.

The arithmetic efficiency is the rate of the floating-point operations of the equations' products (those of the
derivatives too, except with respect to the inputs, which nobody asks for), divided by the rate of a product of two
matrices of 1,024 x 1,024 in the same round. Inference is a call without derivatives.

Goals: three times as fast as the textbook loop; 60 % efficiency at 32 units; a GRU 5, 3, 1.8 and 1.4 times as fast as
`torch.nn.GRU` at 16, 32, 64 and 128 units, an LSTM never slower than `torch.nn.LSTM`; at 32 units 4 times as fast as
the loops of PyTorch's operations with recurrent dropout, peepholes, reset before, or relu.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from architectures.cells.elman import Elman
from architectures.cells.gru import GRU, GRUResetBefore
from architectures.cells.jordan import Jordan
from architectures.cells.layer import RecurrentLayer
from architectures.cells.loops import Activation
from architectures.cells.lstm import LSTM, PeepholeLSTM
from benchmarks.measure import Result, measure_in_turn, round_results, time_call

STEPS_BACK, FEATURES = 120, 14
BATCH, UNITS = 128, 32
SIZES = (16, 32, 64, 128)
"""Numbers of units of the tables by size."""

INFERENCE_BATCHES = (1, 16, 1024)

RECAST, TORCH, LOOP, FALLBACK = "Recast", "PyTorch's layer", "textbook loop", "loops of PyTorch's operations"

MATRIX, MATRIX_SIZE = "matrix product", 1024
"""What the arithmetic efficiency is measured by."""

State = tuple[Tensor, ...]
LayerFactory = Callable[[int], nn.Module]
"""Makes a layer with a given number of units."""


@dataclass(frozen=True)
class Compared:
    """A layer of Recast, and what its arithmetic is.

    Attributes:
        gates: how many sums W x + U h + b it has.
        products: how many more products of H by H numbers it has.
        peer: PyTorch's layer with the same equations; None: it has none.
    """

    kind: type[RecurrentLayer]
    gates: int
    products: int = 0
    peer: Callable[..., nn.Module] | None = None

    def count_operations(self, units: int) -> float:
        """The floating-point operations of the products of a training step."""
        inputs, states = self.gates * units * FEATURES, (self.gates + self.products) * units**2
        # Forward, and for the derivatives by the weights; of the states also for those by the state before.
        return 2.0 * BATCH * STEPS_BACK * (2 * inputs + 3 * states)


COMPARED = {
    "Elman": Compared(Elman, 1, peer=nn.RNN),
    "Jordan": Compared(Jordan, 1, products=1),
    "LSTM": Compared(LSTM, 4, peer=nn.LSTM),
    "peephole LSTM": Compared(PeepholeLSTM, 4),
    "GRU": Compared(GRU, 3, peer=nn.GRU),
    "GRU, reset before": Compared(GRUResetBefore, 3),
}


def run(quick: bool) -> dict[str, Any]:
    """Milliseconds per step on one CPU thread; those on a GPU are in the benchmark `gpu`."""
    times, rounds = (3, 2) if quick else (5, 7)
    sizes, batches = ((16, 32), (1, 16)) if quick else (SIZES, INFERENCE_BATCHES)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"batch": BATCH, "window": [STEPS_BACK, FEATURES], "units": UNITS}
    x_BTF = torch.randn(BATCH, STEPS_BACK, FEATURES)
    for name, factories in (CONTENDERS | VARIANTS).items():
        steps = {contender: time_step(make(UNITS), x_BTF, times) for contender, make in factories.items()}
        steps[FALLBACK] = time_step(Fallback(factories[RECAST](UNITS)), x_BTF, times)
        results = measure_in_turn(steps, "ms", rounds, more_is_better=False)
        result[f"{name}, one CPU thread"] = round_results(results)
    result |= _compare_sizes(sizes, x_BTF, times, rounds)
    result[f"inference with {UNITS} units: how many times as long {TORCH} takes, or the {FALLBACK}"] = {
        name: {f"batch {batch:,}": _compare_inference(compared, batch, times, rounds) for batch in batches}
        for name, compared in COMPARED.items()
    }
    return result


def _compare_sizes(sizes: tuple[int, ...], x_BTF: Tensor, times: int, rounds: int) -> dict[str, Any]:
    """Tables with a row for each layer, and a column for each number of units."""
    tables: dict[str, dict[str, dict[str, str]]] = {
        f"how many times as long {TORCH} takes": {},
        f"how many times as long the {FALLBACK} take": {},
        f"arithmetic efficiency of {RECAST}": {},
        f"arithmetic efficiency of {TORCH}": {},
    }
    for name, compared in COMPARED.items():
        for units in sizes:
            ratios = {result.name: result.ratio for result in _measure_size(compared, units, x_BTF, times, rounds)}
            # The ratio of the matrix product's time to the layer's, times that of their operations.
            efficiency = ratios[MATRIX] * compared.count_operations(units) / (2 * MATRIX_SIZE**3)
            peer = ratios.get(TORCH)
            figures = (
                f"{peer:.2f}" if peer else "",
                f"{ratios[FALLBACK]:.2f}",
                f"{efficiency:.0%}",
                f"{efficiency / peer:.0%}" if peer else "",
            )
            for table, figure in zip(tables.values(), figures, strict=True):
                table.setdefault(name, {})[f"{units} units"] = figure
    return {
        title: {row: cells for row, cells in table.items() if any(cells.values())} for title, table in tables.items()
    }


def _measure_size(compared: Compared, units: int, x_BTF: Tensor, times: int, rounds: int) -> list[Result]:
    layer = compared.kind(FEATURES, units)
    steps = {RECAST: time_step(layer, x_BTF, times)}
    if compared.peer:
        steps[TORCH] = time_step(compared.peer(FEATURES, units, batch_first=True), x_BTF, times)
    steps[FALLBACK] = time_step(Fallback(layer), x_BTF, max(1, times // 4))
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE)
    steps[MATRIX] = lambda: 1000 * time_call(lambda: [a @ b for _ in range(times)]) / times
    return measure_in_turn(steps, "ms", rounds, more_is_better=False)


def _compare_inference(compared: Compared, batch: int, times: int, rounds: int) -> str:
    """How many times as long PyTorch's layer takes without derivatives; of a layer that it lacks, the loops."""
    x_BTF, layer = torch.randn(batch, STEPS_BACK, FEATURES), compared.kind(FEATURES, UNITS)
    peer = compared.peer(FEATURES, UNITS, batch_first=True) if compared.peer else Fallback(layer)
    calls = {RECAST: _time_inference(layer, x_BTF, times), "peer": _time_inference(peer, x_BTF, times)}
    return f"{measure_in_turn(calls, 'ms', rounds, more_is_better=False)[1].ratio:.2f}"


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


def _time_inference(layer: nn.Module, x_BTF: Tensor, times: int) -> Callable[[], float]:
    """A measurement of a call without derivatives: the mean of `times` in a row, in milliseconds."""

    def run_calls() -> None:
        with torch.inference_mode():
            for _ in range(times):
                layer(x_BTF)

    return lambda: 1000 * time_call(run_calls) / times


class Fallback(nn.Module):
    """A recurrent layer as Recast runs it where no loop can be compiled."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTF: Tensor) -> tuple[Tensor, State]:
        layer = self.layer
        if not isinstance(layer, RecurrentLayer):
            raise TypeError(f"{type(layer).__name__} is not a recurrent layer of Recast")
        state = (x_BTF.new_zeros(len(x_BTF), layer.units),) * layer.state_tensors
        mask_BH = None
        if self.training and layer.recurrent_dropout:
            mask_BH = nn.functional.dropout(torch.ones_like(state[0]), layer.recurrent_dropout)
        h_TBH, state = layer.run(x_BTF.transpose(0, 1), state, mask_BH)
        return h_TBH.transpose(0, 1), state


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


def _recast_layer(
    kind: type[RecurrentLayer], recurrent_dropout: float = 0.0, activation: Activation = "tanh"
) -> LayerFactory:
    return lambda units: kind(FEATURES, units, activation, recurrent_dropout=recurrent_dropout)


def _torch_layer(kind: Callable[..., nn.Module]) -> LayerFactory:
    return lambda units: kind(FEATURES, units, batch_first=True)


def _loop_over(cell: Callable[[int], nn.Module], states: int = 1) -> LayerFactory:
    return lambda units: Loop(cell(units), units, states)


def _loop_over_torch_cell(cell: Callable[..., nn.Module], states: int = 1) -> LayerFactory:
    return _loop_over(lambda units: cell(FEATURES, units), states)


CONTENDERS: dict[str, dict[str, LayerFactory]] = {
    "Elman": {
        RECAST: _recast_layer(Elman),
        "torch.nn.RNN": _torch_layer(nn.RNN),
        "loop over torch.nn.RNNCell": _loop_over_torch_cell(nn.RNNCell),
        LOOP: _loop_over(ElmanCell),
    },
    "Jordan": {RECAST: _recast_layer(Jordan), LOOP: _loop_over(JordanCell)},
    "LSTM": {
        RECAST: _recast_layer(LSTM),
        "torch.nn.LSTM": _torch_layer(nn.LSTM),
        "loop over torch.nn.LSTMCell": _loop_over_torch_cell(nn.LSTMCell, states=2),
        LOOP: _loop_over(LSTMCell, states=2),
    },
    "LSTM with recurrent dropout": {
        RECAST: _recast_layer(LSTM, 0.5),
        "torch.nn.LSTM, without dropout": _torch_layer(nn.LSTM),
        "loop over torch.nn.LSTMCell, without dropout": _loop_over_torch_cell(nn.LSTMCell, states=2),
        f"{LOOP}, without dropout": _loop_over(LSTMCell, states=2),
    },
    "peephole LSTM": {
        RECAST: _recast_layer(PeepholeLSTM),
        "torch.nn.LSTM, without peepholes": _torch_layer(nn.LSTM),
        LOOP: _loop_over(PeepholeCell, states=2),
    },
    "GRU": {
        RECAST: _recast_layer(GRU),
        "torch.nn.GRU": _torch_layer(nn.GRU),
        "loop over torch.nn.GRUCell": _loop_over_torch_cell(nn.GRUCell),
        LOOP: _loop_over(GRUCell),
    },
    "GRU with recurrent dropout": {
        RECAST: _recast_layer(GRU, 0.5),
        "torch.nn.GRU, without dropout": _torch_layer(nn.GRU),
        "loop over torch.nn.GRUCell, without dropout": _loop_over_torch_cell(nn.GRUCell),
        f"{LOOP}, without dropout": _loop_over(GRUCell),
    },
    "GRU, reset before": {
        RECAST: _recast_layer(GRUResetBefore),
        "torch.nn.GRU, reset after": _torch_layer(nn.GRU),
        LOOP: _loop_over(GRUResetBeforeCell),
    },
}

VARIANTS: dict[str, dict[str, LayerFactory]] = {
    "Elman, relu": {RECAST: _recast_layer(Elman, activation="relu")},
    "LSTM, relu": {RECAST: _recast_layer(LSTM, activation="relu")},
    "GRU, relu": {RECAST: _recast_layer(GRU, activation="relu")},
}
"""Layers that are compared with the loops of PyTorch's operations alone."""
