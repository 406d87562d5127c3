"""Vanishing gradients: how the influence of a recurrent state on the loss depends on its age (lecture row C9)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from architectures.cells.layer import RecurrentLayer, State
from architectures.recurrent import Recurrent
from architectures.view import STEPS, View, ViewAxis
from learning.objectives import Loss


def state_gradient_norms(network: Recurrent, x_BTF: Tensor, y_BSK: Tensor, loss: Loss) -> Tensor:
    """The norm of dL/dh_t (T,), averaged over windows; L is the loss of a window, h_t the state of the top layer.

    It is the total derivative, through all later states, not that of one step. The other tensors of a state, such as
    the cell of an LSTM, are held constant. In a bidirectional network, h_t belongs to the forward direction. States are
    in the order of reading, which with `reversed` is not the order of time.

    Args:
        network: in eval mode.
        x_BTF, y_BSK: windows and targets, normalised, in the precision of the network.
        loss: a mean over windows; see `Objective.loss`.
    """
    states: list[Tensor] = []

    def run_step_by_step(layer: RecurrentLayer, args: tuple[Tensor], _: object) -> tuple[Tensor, State]:
        # The layer computes all steps at once, which gives no derivatives with respect to the states in between.
        first_B1F, *later = (x_BF.unsqueeze(1) for x_BF in args[0].unbind(dim=1))
        _, state = layer.forward(first_B1F)
        states.append(state[0])
        for x_B1F in later:
            _, state = layer.forward(x_B1F, state)
            states.append(state[0])
        return torch.stack(states, dim=1), state

    top = network.recurrent.onwards[-1]
    hook = top.register_forward_hook(run_step_by_step)
    try:
        with torch.enable_grad():
            total = loss(network(x_BTF), y_BSK, None) * len(y_BSK)
            d_TBH = torch.stack(torch.autograd.grad(total, states))
    finally:
        hook.remove()
    norm_T: Tensor = d_TBH.norm(dim=2).mean(dim=1)
    return norm_T


def build_gradient_view(norms: Mapping[str, Tensor], windows: int) -> View:
    """A view of the norms of several networks.

    Args:
        norms: the norms (T,) by the name of the network; T is the number of steps that it sees.
        windows: the number of windows over which the norms were averaged.
    """
    steps = max(len(norm_T) for norm_T in norms.values())
    # Zeros are not drawn, so the line of a network that sees fewer steps begins later.
    norms_NT = torch.stack([nn.functional.pad(norm_T, (steps - len(norm_T), 0)) for norm_T in norms.values()])
    first = "; ".join(f"{name} {float(norm_T[0] / norm_T[-1]):.1g}" for name, norm_T in norms.items() if norm_T[-1] > 0)
    return View(
        title="Vanishing gradients",
        caption="The norm of dL/dh: the derivative of a window's loss with respect to the state of the top recurrent "
        f"layer after each input, through all later states; mean of {windows} test windows. The axis is logarithmic: "
        "where a line falls steadily to the left, the gradient shrinks by the same factor with each step back, and the "
        "network can hardly learn from the inputs there. The norm at the first input as a multiple of that at the "
        f"last: {first or 'none'}.",
        kind="lines",
        values=norms_NT.unsqueeze(0),
        x=ViewAxis("state, counted back from the last", STEPS, 1 - steps),
        y=ViewAxis("norm of dL/dh"),
        names=tuple(norms),
        log=True,
    )
