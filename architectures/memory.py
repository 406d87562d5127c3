"""Recurrent networks with more than a state: an external memory, or a number of steps that the network chooses."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from architectures.network import Network, Output, TrainedAxes, WindowShape, register
from architectures.view import View, ViewAxis, input_axis, name_windows

# The operations of a Neural Turing Machine on its memory M of N slots of width W. The five stages of addressing are
# equations 5 to 9 in Graves et al.; they give weights a that sum to one over the slots, for each of D heads at once.


def score_slots(M_BNW: Tensor, k_BDW: Tensor, strength_BD: Tensor) -> Tensor:
    """strength cos(k, M_i): how similar each slot is to the key (B, D, N)."""
    squares_BDN = k_BDW.square().sum(dim=2).unsqueeze(2) * M_BNW.square().sum(dim=2).unsqueeze(1)
    cosine_BDN = k_BDW @ M_BNW.transpose(1, 2) * (squares_BDN + 1e-12).rsqrt()
    return strength_BD.unsqueeze(2) * cosine_BDN


def weigh_by_content(scores_BDN: Tensor) -> Tensor:
    """a_i = exp(score_i) / sum_j exp(score_j)."""
    return scores_BDN.softmax(dim=2)


def interpolate(content_BDN: Tensor, before_BDN: Tensor, gate_BD: Tensor) -> Tensor:
    """a = g a_content + (1 - g) a_before, where a_before are the weights of the step before."""
    gate_BD1 = gate_BD.unsqueeze(2)
    return gate_BD1 * content_BDN + (1 - gate_BD1) * before_BDN


def shift(a_BDN: Tensor, s_BD3: Tensor) -> Tensor:
    """a_i = sum_j a_j s_(i - j), where the slots form a circle and s has the shifts -1, 0 and 1."""
    back_BD1, stay_BD1, on_BD1 = s_BD3.unsqueeze(3).unbind(dim=2)
    return back_BD1 * a_BDN.roll(-1, dims=2) + stay_BD1 * a_BDN + on_BD1 * a_BDN.roll(1, dims=2)


def sharpen(a_BDN: Tensor, power_BD: Tensor) -> Tensor:
    """a_i = a_i^power / sum_j a_j^power.

    Each a_i is first divided by the largest, so that not all powers underflow to zero.
    """
    powers_BDN = (a_BDN / a_BDN.detach().amax(dim=2, keepdim=True)) ** power_BD.unsqueeze(2)
    return powers_BDN / powers_BDN.sum(dim=2, keepdim=True)


def read_memory(M_BNW: Tensor, a_BN: Tensor) -> Tensor:
    """r = sum_i a_i M_i."""
    return (a_BN.unsqueeze(2) * M_BNW).sum(dim=1)


def write_memory(M_BNW: Tensor, a_BN: Tensor, w_BW: Tensor) -> Tensor:
    """M_i = a_i w + (1 - a_i) M_i.

    It is erase and add of Graves et al., M_i = M_i (1 - a_i e) + a_i w, with an erase vector e of ones.
    """
    a_BN1 = a_BN.unsqueeze(2)
    return a_BN1 * w_BW.unsqueeze(1) + (1 - a_BN1) * M_BNW


@register("ntm")
class NTM(Network):
    """Neural Turing Machine: a controller that reads from a memory and writes to it, with weights over its slots.

    At each step the controller gets the input and the vector that was read before. A linear layer makes of its state h
    the vector to write, and for each head a key, its strength, a gate, shifts and a power. The heads find their slots
    by content, then by location. One head reads the memory as it is, the other writes to it for the next step:

        h_t = controller([x_t, r_{t-1}], h_{t-1});  r_t = read(M_{t-1}, a_t);  M_t = write(M_{t-1}, b_t, w_t)

    Graves, Wayne and Danihelka, "Neural Turing Machines", 2014; writing is as in the lecture (lecture row A2). M_0 is
    learned. Both heads begin at slot 0. The forecast is made of h_T and r_T.
    """

    source = "A2, Graves et al. 2014"
    at_each_step = True

    class Hyperparameters(TrainedAxes):
        controller: Literal["lstm", "feedforward"] = Field("lstm", description="the network that reads the inputs")
        units: int = Field(16, ge=1, description="size of the controller's state")
        slots: int = Field(16, ge=2, description="vectors in the memory")
        width: int = Field(16, ge=1, description="values in each vector of the memory")

    def __init__(self, shape: WindowShape, hyperparameters: "NTM.Hyperparameters") -> None:
        super().__init__()
        self.axes = axes = hyperparameters
        self.controller: nn.LSTMCell | nn.Linear = (
            nn.LSTMCell(shape.features + axes.width, axes.units)
            if axes.controller == "lstm"
            else nn.Linear(shape.features + axes.width, axes.units)
        )
        self.heads = nn.Linear(axes.units, axes.width + 2 * (axes.width + 6))
        self.memory_NW = nn.Parameter(torch.empty(axes.slots, axes.width).uniform_(-1, 1))
        self.output = Output(axes.units + axes.width, shape)

    def address(self, M_BNW: Tensor, before_BDN: Tensor, h_BDK: Tensor) -> Tensor:
        """The new weights (B, D, N) of each head, from the controller's outputs for it (B, D, K)."""
        W = self.axes.width
        k_BDW, (strength_BD, gate_BD, power_BD) = h_BDK[:, :, :W], h_BDK[:, :, W : W + 3].unbind(dim=2)
        a_BDN = weigh_by_content(score_slots(M_BNW, k_BDW, softplus(strength_BD)))
        a_BDN = interpolate(a_BDN, before_BDN, gate_BD.sigmoid())
        a_BDN = shift(a_BDN, h_BDK[:, :, W + 3 :].softmax(dim=2))
        return sharpen(a_BDN, 1 + softplus(power_BD))

    def run(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """The states (B, T, H + W), and the weights of `addressing`."""
        M_BNW = self.memory_NW.expand(len(x_BTF), -1, -1)
        a_BDN = one_hot(torch.zeros(len(x_BTF), 2, dtype=torch.long, device=x_BTF.device), self.axes.slots).to(M_BNW)
        r_BW = M_BNW.new_zeros(len(x_BTF), self.axes.width)
        h_BH = c_BH = M_BNW.new_zeros(len(x_BTF), self.axes.units)
        states, weights = [], []
        for x_BF in x_BTF.unbind(dim=1):
            read_BI = torch.cat([x_BF, r_BW], dim=1)
            if isinstance(self.controller, nn.LSTMCell):
                h_BH, c_BH = self.controller(read_BI, (h_BH, c_BH))
            else:
                h_BH = self.controller(read_BI).tanh()
            commands_BK = self.heads(h_BH)
            w_BW, h_BDK = commands_BK[:, : self.axes.width], commands_BK[:, self.axes.width :].unflatten(1, (2, -1))
            a_BDN = self.address(M_BNW, a_BDN, h_BDK)
            r_BW = read_memory(M_BNW, a_BDN[:, 0])
            M_BNW = write_memory(M_BNW, a_BDN[:, 1], w_BW)
            states.append(torch.cat([h_BH, r_BW], dim=1))
            weights.append(a_BDN)
        return torch.stack(states, dim=1), torch.stack(weights, dim=1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(self.run(x_BTF)[0])
        return y_BSO

    def addressing(self, x_BTF: Tensor) -> Tensor:
        """The weights of both heads at each step (B, T, 2, N), the reading head first; they sum to 1 over the slots."""
        return self.run(x_BTF)[1]

    def views(self, x_BTF: Tensor) -> list[View]:
        """The weights of both heads at each step, with a row of panels for each window."""
        a_BTDN = self.addressing(x_BTF)
        return [
            View(
                title="Addressing of the memory",
                caption="How strongly each slot is read from, and written to, after each input; a column sums to 1. A "
                "sharp horizontal line is a head that stays at one slot, a slanted line a head that shifts from slot "
                "to slot; where a column is pale, the head is spread over many slots. Both heads begin at slot 0.",
                kind="map",
                values=a_BTDN.permute(0, 2, 3, 1).flatten(0, 1),
                x=input_axis(a_BTDN.shape[1]),
                y=ViewAxis("slot"),
                panels=tuple(f"{name}, {head}" for name in name_windows(len(x_BTF)) for head in ("reading", "writing")),
                columns=2,
            )
        ]


@register("act_rnn")
class ACT(Network):
    """Adaptive computation time: a recurrent cell that decides how many steps it takes at an input.

    At an input the cell continues from its own state, s^n = cell([x, n = 1], s^{n-1}), and each s^n gives a halting
    probability h^n = sigmoid(W s^n + b). It stops at the first N at which h^1 + ... + h^N >= 0.99, at the latest at
    `max_ponder`. The state for the next input is sum_n p^n s^n, where p^n = h^n, but p^N = R, the remainder
    1 - h^1 - ... - h^{N-1}. N + R, summed over the window, is the ponder cost; `ponder_cost` times it is added to the
    loss. Graves, "Adaptive Computation Time for Recurrent Neural Networks", 2016 (lecture row A3).
    """

    source = "A3, Graves 2016"
    at_each_step = True
    threshold = 0.99

    class Hyperparameters(TrainedAxes):
        cell: Literal["gru", "elman"] = Field("gru", description="the cell that ponders")
        units: int = Field(32, ge=1, description="size of the state")
        max_ponder: int = Field(4, ge=2, description="steps at one input, at most")
        ponder_cost: float = Field(1e-4, ge=0, le=1, description="weight of the ponder cost in the loss")

    def __init__(self, shape: WindowShape, hyperparameters: "ACT.Hyperparameters") -> None:
        super().__init__()
        self.axes = axes = hyperparameters
        cell = nn.GRUCell if axes.cell == "gru" else nn.RNNCell
        self.cell = cell(shape.features + 1, axes.units)
        self.halting = nn.Linear(axes.units, 1)
        # As in the paper, so that the cell halts early at first.
        nn.init.ones_(self.halting.bias)
        self.output = Output(axes.units, shape)
        self.cost: Tensor | None = None

    def think(self, x_BF: Tensor, s_BH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state after one input, and for each window the steps N (B,) and the remainder R (B,)."""
        mean_BH = torch.zeros_like(s_BH)
        total_B, steps_B, remainder_B = s_BH.new_zeros(3, len(s_BH)).unbind()
        running_B = torch.ones_like(total_B, dtype=torch.bool)
        flag_B1 = torch.ones_like(x_BF[:, :1])
        for n in range(1, self.axes.max_ponder + 1):
            s_BH = self.cell(torch.cat([x_BF, flag_B1 * (n == 1)], dim=1), s_BH)
            h_B = self.halting(s_BH).squeeze(1).sigmoid()
            last_B = running_B & ((total_B + h_B >= self.threshold) | (n == self.axes.max_ponder))
            p_B = torch.where(last_B, 1 - total_B, h_B) * running_B
            mean_BH = mean_BH + p_B.unsqueeze(1) * s_BH
            steps_B = steps_B + running_B
            remainder_B = remainder_B + p_B * last_B
            total_B = total_B + p_B
            running_B = running_B & ~last_B
            if not running_B.any():
                break
        return mean_BH, steps_B, remainder_B

    def run(self, x_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states (B, T, H), and the steps N and remainders R at each input (B, T)."""
        s_BH = self.output.weight.new_zeros(len(x_BTF), self.axes.units)
        states, steps, remainders = [], [], []
        for x_BF in x_BTF.unbind(dim=1):
            s_BH, steps_B, remainder_B = self.think(x_BF, s_BH)
            states.append(s_BH)
            steps.append(steps_B)
            remainders.append(remainder_B)
        return torch.stack(states, dim=1), torch.stack(steps, dim=1), torch.stack(remainders, dim=1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        s_BTH, steps_BT, remainder_BT = self.run(x_BTF)
        self.cost = (steps_BT + remainder_BT).sum(dim=1).mean() if self.training else None
        y_BSO: Tensor = self.output(s_BTH)
        return y_BSO

    def penalty(self) -> Tensor | None:
        """The ponder cost of the last forward pass in training, the mean over its windows, times `ponder_cost`."""
        return None if self.cost is None else self.axes.ponder_cost * self.cost

    def count_steps(self, x_BTF: Tensor) -> Tensor:
        """The number of steps N that the cell takes at each input: (B, T)."""
        return self.run(x_BTF)[1]

    def views(self, x_BTF: Tensor) -> list[View]:
        """The number of steps at each input, with a panel for each window."""
        steps_BT = self.count_steps(x_BTF)
        return [
            View(
                title="Ponder steps",
                caption=f"How many steps the cell takes at each input: {self.axes.max_ponder} at most, "
                f"{steps_BT.mean():.2f} on average. If all bars are alike, it has not learned to take more steps at "
                "some inputs than at others. A higher ponder_cost "
                f"({self.axes.ponder_cost:g} here) makes it halt earlier.",
                kind="bars",
                values=steps_BT.unsqueeze(1),
                x=input_axis(steps_BT.shape[1]),
                y=ViewAxis("steps taken"),
                panels=name_windows(len(x_BTF)),
            )
        ]
