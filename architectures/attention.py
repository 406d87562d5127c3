"""Attention over the states of a recurrent layer, over all of them at once or segment by segment."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from architectures.cells.gru import GRU
from architectures.cells.stack import Stack
from architectures.network import Network, Output, ShapeError, TrainedAxes, WindowShape, register
from architectures.view import STEPS, View, ViewAxis, input_axis, name_windows


def masked_softmax(e_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Turn scores (..., T) into weights that sum to one over T.

    Args:
        mask_BT: false where a step is padding, which gets weight 0; at least one step must not be padding.
    """
    return (e_BT if mask_BT is None else e_BT.masked_fill(~mask_BT, -math.inf)).softmax(dim=-1)


def weighted_sum(a_BT: Tensor, h_BTH: Tensor) -> Tensor:
    """sum_t a_t h_t: (..., H) from weights (..., T) and states (..., T, H)."""
    return (a_BT.unsqueeze(-2) @ h_BTH).squeeze(-2)


@register("attention")
class Attention(Network):
    """The last state of a GRU is the query, and the states of all steps are attended to.

    e_t = h_T' W h_t, a = softmax(e), c = sum_t a_t h_t, y = output(tanh(W_c [c, h_T])).
    Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation", 2015, with the
    score that they call "general" (lecture row A1).
    """

    source = "A1, Luong et al. 2015"

    class Hyperparameters(TrainedAxes):
        units: int = Field(24, ge=1, description="size of the GRU's state")
        dropout: float = Field(
            0.0, ge=0, lt=1, description="share dropped of inputs, the same at every step, and of the attended state"
        )

    def __init__(self, shape: WindowShape, hyperparameters: "Attention.Hyperparameters") -> None:
        super().__init__()
        units = hyperparameters.units
        self.dropout = nn.Dropout(hyperparameters.dropout)
        self.gru = GRU(shape.features, units, dropout=hyperparameters.dropout)
        self.query = nn.Linear(units, units, bias=False)
        self.combine = nn.Linear(2 * units, units, bias=False)
        self.output = Output(units, shape)

    def attend(self, x_BTF: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """The states (B, T, H) and their weights (B, T)."""
        h_BTH, _ = self.gru(x_BTF)
        e_BT = (h_BTH @ self.query(h_BTH[:, -1]).unsqueeze(2)).squeeze(2)
        return h_BTH, masked_softmax(e_BT, mask_BT)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """
        Args:
            mask_BT: false where a step is padding, at the front, which is not attended to; None: no step is padding.
        """
        h_BTH, a_BT = self.attend(x_BTF, mask_BT)
        c_BH = weighted_sum(a_BT, h_BTH)
        attended_BH = self.combine(torch.cat([c_BH, h_BTH[:, -1]], dim=1)).tanh()
        y_BSO: Tensor = self.output(self.dropout(attended_BH))
        return y_BSO

    def weights(self, x_BTF: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """How much each state contributes to the forecast (B, T); the sum over T is one."""
        return self.attend(x_BTF, mask_BT)[1]

    def views(self, x_BTF: Tensor) -> list[View]:
        """The weights over the steps, with a line for each window."""
        a_BT = self.weights(x_BTF)
        return [
            View(
                title="Attention over the steps",
                caption="How much the state after each input counts in the forecast. The weights of a window sum to 1: "
                f"a flat line at {1 / a_BT.shape[1]:.2g} would mean that no step is preferred, a peak is a step that "
                "the last state attends to.",
                kind="lines",
                values=a_BT.unsqueeze(0),
                x=input_axis(a_BT.shape[1]),
                y=ViewAxis("weight"),
                names=name_windows(len(a_BT)),
            )
        ]


class AttentionEncoder(nn.Module):
    """Turns a sequence into a vector by attention over the states h of a bidirectional GRU.

    u_t = tanh(W h_t + b), a = softmax(u_t' u), s = sum_t a_t h_t.
    """

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.gru = Stack(GRU, width, [units], bidirectional=True)
        self.hidden = nn.Linear(2 * units, 2 * units)
        self.context = nn.Linear(2 * units, 1, bias=False)

    def states(self, x_BTF: Tensor) -> Tensor:
        h_BTH: Tensor = self.gru(x_BTF)[0]
        return h_BTH

    def attend(self, h_BTH: Tensor, mask_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vectors (..., H) of states (..., T, H), and the weights (..., T)."""
        a_BT = masked_softmax(self.context(self.hidden(h_BTH).tanh()).squeeze(-1), mask_BT)
        return weighted_sum(a_BT, h_BTH), a_BT


@register("hierarchical_attention")
class HierarchicalAttention(Network):
    """Each segment of the window, such as a day, becomes a vector by attention over its steps, and the window becomes a
    vector by attention over its segments.

    Yang et al., "Hierarchical Attention Networks for Document Classification", 2016, with segments for sentences and
    steps for words (lecture row A5). Segments are counted from the window's end. If the first one is short, it is
    padded at its front with states that get no weight.
    """

    source = "A5, Yang et al. 2016"
    mask_SL: Tensor

    class Hyperparameters(TrainedAxes):
        segment: float = Field(1.0, gt=0, le=366, description="days in a segment, rounded to whole steps")
        segment_steps: int | None = Field(
            None, ge=1, description="steps in a segment; null: as many days as segment says"
        )
        units: int = Field(10, ge=1, description="size of the state of each GRU and direction")
        dropout: float = Field(0.0, ge=0, lt=1, description="share of inputs and of the vectors of segments dropped")

    def __init__(self, shape: WindowShape, hyperparameters: "HierarchicalAttention.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: the inputs have no times, so the length of a segment cannot be given in days.
        """
        super().__init__()
        if not shape.day and hyperparameters.segment_steps is None:
            raise ShapeError("hierarchical_attention.segment_steps: must be given where the inputs have no times")
        self.segment = min(
            hyperparameters.segment_steps or max(1, round(hyperparameters.segment * shape.day)), shape.steps
        )
        self.short = shape.steps % self.segment
        padding = self.segment - self.short if self.short else 0
        real_T = torch.arange(padding + shape.steps) >= padding
        self.register_buffer("mask_SL", real_T.view(-1, self.segment), persistent=False)
        self.dropout = nn.Dropout(hyperparameters.dropout)
        self.steps = AttentionEncoder(shape.features, hyperparameters.units)
        self.segments = AttentionEncoder(2 * hyperparameters.units, hyperparameters.units)
        self.output = Output(2 * hyperparameters.units, shape)

    def states(self, x_BTF: Tensor) -> Tensor:
        """The states (B, S, L, H) of the L steps of each segment, which is read by itself; 0 where there is padding."""
        whole_NLF = x_BTF[:, self.short :].reshape(-1, self.segment, x_BTF.shape[2])
        h_NLH = self.steps.states(whole_NLF)
        h_BSLH = h_NLH.reshape(len(x_BTF), -1, *h_NLH.shape[1:])
        if self.short:
            first_BTH = self.steps.states(x_BTF[:, : self.short])
            first_BLH = nn.functional.pad(first_BTH, (0, 0, self.segment - self.short, 0))
            h_BSLH = torch.cat([first_BLH.unsqueeze(1), h_BSLH], dim=1)
        return h_BSLH

    def attend(self, x_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The window's vector (B, H), and the two results of `weights`."""
        s_BSH, a_BSL = self.steps.attend(self.states(self.dropout(x_BTF)), self.mask_SL)
        v_BH, a_BS = self.segments.attend(self.segments.states(self.dropout(s_BSH)))
        return v_BH, a_BSL, a_BS

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_BSO: Tensor = self.output(self.attend(x_BTF)[0])
        return y_BSO

    def weights(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """How much each step contributes to its segment's vector (B, S, L), and each segment to the window's (B, S).

        Both sum to one over their last dimension; the weight of padding is 0.
        """
        _, a_BSL, a_BS = self.attend(x_BTF)
        return a_BSL, a_BS

    def views(self, x_BTF: Tensor) -> list[View]:
        """The weights over the segments, and over the steps of each segment, with a panel for each window."""
        a_BSL, a_BS = self.weights(x_BTF)
        windows, segments, steps = a_BSL.shape
        segment = ViewAxis("segment", first=1 - segments)
        padded = f" The first {steps - self.short} of the first segment are before the window." if self.short else ""
        return [
            View(
                title="Attention over the segments",
                caption=f"How much each segment of {steps} steps counts in the forecast. The weights of a window sum "
                f"to 1: if all bars were {1 / segments:.2g}, no segment would be preferred. Segment 0 is the last.",
                kind="bars",
                values=a_BS.unsqueeze(1),
                x=segment,
                y=ViewAxis("weight"),
                panels=name_windows(windows),
                columns=windows,
            ),
            View(
                title="Attention over the steps of each segment",
                caption="How much each step counts in its segment; each row sums to 1, however little the segment "
                f"itself counts. Segment 0 is the last.{padded}",
                kind="map",
                values=a_BSL,
                x=ViewAxis("step of the segment", STEPS, 1),
                y=segment,
                panels=name_windows(windows),
                columns=windows,
            ),
        ]
