"""Vanishing gradients: how the loss depends on a recurrent state, the further back that is (lecture row C9)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from architectures.cells import Layer, State
from architectures.recurrent import Recurrent
from architectures.view import STEPS, Scale, View
from stages.training.objectives import Loss


def state_gradients(network: Recurrent, x_BTF: Tensor, y_BSK: Tensor, loss: Loss) -> Tensor:
    """The mean over windows of the norm of dL/dh_t (T,), L the loss of a window, h_t the top layer's state.

    It is the total derivative, by way of all later states, and not that of one step. What a state holds beside h_t, the
    cell of an LSTM, is held as it is. Of two directions, h_t is of the onward one. The states are in the order in which
    they are read, which where `reversed` is set is not that of time.

    Args:
        network: in eval mode.
        x_BTF, y_BSK: windows and targets, normalised, in the precision of the network.
        loss: a mean over windows, see `Objective.loss`.
    """
    states: list[Tensor] = []

    def one_by_one(layer: nn.Module, args: tuple[Tensor], _: object) -> tuple[Tensor, State]:
        # The layer goes over all steps at once, and no derivative can be taken by the states within.
        assert isinstance(layer, Layer)
        state: State | None = None
        for x_BF in args[0].unbind(dim=1):
            _, state = layer.forward(x_BF.unsqueeze(1), state)
            states.append(state[0])
        assert state is not None
        return torch.stack(states, dim=1), state

    top = network.recurrent.onwards[-1]
    hook = top.register_forward_hook(one_by_one)
    try:
        with torch.enable_grad():
            total = loss(network(x_BTF), y_BSK, None) * len(y_BSK)
            d_TBH = torch.stack(torch.autograd.grad(total, states))
    finally:
        hook.remove()
    norm_T: Tensor = d_TBH.norm(dim=2).mean(dim=1)
    return norm_T


def vanishing(norms: Mapping[str, Tensor], windows: int) -> View:
    """The norms (T,) of each network, by its name, as one picture.

    Args:
        norms: of as many steps as the network sees.
        windows: how many the norms are means over.
    """
    steps = max(len(norm_T) for norm_T in norms.values())
    # Zeros are not drawn: the line of a network that sees fewer steps begins later.
    norms_NT = torch.stack([nn.functional.pad(norm_T, (steps - len(norm_T), 0)) for norm_T in norms.values()])
    first = "; ".join(f"{name} {float(norm_T[0] / norm_T[-1]):.1g}" for name, norm_T in norms.items() if norm_T[-1] > 0)
    return View(
        title="Vanishing gradients",
        caption="The norm of dL/dh, the derivative of a window's loss by the state of the top recurrent layer after "
        f"each input, by way of all later states; mean of {windows} test windows. The axis is logarithmic: where a "
        "line falls steadily to the left, the gradient loses the same factor with each step back, and what was read "
        "there has hardly taught the network anything. At the first input, as a multiple of that at the last: "
        f"{first or 'none'}.",
        kind="lines",
        values=norms_NT.unsqueeze(0),
        x=Scale("state, counted back from the last", STEPS, 1 - steps),
        y=Scale("norm of dL/dh"),
        names=tuple(norms),
        log=True,
    )
