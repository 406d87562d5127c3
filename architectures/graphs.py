"""Loops over the steps of a sequence as CUDA graphs: all kernels of all steps are launched by one call.

A step of a recurrent cell is a dozen small kernels, and Python takes longer to launch one than the GPU to run it. A
graph, captured once, launches them together, the same kernels on the same numbers. It reads and writes memory of its
own: what it is given is copied in, and what it makes is copied out. So a call leaves nothing behind, and there may be
any others between a forward pass and its backward pass.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SIGHTS = 3
"""Calls with tensors of one shape before they are captured: where lengths vary, most shapes are rare."""
MOST = 32
"""Graphs in a process. Each holds the memory that its work takes."""

Tensors = tuple[Tensor | None, ...]
Work = Callable[[Tensors], tuple[Tensors, Tensors]]
"""What is made of some tensors: what is given back, and what is kept for the derivative."""


class Context:
    """What `forward` and `backward` of a cell's function are handed in the place of autograd's own context."""

    def __init__(self, activation: str, saved: Tensors = (), needs_input_grad: tuple[bool, ...] = ()) -> None:
        self.activation = activation
        self.saved_tensors = saved
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing: `Looped` sets it."""


class Looped(torch.autograd.Function):
    """A cell's function; on a GPU, where it is trained, its passes are replayed from graphs."""

    @staticmethod
    def forward(ctx: Any, cell: Any, activation: str, *tensors: Tensor | None) -> Tensors:
        def work(tensors: Tensors) -> tuple[Tensors, Tensors]:
            context = Context(activation)
            return cell.forward(context, activation, *tensors), context.saved_tensors

        if any(ctx.needs_input_grad):
            outputs, saved = replayed((cell, activation, "forward"), work, tensors)
        else:
            outputs, saved = work(tensors)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.activation = cell, activation
        ctx.save_for_backward(*saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d: Tensor | None) -> Tensors:
        cell, activation, saved, needed = ctx.cell, ctx.activation, ctx.saved_tensors, ctx.needs_input_grad[1:]

        def work(tensors: Tensors) -> tuple[Tensors, Tensors]:
            context = Context(activation, tensors[: len(saved)], needed)
            return cell.backward(context, *tensors[len(saved) :]), ()

        by_inputs, _ = replayed((cell, activation, "backward", needed), work, (*saved, *d))
        return None, *by_inputs


_sights: Counter[Hashable] = Counter()
_graphs: dict[Hashable, "Graph"] = {}


def replayed(of: tuple[Hashable, ...], work: Work, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """What the work makes of the tensors: by its graph, if tensors of these shapes have come to a GPU often enough.

    Args:
        of: what the work is; beside it, the shapes alone decide which operations it is made of.
    """
    key = (*of, *(None if each is None else (each.shape, each.dtype, each.device) for each in tensors))
    if key not in _graphs:
        on_gpu = any(each is not None and each.is_cuda for each in tensors)
        if not on_gpu or len(_graphs) >= MOST or torch.cuda.is_current_stream_capturing():
            return work(tensors)
        _sights[key] += 1
        if _sights[key] <= SIGHTS:
            return work(tensors)
        _graphs[key] = Graph(work, tensors)
    return _graphs[key](tensors)


class Graph:
    """Work on tensors of some shapes, captured on the current GPU."""

    def __init__(self, work: Work, tensors: Tensors) -> None:
        self.inputs = tuple(None if each is None else each.detach().clone() for each in tensors)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What libraries allocate for their first call must not be part of the graph.
            work(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # The backward pass is in a thread of autograd's: what others do meanwhile is no concern of the capture.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.made = work(self.inputs)

    def __call__(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        given: dict[int, Tensor] = {}
        for inside, outside in zip(self.inputs, tensors, strict=True):
            if inside is not None and outside is not None:
                inside.copy_(outside)
                given[id(inside)] = outside
        self.graph.replay()

        def outside_of(made: Tensors) -> Tensors:
            """Copies; of what was only handed through, the tensor that was given."""
            return tuple(
                None if each is None else given[id(each)] if id(each) in given else each.clone() for each in made
            )

        outputs, saved = self.made
        return outside_of(outputs), outside_of(saved)
