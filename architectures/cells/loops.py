"""What the loops of all cells have in common: activations in place, iteration over steps, and derivatives."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

aten = torch.ops.aten


Activation = Literal["tanh", "relu", "sigmoid"]


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
}
"""They work in place, because the sums that they are applied to are not needed afterwards."""


_MINUS_ONE = torch.tensor(-1.0)


def _tanh_of_half(a: Tensor) -> Tensor:
    """tanh(a / 2), in place."""
    return torch.add(_MINUS_ONE, a.sigmoid_(), alpha=2, out=a)


def choose_activation(activation: Activation, x: Tensor) -> tuple[int, Callable[[Tensor], Tensor]]:
    """A factor for the argument, and the function to apply to the product in place: together they are the activation.

    The caller multiplies the weights by the factor once. tanh(a) = 2 sigmoid(2 a) - 1, and on a CPU torch.sigmoid takes
    a fifth to a third of the time of torch.tanh.
    """
    if activation == "tanh" and not x.is_cuda:
        return 2, _tanh_of_half
    return 1, ACTIVATIONS[activation]


def relu_backward(d: Tensor, s: Tensor, *, grad_input: Tensor) -> None:
    aten.threshold_backward.grad_input(d, s, 0, grad_input=grad_input)


tanh_backward, sigmoid_backward = aten.tanh_backward.grad_input, aten.sigmoid_backward.grad_input


ACTIVATION_BACKWARD: dict[Activation, Callable[..., object]] = {
    "tanh": tanh_backward,
    "relu": relu_backward,
    "sigmoid": sigmoid_backward,
}
"""From the derivative with respect to an activation's value, and that value, to the derivative with respect to its
argument, which is written into `grad_input`."""


def allocate_states(h_BH: Tensor, steps: int) -> Tensor:
    """An empty tensor (S, B, H) for the states before, between and after the steps, with the first state filled in."""
    h_SBH = h_BH.new_empty(steps + 1, *h_BH.shape)
    h_SBH[0] = h_BH
    return h_SBH


def apply_mask(h: Tensor, mask_BH: Tensor | None) -> Tensor:
    """Apply recurrent dropout to a state, or to the derivative with respect to it."""
    return h if mask_BH is None else h * mask_BH


def zeros_if_none(d_BH: Tensor | None, like_BH: Tensor) -> Tensor:
    return torch.zeros_like(like_BH) if d_BH is None else d_BH


def add_gradient(dh_BH: Tensor, d_BH: Tensor | None) -> Tensor:
    """Add to the derivative with respect to a state the part d that does not come through the recurrence.

    Args:
        d_BH: None: the loss does not read the state.
    """
    return dh_BH if d_BH is None else dh_BH + d_BH


def iterate_steps(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The steps of all sequences side by side."""
    return zip(*(sequence.unbind() for sequence in sequences), strict=True)


def iterate_steps_reversed(d_TBH: Tensor | None, *sequences: Tensor) -> Iterator[tuple[Any, ...]]:
    """The steps of all sequences side by side, from the last to the first."""
    first = itertools.repeat(None, len(sequences[0])) if d_TBH is None else reversed(d_TBH.unbind())
    return zip(first, *(reversed(sequence.unbind()) for sequence in sequences), strict=True)


def matrix_gradient(d_TBG: Tensor, x_TBF: Tensor) -> Tensor:
    """The derivative with respect to a matrix (G, F) that x was multiplied by at every step: one product for all."""
    # In this order of the factors it takes half as long where F is small.
    return x_TBF.flatten(0, 1).t().mm(d_TBG.flatten(0, 1)).t()


def input_gradients(ctx: Any, da_TBG: Tensor, x_TBF: Tensor, W_GF: Tensor) -> tuple[Tensor | None, Tensor]:
    """The derivatives with respect to x, where autograd needs it, and with respect to W."""
    return da_TBG @ W_GF if ctx.needs_input_grad[1] else None, matrix_gradient(da_TBG, x_TBF)
