"""The Neural Programmer: a controller that attends to a set of operations on a table (lecture row A4).

Neelakantan, Le and Sutskever 2015, "Neural Programmer: Inducing Latent Programs with Gradient Descent", ICLR 2016.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from architectures.network import Network, Output, ShapeError, TrainedAxes, WindowShape, register
from architectures.view import View, ViewAxis, name_windows

OPERATIONS = ("sum", "count", "difference", "greater", "lesser", "and", "or", "reset")
"""From section 2.3.1 and its table. `assign`, which looks cells up, is left out: the answer is a number."""


@register("neural_programmer")
class NeuralProgrammer(Network):
    """At each of `timesteps` steps it softly selects an operation and a column; the last step's scalar is the answer.

    Question (2.1): z_i = tanh(W_q [z_{i-1}; V(w_i)]), q = z_Q.
    Selector (2.2): a_op = softmax(U tanh(W_op [q; h_t])), a_col = softmax(P tanh(W_col [q; h_t])).
    Operations (2.3) on the table x_ij with the rows' selection s_i, which is 1 at first, and the scalar answer y:
    sum_j = sum_i s_i x_ij, count = sum_i s_i, difference = y_{t-3} - y_{t-1}, greater_ij = x_ij > n,
    lesser_ij = x_ij < n, and_i = min(s_i of t-1, of t-2), or_i = max of them, reset_i = 1. The pivot n of a comparison
    is a mean of the numbers in the question: n = b . numbers, b = softmax(Z U(operation)) over the states Z of the
    words that have a number. With the probabilities a_op and a_col of step t
    y_t = a_op(count) count + a_op(difference) difference + sum_j a_col(j) a_op(sum) sum_j,
    s_t = a_op(and) and + a_op(or) or + a_op(reset) + sum_j a_col(j) (a_op(greater) greater_j + a_op(lesser) lesser_j).
    History (2.4): h_t = tanh(W_h [c_t; h_{t-1}]), c_t = [a_op U; a_col P] of the step before; h_1 = 0.

    A window is a table and a question as `problems/sources/questions.py` writes them. The features of a step are
    `columns` columns of the table, the number of a word, whether the step is a row of the table, and a mark for each
    word. With `columns` 0 there is no question, and the whole window is the table, with a row for each step. Then q is
    one learned vector, the pivots are 0, the mean of the columns, sums are divided by the number of rows, and a linear
    output follows, because a forecast is not a sum.
    """

    source = "A4, Neelakantan et al. 2015"

    class Hyperparameters(TrainedAxes):
        columns: int = Field(
            0, ge=0, description="columns of the table, before the number, the row's mark and the words; 0: no question"
        )
        units: int = Field(32, ge=1, description="size of the question's, the history's and the selector's vectors")
        timesteps: int = Field(4, ge=1, le=64, description="number of operations, one after the other")

    def __init__(self, shape: WindowShape, hyperparameters: "NeuralProgrammer.Hyperparameters") -> None:
        """
        Raises:
            ShapeError: the window has no features left for words, or the answer is more than one number.
        """
        super().__init__()
        if hyperparameters.columns and shape.leads * shape.outputs > 1:
            raise ShapeError("neural_programmer.columns: the answer to a question is one number; leave columns out")
        self.axes = axes = hyperparameters
        d, columns = axes.units, axes.columns or shape.features
        # The answer is one of the features; in the inputs it is 0 at every step.
        self.words = [f for f in range(columns + 2, shape.features) if f != shape.target]
        if axes.columns and not self.words:
            raise ShapeError(
                f"neural_programmer.columns: {columns} leave no words among {shape.features} features, which are the "
                "columns, the number, the row's mark, then a mark a word"
            )
        self.rows = shape.steps
        if axes.columns:
            self.V = nn.Linear(len(self.words), d, bias=False)
            self.W_q = nn.Linear(2 * d, d, bias=False)
        else:
            self.q = nn.Parameter(torch.randn(d))
            self.output = Output(1, shape)
        self.U = nn.Parameter(torch.randn(len(OPERATIONS), d) / d**0.5)
        self.P = nn.Parameter(torch.randn(columns, d) / d**0.5)
        self.W_op, self.W_col = nn.Linear(2 * d, d, bias=False), nn.Linear(2 * d, d, bias=False)
        self.W_h = nn.Linear(3 * d, d, bias=False)

    def question(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """The vector q (B, D) of the question, and the pivots of `greater` and `lesser` (B, 2)."""
        number = self.axes.columns
        # All tables have the same number of rows, so the words of all questions begin at the same step.
        first_word = int((x_BTF[:, :, number + 1] > 0.5).any(dim=0).sum())
        words_BSD = self.V(x_BTF[:, first_word:, self.words])
        z_BD = words_BSD.new_zeros(len(x_BTF), self.axes.units)
        states = []
        for word_BD in words_BSD.unbind(dim=1):
            z_BD = self.W_q(torch.cat([z_BD, word_BD], dim=1)).tanh()
            states.append(z_BD)
        z_BSD, numbers_BS = torch.stack(states, dim=1), x_BTF[:, first_word:, number]
        comparisons = self.U[[OPERATIONS.index("greater"), OPERATIONS.index("lesser")]]
        scores_BSO = (z_BSD @ comparisons.t()).masked_fill((numbers_BS == 0).unsqueeze(2), -1e9)
        return z_BD, (scores_BSO.softmax(dim=1) * numbers_BS.unsqueeze(2)).sum(dim=1)

    def run(self, x_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The answer (B,), and the probabilities of operations (B, S, O) and of columns (B, S, C) at each step."""
        if self.axes.columns:
            q_BD, pivots_B2 = self.question(x_BTF)
            is_row_BR = x_BTF[:, :, self.axes.columns + 1]
            x_BRC, rows = x_BTF[:, :, : self.axes.columns], 1.0
        else:
            q_BD, pivots_B2 = self.q.expand(len(x_BTF), -1), x_BTF.new_zeros(len(x_BTF), 2)
            is_row_BR = torch.ones_like(x_BTF[:, :, 0])
            x_BRC, rows = x_BTF, float(self.rows)
        greater_BRC = (x_BRC > pivots_B2[:, None, :1]).to(x_BRC) * is_row_BR.unsqueeze(2)
        lesser_BRC = (x_BRC < pivots_B2[:, None, 1:]).to(x_BRC) * is_row_BR.unsqueeze(2)

        h_BD = torch.zeros_like(q_BD)
        selections = [is_row_BR, is_row_BR]
        answers = [torch.zeros_like(q_BD[:, 0])] * 3
        operations: list[Tensor] = []
        columns: list[Tensor] = []
        for t in range(self.axes.timesteps):
            if t:
                chosen_BD = torch.cat([operations[-1] @ self.U, columns[-1] @ self.P, h_BD], dim=1)
                h_BD = self.W_h(chosen_BD).tanh()
            state_BD = torch.cat([q_BD, h_BD], dim=1)
            operation_BO = (self.W_op(state_BD).tanh() @ self.U.t()).softmax(dim=1)
            column_BC = (self.W_col(state_BD).tanh() @ self.P.t()).softmax(dim=1)
            sums, count, difference, greater, lesser, both, either, reset = operation_BO.unbind(dim=1)
            before_BR, earlier_BR = selections[-1], selections[-2]
            sum_B = (torch.einsum("br,brc->bc", before_BR, x_BRC) * column_BC).sum(dim=1) / rows
            answers.append(
                sums * sum_B + count * before_BR.sum(dim=1) / rows + difference * (answers[-3] - answers[-1])
            )
            compared_BRC = greater[:, None, None] * greater_BRC + lesser[:, None, None] * lesser_BRC
            selections.append(
                both.unsqueeze(1) * torch.minimum(before_BR, earlier_BR)
                + either.unsqueeze(1) * torch.maximum(before_BR, earlier_BR)
                + reset.unsqueeze(1) * is_row_BR
                + torch.einsum("brc,bc->br", compared_BRC, column_BC)
            )
            operations.append(operation_BO)
            columns.append(column_BC)
        return answers[-1], torch.stack(operations, dim=1), torch.stack(columns, dim=1)

    def forward(self, x_BTF: Tensor) -> Tensor:
        y_B, _, _ = self.run(x_BTF)
        if self.axes.columns:
            return y_B[:, None, None]
        scaled_BSO: Tensor = self.output(y_B.unsqueeze(1))
        return scaled_BSO

    def program(self, x_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities of operations (B, S, O) and of columns (B, S, C) at each step."""
        _, operations_BSO, columns_BSC = self.run(x_BTF)
        return operations_BSO, columns_BSC

    def views(self, x_BTF: Tensor) -> list[View]:
        """The program: which operation and which column each step selects, with a panel for each window."""
        caption = (
            "The probability of each {0} at each step of the program; at each step they sum to 1. Where one is near "
            "1, the step selects that {0}; otherwise it is a mixture. The answer is the scalar after the last step."
        )
        step = ViewAxis("step of the program", first=1)
        return [
            View(
                title=f"Program: {selected}s",
                caption=caption.format(selected),
                kind="map",
                values=probability_BSK.transpose(1, 2),
                x=step,
                y=ViewAxis(selected),
                panels=name_windows(len(x_BTF)),
                names=names,
                columns=len(x_BTF),
            )
            for selected, probability_BSK, names in zip(
                ("operation", "column"),
                self.program(x_BTF),
                (OPERATIONS, tuple(f"column {j + 1}" for j in range(len(self.P)))),
                strict=True,
            )
        ]
