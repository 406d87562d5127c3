"""Compute figures once more, by other code, and compare them to six digits.

    python -m tests.scenarios.recompute            # three small problems: a number, quantiles, several leads
    python -m tests.scenarios.recompute ROOT NAME  # a problem of a project that has run

The figures are those of a leaderboard and, where there are any, of the newest decision about a champion and of the
monitor. The script reads what `ingest` wrote (Polars), the weights (safetensors), the log of forecasts (SQLite) and the
figures, and nothing else that Recast has computed. Normalisation, windows, forecasts (plain PyTorch), errors, skill
scores, conformal intervals and the bootstrap are written here anew, from the definitions in docs/evaluation.md. It
knows problems of one table with one series, without nulls, gaps, a calendar or a climatology, and the architectures
persistence, dense, gru and lstm.
"""

import argparse
import json
import math
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import nn

from tests.support import checkout

Array = NDArray[np.float64]
DIGITS = 6
MONITORED_DAYS = 14
"""The default of `monitor.window`."""
HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}


@dataclass(frozen=True)
class Data:
    """The windows of a problem and their targets.

    Attributes:
        x: the inputs (N, T, F) by split, normalised.
        y: the targets (N, L) by split, normalised.
        center, scale: of the target.
    """

    x: dict[str, torch.Tensor]
    y: dict[str, Array]
    target: int
    center: float
    scale: float
    horizon: int


def read_rows(length: str) -> int:
    """A length of time such as 5d in rows of an hour."""
    return round(float(length[:-1]) * HOURS[length[-1]])


def cut_windows(root: Path, name: str, problem: dict[str, Any]) -> Data:
    """Normalise the table by its training rows, and cut every window of validation and test."""
    table = pl.read_parquet(root / f"data/ingest/{name}/table.parquet")
    features, window = problem["table"]["features"], problem["window"]
    values = table.select(features).to_numpy().astype(np.float64)
    rows = len(values)
    shares = (0.5, 0.25) if problem["split"] == "half" else (problem["split"]["train"], problem["split"]["validation"])
    train = int(shares[0] * rows)
    validation = train + int(shares[1] * rows)
    center, scale = values[:train].mean(axis=0), values[:train].std(axis=0)
    normal = ((values - center) / scale).astype(np.float32)
    target = features.index(problem["table"]["target"])
    lookback, step, delay = (read_rows(window[key]) for key in ("lookback", "step", "delay"))
    first = read_rows(window["first"]) if window.get("first") else delay
    leads = range(first, delay + 1, step)
    x, y = {}, {}
    for split, (begin, end) in {"validation": (train, validation), "test": (validation, rows)}.items():
        # The last input is a step before the row that names the window, and the last target `delay` after that input.
        last = np.arange(begin + lookback - step, end - delay)
        steps = np.arange(-lookback + step, 1, step)
        x[split] = torch.from_numpy(normal[last[:, None] + steps])
        y[split] = normal[last[:, None] + np.array(leads), target].astype(np.float64)
    return Data(x, y, target, float(center[target]), float(scale[target]), delay)


def forecast(kind: str, weights: dict[str, torch.Tensor], x: torch.Tensor, data: Data, outputs: int) -> Array:
    """The answers (N, L, O) of a network to windows, normalised, from its weights."""
    leads = data.y["test"].shape[1]
    with torch.no_grad():
        if kind == "persistence":
            return x[:, -1, data.target, None, None].expand(-1, leads, outputs).double().numpy()
        if kind == "dense":
            hidden = torch.relu(nn.functional.linear(x.flatten(1), *find_layer(weights, "network.0")))
            y = nn.functional.linear(hidden, *find_layer(weights, "network.1"))
        else:
            own = {name.rpartition(".")[2]: value for name, value in weights.items() if name.startswith("recurrent")}
            layer = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](x.shape[2], own["weight_hh_l0"].shape[1], batch_first=True)
            # Recast's LSTM has one bias, as Keras's.
            layer.load_state_dict({"bias_hh_l0": torch.zeros_like(own["bias_ih_l0"])} | own)
            y = nn.functional.linear(layer(x)[0][:, -1], *find_layer(weights, "output"))
    return y.reshape(len(x), leads, outputs).double().numpy()


def find_layer(weights: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight and the bias of a linear layer."""
    weight, bias = (
        next(value for key, value in weights.items() if key.startswith(name) and key.endswith(end))
        for end in (".weight", ".bias")
    )
    return weight, bias


def half_widths(errors: Array, level: float) -> Array | None:
    """Half the width of the conformal interval by lead; None: there are too few windows."""
    k = math.ceil((len(errors) + 1) * level)
    return None if k > len(errors) else np.sort(np.abs(errors), axis=0)[k - 1]


def spread_baseline(answers: Array, errors: Array, quantiles: list[float]) -> Array:
    """The quantiles of a baseline: its forecast, and the ends of its conformal intervals by the validation errors."""
    spread = np.zeros((errors.shape[1], len(quantiles)))
    for output, quantile in enumerate(quantiles):
        level = round(abs(2 * quantile - 1), 9)
        if level:
            widths = half_widths(errors, level)
            spread[:, output] = np.sign(quantile - 0.5) * (np.abs(errors).max(axis=0) if widths is None else widths)
    return answers[..., :1] + spread


def measure(answers: Array, targets: Array, quantiles: list[float]) -> dict[str, float]:
    """The measures of answers (N, L, O), normalised."""
    values = np.sort(answers, axis=2)
    errors = values[..., quantiles.index(0.5) if quantiles else 0] - targets
    measures = {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean()))}
    if quantiles:
        q = np.array(quantiles)
        differences = targets[..., None] - values
        measures["pinball"] = 2 * float(np.maximum(q * differences, (q - 1) * differences).mean())
    return measures


class Comparison:
    """Compares figures, and counts them."""

    def __init__(self) -> None:
        self.figures = 0
        self.differences: list[str] = []

    def check(self, title: str, shown: float | None, computed: float | None) -> None:
        self.figures += 1
        if shown is None or computed is None:
            if shown is not computed:
                self.differences.append(f"{title}: the leaderboard has {shown}, computed anew it is {computed}")
        elif not math.isclose(shown, computed, rel_tol=10**-DIGITS, abs_tol=10**-DIGITS):
            self.differences.append(f"{title}: the leaderboard has {shown:.9g}, computed anew it is {computed:.9g}")


@dataclass(frozen=True)
class Project:
    """A problem of a project that has run.

    Attributes:
        quantiles: those that are forecast; empty: a number is.
    """

    root: Path
    name: str
    settings: dict[str, Any]
    data: Data
    quantiles: list[float]

    @classmethod
    def read(cls, root: Path, name: str) -> "Project":
        settings = YAML(typ="safe").load((root / "params.yaml").read_text())
        train = settings["train"]
        quantiles = list(train.get("quantiles") or (0.1, 0.5, 0.9)) if train["loss"] == "pinball" else []
        return cls(root, name, settings, cut_windows(root, name, settings["problems"][name]), quantiles)

    def read_trial(self, key: str) -> dict[str, Any]:
        trial: dict[str, Any] = json.loads((self.root / f"trials/{self.name}/{key}/trial.json").read_text())
        return trial

    def forecast(self, key: str | None) -> dict[str, Array]:
        """The answers of a trial by split; None: of persistence."""
        kind = self.read_trial(key)["architecture"] if key else "persistence"
        file = self.root / f"trials/{self.name}/{key}/weights.safetensors"
        weights = load_file(file) if kind != "persistence" else {}
        outputs = max(1, len(self.quantiles))
        answers = {split: forecast(kind, weights, x, self.data, outputs) for split, x in self.data.x.items()}
        if kind == "persistence" and self.quantiles:
            errors = answers["validation"][..., 0] - self.data.y["validation"]
            answers = {split: spread_baseline(values, errors, self.quantiles) for split, values in answers.items()}
        return answers


def check_leaderboard(comparison: Comparison, project: Project) -> None:
    """Compare every figure of the table, the intervals and the bootstrap of a leaderboard."""
    root, name, data, quantiles = project.root, project.name, project.data, project.quantiles
    board = json.loads((root / f"data/evaluate/{name}/leaderboard.json").read_text())
    selection = board["measures"][0]["name"]
    listed = json.loads((root / f"data/train/{name}/trials.json").read_text())
    trials = [project.read_trial(trial["key"]) for trial in listed]
    answers: dict[tuple[str, int], dict[str, Array]] = {}
    for trial in trials:
        answers[trial["configuration"], trial["seed"]] = project.forecast(trial["key"])
    reference = measure(project.forecast(None)["test"], data.y["test"], quantiles)
    losses: dict[str, Array] = {}
    for row in board["rows"]:
        label = row["configuration"]
        seeds = [own for (configuration, _), own in answers.items() if configuration == label]
        for split, shown in (("validation", row["validation"]), ("test", row["test"])):
            measures = [measure(own[split], data.y[split], quantiles) for own in seeds]
            for key in measures[0] if shown else ():
                values = [of_seed[key] * data.scale for of_seed in measures]
                comparison.check(f"{label} {split} {key}", shown[key]["mean"], float(np.mean(values)))
                if len(values) > 1:
                    deviation = float(np.std(values, ddof=1))
                    comparison.check(f"{label} {split} {key} deviation", shown[key]["deviation"], deviation)
        if not row["selected"]:
            continue
        means = {key: row["test"][key]["mean"] / data.scale for key in reference}
        comparison.check(f"{label} skill", row["skill"], 1 - means[selection] / reference[selection])
        comparison.check(f"{label} skill by MAE", row["mae_skill"], 1 - means["mae"] / reference["mae"])
        _check_intervals(comparison, label, row["intervals"], seeds, data, quantiles)
        losses[label] = np.mean([_score(own["test"], data.y["test"], quantiles) for own in seeds], axis=0)
    if board["comparison"]:
        bootstrap = project.settings["evaluate"]["bootstrap"]
        difference = (losses[board["best"]] - losses[board["runner_up"]]) * data.scale
        _check_bootstrap(comparison, board["comparison"], difference, bootstrap, bootstrap["level"], data)


def _score(answers: Array, targets: Array, quantiles: list[float]) -> Array:
    """The score of the selection measure by window (N,), normalised."""
    if not quantiles:
        scores: Array = np.abs(answers[..., 0] - targets).mean(axis=1)
        return scores
    q = np.array(quantiles)
    differences = targets[..., None] - np.sort(answers, axis=2)
    pinball: Array = 2 * np.maximum(q * differences, (q - 1) * differences).mean(axis=(1, 2))
    return pinball


def _check_intervals(
    comparison: Comparison,
    label: str,
    intervals: list[dict[str, Any]],
    seeds: list[dict[str, Array]],
    data: Data,
    quantiles: list[float],
) -> None:
    """Compare the width and the coverage of the intervals of a configuration."""
    for interval in intervals:
        widths, coverages = [], []
        for own in seeds:
            values = {split: np.sort(answer, axis=2) for split, answer in own.items()}
            if interval["forecast"]:
                ends = [(1 + sign * interval["level"]) / 2 for sign in (-1, 1)]
                low, high = (next(i for i, q in enumerate(quantiles) if math.isclose(q, end)) for end in ends)
                width = (values["test"][..., high] - values["test"][..., low]).mean()
                is_inside = (values["test"][..., low] <= data.y["test"]) & (data.y["test"] <= values["test"][..., high])
            else:
                middle = quantiles.index(0.5) if quantiles else 0
                half = half_widths(values["validation"][..., middle] - data.y["validation"], interval["level"])
                if half is None:
                    comparison.check(f"{label} interval {interval['level']}", interval["width"]["mean"], None)
                    return
                width = 2 * half.mean()
                # A forecast on the end of the interval counts as inside, whatever the last bit of a float says.
                is_inside = np.abs(values["test"][..., middle] - data.y["test"]) <= half + 1e-9
            widths.append(float(width) * data.scale)
            coverages.append(float(is_inside.mean()))
        title = f"{label} interval {interval['level']}"
        comparison.check(f"{title} width", interval["width"]["mean"], float(np.mean(widths)))
        comparison.check(f"{title} coverage", interval["coverage"]["mean"], float(np.mean(coverages)))


def _check_bootstrap(
    comparison: Comparison,
    shown: dict[str, Any],
    difference: Array,
    settings: dict[str, Any],
    level: float,
    data: Data,
) -> None:
    """Compare a mean difference with its confidence interval: a moving-block bootstrap of the windows."""
    block = max(1, min(max(read_rows(settings["block"]), data.horizon), len(difference) // 4))
    sums = np.array([difference[i : i + block].sum() for i in range(len(difference) - block + 1)])
    generator = np.random.default_rng(0)
    drawn = -(-len(difference) // block)
    means = [
        sums[generator.integers(len(sums), size=drawn)].sum() / (drawn * block) for _ in range(settings["resamples"])
    ]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    comparison.check("difference", shown["difference"], float(difference.mean()))
    comparison.check("lower end of its interval", shown["low"], float(low))
    comparison.check("upper end of its interval", shown["high"], float(high))
    comparison.check("share of resamples", shown["better"], float((np.array(means) < 0).mean()))


def check_decision(comparison: Comparison, project: Project) -> None:
    """Compare the errors and the bootstrap of the newest decision about a champion, if there is one."""
    files = (project.root / f"data/champion/{project.name}/decisions").glob("*/decision.json")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return
    decision, data = json.loads(newest.read_text()), project.data
    losses = {}
    for role in ("challenger", "champion"):
        answers = project.forecast(decision[role]["key"])["test"]
        measures = measure(answers, data.y["test"], project.quantiles)
        losses[role] = _score(answers, data.y["test"], project.quantiles)
        comparison.check(f"{role} MAE", decision[role]["mae"], measures["mae"] * data.scale)
        comparison.check(f"{role} error", decision[role]["error"], float(losses[role].mean()) * data.scale)
    level = project.settings.get("retrain", {}).get("level", 0.95)
    difference = (losses["challenger"] - losses["champion"]) * data.scale
    bootstrap = project.settings["evaluate"]["bootstrap"]
    _check_bootstrap(comparison, decision["comparison"], difference, bootstrap, level, data)


def check_monitor(comparison: Comparison, project: Project) -> None:
    """Compare the errors, the skill and the coverage of each day and version that the monitor has noted, if any."""
    file = project.root / f"data/monitor/{project.name}/history.parquet"
    if not file.exists():
        return
    table = pl.read_parquet(project.root / f"data/ingest/{project.name}/table.parquet")
    target = project.settings["problems"][project.name]["table"]["target"]
    observed = dict(table.select("time", target).iter_rows())
    days: dict[tuple[int, date], list[dict[str, float]]] = {}
    with closing(sqlite3.connect(project.root / f"data/forecasts/{project.name}.db")) as log:
        rows = log.execute("select model_version, origin, target_time, forecast, intervals from forecasts").fetchall()
    for version, origin, target_time, forecast_value, intervals in rows:
        moments = [datetime(1970, 1, 1) + timedelta(milliseconds=moment) for moment in (origin, target_time)]
        last, value = (observed.get(moment) for moment in moments)
        if last is None or value is None:
            continue
        figures = {"mae": abs(forecast_value - value), "persistence_mae": abs(last - value)}
        for level, (low, high) in json.loads(intervals).items():
            figures[f"coverage_{level}"] = float(low <= value <= high)
        days.setdefault((version, moments[1].date()), []).append(figures)
    for row in pl.read_parquet(file).iter_rows(named=True):
        covered = [row["day"] - timedelta(days=back) for back in range(MONITORED_DAYS)]
        figures_of_days = [figures for day in covered for figures in days.get((row["model_version"], day), ())]
        title = f"version {row['model_version']} on {row['day']}"
        comparison.check(f"{title}: forecasts", row["forecasts"], len(figures_of_days))
        means = {key: float(np.mean([one[key] for one in figures_of_days])) for key in figures_of_days[0]}
        for key, computed in means.items():
            comparison.check(f"{title}: {key}", row[key], computed)
        comparison.check(f"{title}: skill", row["mae_skill"], 1 - means["mae"] / means["persistence_mae"])


def recompute(root: Path, name: str) -> Comparison:
    """Compare all figures of a problem that this script knows."""
    comparison, project = Comparison(), Project.read(root, name)
    check_leaderboard(comparison, project)
    check_decision(comparison, project)
    check_monitor(comparison, project)
    return comparison


VARIANTS: dict[str, dict[str, Any]] = {
    "a number": {},
    "quantiles": {"train__loss": "pinball", "train__quantiles": [0.1, 0.5, 0.9]},
    "several leads": {"problems__demo__window": {"lookback": "2d", "step": "1h", "delay": "6h", "first": "3h"}},
}
"""Changes to the settings of a small project, by the kind of problem that results."""


GRID = {"persistence": {}, "dense": {"units": [4]}, "gru": {"units": [4, 8]}, "lstm": {"units": [4]}}


def main(root: Path | None, name: str) -> int:
    """Recompute one leaderboard, or those of three small problems; 1: a figure differs."""
    if root is not None:
        return _report(name, recompute(root, name))
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for title, changes in VARIANTS.items():
            project = checkout.make_checkout(Path(folder) / title.replace(" ", "-"))
            project.settings(**changes, grid__architectures=GRID, retrain={"windows": 50, "slice_windows": 10})
            try:
                project.recast("run")
                status |= _report(f"{title}, with baselines", recompute(project.root, "demo"))
                # The best on validation is a network, and becomes the champion whatever the comparison says.
                project.settings(grid__architectures={name: axes for name, axes in GRID.items() if axes})
                project.recast("retrain", "demo")
                project.recast("promote", "demo", "1")
                # The rows are of 2020, so the forecasts are stale: the status says so.
                project.run(sys.executable, "-m", "flows", "predict", "demo", "--all", status=None)
                project.recast("monitor", "demo")
            finally:
                project.recast("down")
            status |= _report(title, recompute(project.root, "demo"))
    return status


def _report(title: str, comparison: Comparison) -> int:
    print(f"{title}: {comparison.figures} figures, {len(comparison.differences)} differ", flush=True)
    for difference in comparison.differences:
        print(f"  {difference}", flush=True)
    return int(bool(comparison.differences))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", nargs="?", type=Path, help="of a project that has run; left out: three small ones")
    parser.add_argument("name", nargs="?", default="demo", help="of the problem")
    chosen = parser.parse_args()
    sys.exit(main(chosen.root, chosen.name))
