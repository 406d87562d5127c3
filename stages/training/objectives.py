"""What a network is trained for, and what its answers are measured by, by what an answer is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from architectures import WindowShape
from project.settings.sections import Train
from stages.tables.windows import AnyWindows

Scores = dict[str, Tensor]
"""What is averaged over answers, by name: (B, S) each."""


Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Measure:
    """A number that says how good a network is.

    Attributes:
        name: in metrics and files.
        title: for people.
        score: whose weighted mean it is made of.
        of_mean: what makes it of that mean.
        scaled: it is in the target's unit, and is divided by the target's scale where it is called normalised.
        more_is_better: otherwise less is.
        unit: of one that is not scaled.
    """

    name: str
    title: str
    score: str
    of_mean: Callable[[float], float] = float
    scaled: bool = False
    more_is_better: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Objective:
    """
    Attributes:
        loss: from answers (B, S, O), targets (B, S, K) and weights (B, S), or None where all count alike, to a number.
        scores: from answers and targets.
        measures: the first one selects, and less of it is better.
        quantiles: of which the outputs are forecasts; none where they are not.
    """

    loss: Loss
    scores: Callable[[Tensor, Tensor], Scores]
    measures: tuple[Measure, ...]
    outputs: int
    quantiles: tuple[float, ...] = ()

    @property
    def measure(self) -> Measure:
        """The one that selects."""
        return self.measures[0]

    def measured(self, means: Mapping[str, float], scale: float = 1.0) -> dict[str, float]:
        """The measures, by name, of the mean of each score; scaled ones normalised too where a scale is given.

        Args:
            scale: what a normalised error is multiplied by to be in the target's unit.
        """
        found = {}
        for each in self.measures:
            value = each.of_mean(means[each.score])
            found[each.name] = value * scale if each.scaled else value
            if each.scaled:
                found[normalized(each.name)] = value
        return found


def normalized(name: str) -> str:
    """The name of a measure where it is normalised."""
    return f"{name}_normalized"


def objective(windows: AnyWindows, train: Train) -> Objective:
    """What networks of these windows are trained for."""
    match windows.objective:
        case "value":
            return _quantiles(train.quantiles) if train.loss == "pinball" else _value(LOSSES[train.loss])
        case "binary":
            return _binary()
        case "classes":
            return _classes(windows.shape.outputs, windows.token)
        case "labels":
            return _labels(windows.shape.outputs)


def shape_for(windows: AnyWindows, train: Train) -> WindowShape:
    """The windows as a network is told of them, which has to give what the objective wants."""
    return replace(windows.shape, outputs=objective(windows, train).outputs)


def mean(score_BS: Tensor, weight_BS: Tensor | None) -> Tensor:
    """The weighted mean of what stands at each answer."""
    return score_BS.mean() if weight_BS is None else (score_BS * weight_BS).sum() / weight_BS.sum()


# Numbers

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mae": functional.l1_loss,
    "mse": functional.mse_loss,
    "huber": functional.huber_loss,
}

_MAE = Measure("mae", "MAE", "absolute", scaled=True)
_RMSE = Measure("rmse", "RMSE", "squared", math.sqrt, scaled=True)


def _value(loss_of: Callable[..., Tensor]) -> Objective:
    def loss(y_BSO: Tensor, target_BSK: Tensor, weight_BS: Tensor | None) -> Tensor:
        if weight_BS is None:
            return loss_of(y_BSO, target_BSK)
        return mean(loss_of(y_BSO, target_BSK, reduction="none").squeeze(2), weight_BS)

    def scores(y_BSO: Tensor, target_BSK: Tensor) -> Scores:
        error_BS = (y_BSO - target_BSK).squeeze(2).double()
        return {"absolute": error_BS.abs(), "squared": error_BS.square()}

    return Objective(loss, scores, (_MAE, _RMSE), outputs=1)


def pinball(y_BSO: Tensor, target_BSK: Tensor, quantiles: Sequence[float]) -> Tensor:
    """The pinball loss (B, S) of forecasts of quantiles (B, S, O): its mean is lowest at the true ones.

    Koenker and Bassett, "Regression Quantiles", 1978: max(q e, (q - 1) e) of the error e = target - forecast, here the
    mean over the quantiles, twice, so that for the median alone it is the absolute error.
    """
    q_O = torch.tensor(quantiles, dtype=y_BSO.dtype, device=y_BSO.device)
    error_BSO = target_BSK - y_BSO
    return 2 * torch.maximum(q_O * error_BSO, (q_O - 1) * error_BSO).mean(dim=2)


def _quantiles(quantiles: tuple[float, ...]) -> Objective:
    median = quantiles.index(0.5)

    def loss(y_BSO: Tensor, target_BSK: Tensor, weight_BS: Tensor | None) -> Tensor:
        return mean(pinball(y_BSO, target_BSK, quantiles), weight_BS)

    def scores(y_BSO: Tensor, target_BSK: Tensor) -> Scores:
        y_BSO = ordered(y_BSO)
        error_BS = (y_BSO[:, :, median] - target_BSK[:, :, 0]).double()
        return {
            "pinball": pinball(y_BSO, target_BSK, quantiles).double(),
            "absolute": error_BS.abs(),
            "squared": error_BS.square(),
        }

    measures = (Measure("pinball", "pinball loss", "pinball", scaled=True), _MAE, _RMSE)
    return Objective(loss, scores, measures, len(quantiles), quantiles)


def ordered(y_BSO: Tensor) -> Tensor:
    """Forecasts of quantiles that do not cross (Chernozhukov, Fernández-Val and Galichon 2010): sorted."""
    return y_BSO.sort(dim=2).values


# Answers of a kind

_ACCURACY = Measure("accuracy", "accuracy", "right", lambda share: 100 * share, more_is_better=True, unit="%")
_CROSS_ENTROPY = Measure("cross_entropy", "cross-entropy", "cross_entropy", unit="nats")
_OF_TOKENS = {
    "characters": Measure(
        "bits",
        "bits per character",
        "cross_entropy",
        lambda nats: nats / math.log(2),
    ),
    "words": Measure("perplexity", "perplexity", "cross_entropy", lambda nats: math.exp(min(nats, 700))),
}


def _classes(classes: int, token: str | None) -> Objective:
    def cross_entropy(y_BSO: Tensor, target_BSK: Tensor) -> Tensor:
        target_BS = target_BSK[:, :, 0].long()
        return functional.cross_entropy(y_BSO.flatten(0, 1), target_BS.flatten(), reduction="none").view_as(target_BS)

    def loss(y_BSO: Tensor, target_BSK: Tensor, weight_BS: Tensor | None) -> Tensor:
        return mean(cross_entropy(y_BSO, target_BSK), weight_BS)

    def scores(y_BSO: Tensor, target_BSK: Tensor) -> Scores:
        right_BS = y_BSO.argmax(dim=2) == target_BSK[:, :, 0].long()
        return {"cross_entropy": cross_entropy(y_BSO, target_BSK).double(), "right": right_BS.double()}

    return Objective(loss, scores, (_OF_TOKENS[token] if token else _CROSS_ENTROPY, _ACCURACY), classes)


def _binary() -> Objective:
    def cross_entropy(y_BSO: Tensor, target_BSK: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(y_BSO, target_BSK, reduction="none").squeeze(2)

    def loss(y_BSO: Tensor, target_BSK: Tensor, weight_BS: Tensor | None) -> Tensor:
        return mean(cross_entropy(y_BSO, target_BSK), weight_BS)

    def scores(y_BSO: Tensor, target_BSK: Tensor) -> Scores:
        right_BS = ((y_BSO > 0) == (target_BSK > 0.5)).squeeze(2)
        return {"cross_entropy": cross_entropy(y_BSO, target_BSK).double(), "right": right_BS.double()}

    return Objective(loss, scores, (_CROSS_ENTROPY, _ACCURACY), outputs=1)


def _labels(labels: int) -> Objective:
    """For each label, whether it is there; the loss of a step is the sum over its labels, as of a frame of notes."""

    def likelihood(y_BSO: Tensor, target_BSK: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(y_BSO, target_BSK, reduction="none").sum(dim=2)

    def loss(y_BSO: Tensor, target_BSK: Tensor, weight_BS: Tensor | None) -> Tensor:
        return mean(likelihood(y_BSO, target_BSK), weight_BS)

    def scores(y_BSO: Tensor, target_BSK: Tensor) -> Scores:
        return {"likelihood": likelihood(y_BSO, target_BSK).double()}

    measure = Measure("nll", "negative log-likelihood", "likelihood", unit="nats a step")
    return Objective(loss, scores, (measure,), labels)
