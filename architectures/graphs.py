"""Loops over the steps of a sequence as CUDA graphs: one call launches all kernels of all steps.

A step of a recurrent cell is a dozen small kernels, and Python takes longer to launch one than the GPU to run it. A
graph is captured once and then launches them together, the same kernels on the same numbers. It reads and writes memory
of its own: inputs are copied in, outputs are copied out. So a call leaves no state behind, and any other calls may come
between a forward pass and its backward pass.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CALLS_BEFORE_CAPTURE = 3
"""Calls with tensors of one shape that come before their capture: where lengths vary, most shapes are rare."""
MAX_GRAPHS = 32
"""The largest number of graphs in a process. Each keeps the memory that its work takes."""

Tensors = tuple[Tensor | None, ...]
Work = Callable[[Tensors], tuple[Tensors, Tensors]]
"""A computation on tensors. It returns its outputs, and the tensors that are saved for the derivative."""


class LoopContext:
    """The context that `forward` and `backward` of a cell's loop get instead of autograd's own."""

    def __init__(self, activation: str, saved: Tensors = (), needs_input_grad: tuple[bool, ...] = ()) -> None:
        self.activation = activation
        self.saved_tensors = saved
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Do nothing: `GraphedLoop` sets it."""


class GraphedLoop(torch.autograd.Function):
    """A cell's loop as a function of autograd; on a GPU its passes are replayed from graphs, if it is trained."""

    @staticmethod
    def forward(ctx: Any, loop: Any, activation: str, *tensors: Tensor | None) -> Tensors:
        def work(tensors: Tensors) -> tuple[Tensors, Tensors]:
            context = LoopContext(activation)
            return loop.forward(context, activation, *tensors), context.saved_tensors

        if any(ctx.needs_input_grad):
            outputs, saved = run_or_replay((loop, activation, "forward"), work, tensors)
        else:
            outputs, saved = work(tensors)
        ctx.set_materialize_grads(False)
        ctx.loop, ctx.activation = loop, activation
        ctx.save_for_backward(*saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d: Tensor | None) -> Tensors:
        loop, activation, saved, needed = ctx.loop, ctx.activation, ctx.saved_tensors, ctx.needs_input_grad[1:]

        def work(tensors: Tensors) -> tuple[Tensors, Tensors]:
            context = LoopContext(activation, tensors[: len(saved)], needed)
            return loop.backward(context, *tensors[len(saved) :]), ()

        by_inputs, _ = run_or_replay((loop, activation, "backward", needed), work, (*saved, *d))
        return None, *by_inputs


_call_counts: Counter[Hashable] = Counter()
_graphs: dict[Hashable, "Graph"] = {}


def run_or_replay(name: tuple[Hashable, ...], work: Work, tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Do the work: by its graph, if it has been called often enough with tensors of these shapes on a GPU.

    Args:
        name: identifies the work. Name and shapes together decide which operations the work consists of.
    """
    key = (*name, *(None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in tensors))
    if key not in _graphs:
        on_gpu = any(tensor is not None and tensor.is_cuda for tensor in tensors)
        if not on_gpu or len(_graphs) >= MAX_GRAPHS or torch.cuda.is_current_stream_capturing():
            return work(tensors)
        _call_counts[key] += 1
        if _call_counts[key] <= CALLS_BEFORE_CAPTURE:
            return work(tensors)
        _graphs[key] = Graph(work, tensors)
    return _graphs[key](tensors)


class Graph:
    """Work on tensors of some shapes, captured on the current GPU."""

    def __init__(self, work: Work, tensors: Tensors) -> None:
        self.inputs = tuple(None if tensor is None else tensor.detach().clone() for tensor in tensors)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Libraries allocate memory at their first call, which must not become part of the graph.
            work(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # The backward pass runs in a thread of autograd's: what other threads do meanwhile must not break the capture.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.results = work(self.inputs)

    def __call__(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        originals: dict[int, Tensor] = {}
        for inside, outside in zip(self.inputs, tensors, strict=True):
            if inside is not None and outside is not None:
                inside.copy_(outside)
                originals[id(inside)] = outside
        self.graph.replay()

        def copy_out(results: Tensors) -> Tensors:
            """Copies of the results; an input that the work returns unchanged is the caller's own tensor."""
            return tuple(
                None if tensor is None else originals[id(tensor)] if id(tensor) in originals else tensor.clone()
                for tensor in results
            )

        outputs, saved = self.results
        return copy_out(outputs), copy_out(saved)
