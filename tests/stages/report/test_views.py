"""Inside the networks: the views of the architectures, vanishing gradients, and the pictures of a real run."""

import html
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor, nn

from architectures import REGISTRY, Network, WindowShape
from architectures.attention import HierarchicalAttention
from architectures.cells.lstm import LSTM
from architectures.recurrent import Recurrent
from architectures.tcn import TCN
from architectures.view import View, ViewAxis, input_axis, name_windows
from project import paths as places
from project.atomic import replace_folder
from project.settings.loading import load_settings
from stages.evaluate import write_results
from stages.evaluation import leaderboard
from stages.evaluation.selection import select_best_trials
from stages.report.drawing import use_matplotlib
from stages.report.figures import CHART_STYLE, COLORS, LineStyle
from stages.report.gradients import build_gradient_view, state_gradient_norms
from stages.report.inspection import inspect_networks
from stages.report.page import render_report
from stages.report.pictures import NetworkPictures
from stages.report.view_painter import ViewPainter
from stages.training.expansion import list_trials
from stages.training.fit import initialize_network
from stages.training.trials import Trial
from tests.stages.tracking.test_tracking import enter, runs
from tests.support import checkout
from tests.support.checkout import Checkout

B, T, F = 3, 13, 2
SHAPE = WindowShape(steps=T, features=F, target=1, horizon=8, day=4)
RECURRENT = sorted(name for name, architecture in REGISTRY.items() if issubclass(architecture, Recurrent))


def network_of(name: str, shape: WindowShape = SHAPE, **axes: Any) -> Network:
    return initialize_network(name, REGISTRY[name].Hyperparameters(**axes), shape, seed=0).double().eval()


def windows(batch: int = B, steps: int = T) -> Tensor:
    return torch.randn(batch, steps, F, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def views_of(network: Network, x_BTF: Tensor) -> list[View]:
    with torch.no_grad():
        return network.views(x_BTF)


# The views of architectures


def test_the_steps_attended_to() -> None:
    network, x_BTF = network_of("attention", units=4), windows()
    (view,) = views_of(network, x_BTF)
    assert view.kind == "lines"
    assert view.values.shape == (1, B, T)
    assert view.names == ("window 1", "window 2", "window 3")
    assert (view.x.first, view.x.unit) == (1 - T, "steps")
    torch.testing.assert_close(view.values.sum(dim=2), torch.ones(1, B, dtype=torch.float64))


def test_the_segments_attended_to() -> None:
    """Of 13 steps and 4 a day there are four segments; the first has one step, after three that are padding."""
    network, x_BTF = network_of("hierarchical_attention", units=4), windows()
    assert isinstance(network, HierarchicalAttention)
    segments, steps = views_of(network, x_BTF)
    assert segments.kind == "bars"
    assert segments.values.shape == (B, 1, 4)
    assert steps.kind == "map"
    assert steps.values.shape == (B, 4, 4)
    for view in (segments, steps):
        ones = torch.ones(view.values.shape[:2], dtype=torch.float64)
        torch.testing.assert_close(view.values.sum(dim=2), ones)
    assert not steps.values[:, 0, :3].any()
    assert "first 3 of the first segment" in steps.caption


def test_the_maps_of_each_layer_and_head() -> None:
    network, x_BTF = network_of("transformer", layers=3, heads=2, causal=True), windows()
    views = views_of(network, x_BTF)
    assert [view.title for view in views] == [f"Attention maps, window {b}" for b in (1, 2, 3)]
    for view in views:
        assert view.kind == "map"
        assert view.values.shape == (6, T, T)
        assert view.columns == 2
        assert view.panels[:3] == ("layer 1, head 1", "layer 1, head 2", "layer 2, head 1")
        torch.testing.assert_close(view.values.sum(dim=2), torch.ones(6, T, dtype=torch.float64))
        assert not view.values.triu(1).any(), "a causal one looks at no later step"


def test_the_slots_read_and_written() -> None:
    network, x_BTF = network_of("ntm", slots=5), windows()
    (view,) = views_of(network, x_BTF)
    assert view.kind == "map"
    assert view.values.shape == (2 * B, 5, T)
    assert view.panels[:2] == ("window 1, reading", "window 1, writing")
    torch.testing.assert_close(view.values.sum(dim=1), torch.ones(2 * B, T, dtype=torch.float64))
    assert torch.equal(view.values[3], network.addressing(x_BTF)[1, :, 1].T)  # type: ignore[operator]


def test_the_steps_pondered() -> None:
    network, x_BTF = network_of("act_rnn", max_ponder=3), windows()
    (view,) = views_of(network, x_BTF)
    assert view.kind == "bars"
    assert view.values.shape == (B, 1, T)
    assert set(view.values.unique().tolist()) <= {1.0, 2.0, 3.0}
    assert f"{view.values.mean():.2f} on average" in view.caption


@pytest.mark.parametrize(("kernel", "levels", "beyond"), [(2, 2, 4), (3, 1, 1), (2, 2, 0), (3, 3, -5)])
def test_the_receptive_field_measured_is_that_of_the_formula(kernel: int, levels: int, beyond: int) -> None:
    """Also where it is as long as the window, or longer."""
    field = 1 + 2 * (kernel - 1) * (2**levels - 1)
    steps = field + beyond
    shape = WindowShape(steps=steps, features=F, target=1, horizon=8, day=4)
    network = network_of("tcn", shape, kernel=kernel, levels=levels, channels=3)
    assert isinstance(network, TCN)
    with torch.no_grad():
        for value in network.parameters():
            value.abs_()  # On positive inputs no relu hides what arrives.
    (view,) = views_of(network, windows(steps=steps).abs())
    assert view.kind == "lines"
    assert view.log
    assert view.values.shape == (1, B, steps)
    seen_T = (view.values[0] > 0).all(dim=0)
    assert int(seen_T.sum()) == min(field, steps)
    assert not view.values[0, :, : max(beyond, 0)].any()
    assert f"can see {field} steps" in view.caption
    assert view.mark == ((0.5 - field, f"sees {field} steps") if beyond > 0 else None)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_looking_leaves_a_network_as_it_was(name: str) -> None:
    """Every architecture can be asked, and forecasts the same afterwards; a baseline has nothing to show."""
    shape = WindowShape(steps=T, features=F + 2, target=1, horizon=4, day=4, climatology=(2, 3))
    network = network_of(name, shape)
    x_BTF = torch.cat([windows(), windows()], dim=2)
    with torch.no_grad():
        before_B = network(x_BTF)
        views = network.views(x_BTF)
        assert torch.equal(network(x_BTF), before_B)
    assert all(weight.grad is None for weight in network.parameters())
    assert network.trainable or not views
    assert views or name not in {"attention", "hierarchical_attention", "transformer", "ntm", "act_rnn", "tcn"}


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(2, 2, 5),
        torch.zeros(1, 3, 5),
        torch.zeros(2, 5),
        torch.zeros(1, 2, 0),
        torch.full((1, 2, 5), np.nan),
    ],
    ids=["panels", "lines", "dimensions", "empty", "nan"],
)
def test_a_view_is_what_it_says(values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"weights: "):
        View("weights", "", "lines", values, ViewAxis("step"), ViewAxis("weight"), names=("a", "b"))


# Drawing


def drawn_apart(view: View) -> Figure:
    """The figure of a view, in which no panel, name of a panel or legend covers another, and nothing is cut off."""
    with use_matplotlib(CHART_STYLE):
        figure, _ = ViewPainter({}, synthetic=False, step="1h", day=24).draw(
            view, [LineStyle(color) for color in COLORS]
        )
        figure.draw_without_rendering()
        boxes = []
        for axes in figure.axes:
            name = axes.get_title(loc="left")
            names = [text for text in axes.findobj(Text) if isinstance(text, Text) and name and text.get_text() == name]
            boxes += [part.get_window_extent() for part in (axes.patch, axes.get_legend(), *names) if part]
            whole = axes.get_tightbbox()
            assert whole, axes
            assert min(whole.x0, whole.y0) >= 0, whole
            assert whole.x1 <= figure.bbox.x1, whole
            assert whole.y1 <= figure.bbox.y1, whole
    for a, b in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(a, b)
        assert shared is None or min(shared.width, shared.height) < 1, (a, b)
    return figure


@pytest.mark.parametrize("panels", [1, 3])
@pytest.mark.parametrize("names", [1, 6, 15])
def test_a_legend_has_its_own_place(panels: int, names: int) -> None:
    values = torch.rand(panels, names, 24, dtype=torch.float32)
    of_windows = name_windows(panels) if panels > 1 else ("",)
    lines = tuple(f"line {i}" for i in range(names))
    drawn_apart(View("weights", "", "lines", values, input_axis(24), ViewAxis("weight"), of_windows, lines))


def test_the_rows_of_a_map_have_their_names() -> None:
    names = ("sum", "HUMIDITY OF THE SOIL")
    view = View(
        "weights", "", "map", torch.rand(3, 2, 4), ViewAxis("step"), ViewAxis("operation"), name_windows(3), names, 3
    )
    first, second, _ = drawn_apart(view).axes
    assert tuple(label.get_text() for label in first.get_yticklabels()) == names
    assert first.get_ylabel() == "operation"
    assert not second.get_ylabel()


# Vanishing gradients


def gradients_of(network: Network, x_BTF: Tensor, y_B: Tensor, loss: str = "mse") -> Tensor:
    assert isinstance(network, Recurrent)
    loss_of = {"mse": nn.functional.mse_loss, "mae": nn.functional.l1_loss}[loss]
    return state_gradient_norms(network, x_BTF, y_B[:, None, None], lambda y_BSO, y_BSK, _: loss_of(y_BSO, y_BSK))


@pytest.mark.parametrize("reads_from_the_end", [False, True])
def test_the_gradients_of_an_elman_network_are_products_of_jacobians(reads_from_the_end: bool) -> None:
    """dL/dh_t = dL/dh_T J_T ... J_{t+1} with J_k = diag(1 - h_k^2) U, and dL/dh_T = 2 (y - target) w."""
    network, x_BTF, y_B = network_of("simple_rnn", units=5, reversed=reads_from_the_end), windows(), windows()[:, 0, 0]
    w = {name: value.detach().numpy() for name, value in network.named_parameters()}
    W, U = (w[f"recurrent.onwards.0.fused.weight_{part}_l0"] for part in ("ih", "hh"))
    b = w["recurrent.onwards.0.fused.bias_ih_l0"]
    (out_w,), (out_b,) = w["output.0.weight"], w["output.0.bias"]
    norms = np.zeros(T)
    for x_TF, target in zip(x_BTF.numpy(), y_B.numpy(), strict=True):
        states = [np.zeros(5)]
        for x in x_TF[::-1] if reads_from_the_end else x_TF:
            states.append(np.tanh(W @ x + U @ states[-1] + b))
        d = 2 * (out_w @ states[-1] + out_b - target) * out_w
        for t in reversed(range(T)):
            norms[t] += np.linalg.norm(d) / B
            d = d @ (np.diag(1 - states[t + 1] ** 2) @ U)
    np.testing.assert_allclose(gradients_of(network, x_BTF, y_B), norms, rtol=1e-10)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize(
    "axes", [{}, {"units": (4, 3), "bidirectional": True, "dropout": 0.3, "recurrent_dropout": 0.3}]
)
def test_the_gradients_are_the_differences_of_the_loss(name: str, axes: dict[str, Any]) -> None:
    """Of what the network forecasts when the state of its top layer after one step is another."""
    network, x_BTF, y_B = network_of(name, **({"units": 3} | axes)), windows(2, 5), windows(2, 5)[:, 0, 0]
    assert isinstance(network, Recurrent)
    found_T = gradients_of(network, x_BTF, y_B)
    assert found_T.shape == (5,)
    layer = network.recurrent.onwards[-1]
    step = 1e-6

    def losses(at: int, unit: int, change: float) -> np.ndarray[Any, Any]:
        def moved(module: nn.Module, args: tuple[Tensor], _: Any) -> Any:
            state, given = None, []
            for t in range(5):
                _, state = module.forward(args[0][:, t : t + 1], state)
                if t == at:
                    h_BH = state[0].clone()
                    h_BH[:, unit] += change
                    state = (h_BH, *state[1:])
                given.append(state[0])
            return torch.stack(given, dim=1), state

        hook = layer.register_forward_hook(moved)
        with torch.no_grad():
            errors = (network(x_BTF)[:, 0, 0] - y_B).square().numpy()
        hook.remove()
        return np.asarray(errors)

    for t in range(5):
        d_HB = np.stack([(losses(t, u, step) - losses(t, u, -step)) / (2 * step) for u in range(3)])
        assert float(found_T[t]) == pytest.approx(np.linalg.norm(d_HB, axis=0).mean(), rel=1e-5, abs=1e-12)


def test_looking_at_gradients_leaves_the_network_as_it_was() -> None:
    network, x_BTF = network_of("lstm", units=4), windows()
    assert isinstance(network, Recurrent)
    assert isinstance(network.recurrent.onwards[-1], LSTM)
    before_B = network(x_BTF)
    found_T = gradients_of(network, x_BTF, x_BTF[:, 0, 0], "mae")
    assert found_T.isfinite().all()
    assert torch.equal(network(x_BTF), before_B)
    assert all(weight.grad is None for weight in network.parameters())


def test_networks_that_see_fewer_steps_are_drawn_from_the_last_one() -> None:
    view = build_gradient_view({"long": torch.arange(1.0, 6.0), "short": torch.tensor([3.0, 6.0])}, 64)
    assert view.values.tolist() == [[[1, 2, 3, 4, 5], [0, 0, 0, 3, 6]]]
    assert view.x.first == -4
    assert view.names == ("long", "short")
    assert "long 0.2; short 0.5" in view.caption


# A real run


GRID: dict[str, Any] = {
    "persistence": {},
    "attention": {"units": [3]},
    "tcn": {"levels": [2], "channels": [2]},
    "transformer": {"head_width": [2], "layers": [1]},
    "ntm": {"units": [3], "slots": [4], "width": [2]},
    "act_rnn": {"units": [3]},
    "simple_rnn": {"units": [3], "lookback": [30]},
    "gru": {"units": [3], "members": [2], "residual": ["persistence"]},
}


@pytest.fixture(scope="module")
def seen(servers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A finished checkout with networks that have views."""
    made = checkout.make_checkout(
        tmp_path_factory.mktemp("seen") / "checkout", servers["mlflow_db"], PREFECT_API_URL=servers["api"]
    )
    made.settings(grid__architectures=GRID, train__epochs=1, train__steps_per_epoch=2)
    made.recast("run")
    made.recast("report", "--full")
    return made


def results(checkout: Checkout) -> Path:
    return checkout.root / places.stage_folder("evaluate", "demo")


def full_report(checkout: Checkout) -> Path:
    return checkout.root / places.stage_folder("report", "demo")


def test_only_the_full_report_draws_the_networks(seen: Checkout, tmp_path: Path) -> None:
    assert not (results(seen) / "inside").exists()
    page = (results(seen) / "report.html").read_text()
    assert "recast report --full demo" in page
    assert "Vanishing gradients</figcaption>" not in page
    checkout = seen.copy(tmp_path / "copy")
    (results(checkout) / "report.html").unlink()
    assert "Report: data/evaluate/demo/report.html" in checkout.recast("report")
    assert (results(checkout) / "report.html").read_text() == page
    (results(checkout) / "leaderboard.json").unlink()
    for options in ((), ("--full",)):
        assert "nothing to report" in checkout.recast("report", *options, status=1)


def test_the_report_shows_the_networks(seen: Checkout) -> None:
    page = (full_report(seen) / "report.html").read_text()
    section = page[page.index("<h2>Inside the networks</h2>") : page.index("<h2>Data</h2>")]
    assert "Vanishing gradients" in section
    assert "Pictures that could not be drawn" not in section
    for title in ("Attention over the steps", "Receptive field", "Addressing of the memory", "Ponder steps"):
        assert f"<figcaption>{title}</figcaption>" in section
    assert section.count("<details>") == 5
    assert section.count("Each row is a step that attends") == 1 + 3
    assert "-03-" in section or "2020-01-" in section, "the windows' targets"
    for name in ("simple_rnn", "gru ensemble"):
        assert f">{name}</text>" in section, "a line of the picture of gradients"
    assert "mathdefault" not in page
    identifiers = re.findall(r'\sid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', page))


def test_the_pictures_are_files_beside_the_report_and_in_mlflow(seen: Checkout) -> None:
    folder = full_report(seen) / "inside"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.png")}
    assert files == {
        "vanishing_gradients.png",
        "attention/1_attention_over_the_steps.png",
        "tcn/1_receptive_field.png",
        *(f"transformer/{b}_attention_maps_window_{b}.png" for b in (1, 2, 3)),
        "ntm/1_addressing_of_the_memory.png",
        "act_rnn/1_ponder_steps.png",
    }
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in files)
    about = json.loads((folder / "pictures.json").read_text())
    assert set(about["pictures"]) == files
    assert len(about["windows"]) == 3
    assert all(picture["title"] and picture["caption"] for picture in about["pictures"].values())
    client, parent, trials = runs(seen)
    found = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "evaluation/inside")}
    assert "evaluation/inside/vanishing_gradients.png" in found
    with_model = {name for name, run in trials.items() if "recast.model" in run.data.tags}
    for name, run in trials.items():
        paths = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "inside")]
        architecture = run.data.params["architecture"]
        shown = sorted(f"inside/{file.partition('/')[2]}" for file in files if file.startswith(f"{architecture}/"))
        assert sorted(paths) == (shown if name in with_model else []), "the trial whose model is stored is shown"


@pytest.fixture
def inspect_again(seen: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], NetworkPictures]:
    """A function that draws the networks again, in a copy of the checkout in which this process works."""
    copy = seen.copy(tmp_path / "copy")
    enter(copy.root, monkeypatch)
    evaluation = leaderboard.read_leaderboard(places.stage_folder("evaluate", "demo"))
    assert evaluation is not None
    windowed = places.stage_folder("window", "demo")
    trials = list_trials(load_settings(), "demo", windowed)

    def again() -> NetworkPictures:
        pictures = inspect_networks(evaluation, trials, places.stage_folder("normalize", "demo"), windowed)
        with replace_folder(Path("again")) as folder:
            pictures.write(folder)
            (folder / "report.html").write_text(render_report(evaluation, pictures))
        return pictures

    return again


def test_the_same_networks_give_the_same_bytes(seen: Checkout, inspect_again: Callable[[], NetworkPictures]) -> None:
    inspect_again()
    evaluation = leaderboard.read_leaderboard(places.stage_folder("evaluate", "demo"))
    assert evaluation is not None
    write_results(evaluation, Path("evaluated"))
    for folder, other in ((full_report(seen), Path("again")), (results(seen), Path("evaluated"))):
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert (other / file.relative_to(folder)).read_bytes() == file.read_bytes(), file.name


def test_a_picture_that_cannot_be_drawn_is_reported_and_does_not_affect_the_others(
    inspect_again: Callable[[], NetworkPictures], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Network, x_BTF: Tensor) -> list[View]:
        raise RuntimeError("no <view>\nand more")

    monkeypatch.setattr(REGISTRY["ntm"], "views", broken)
    pictures = inspect_again()
    ((subject, reason),) = pictures.failures
    assert subject.startswith("ntm ")
    assert reason == "RuntimeError: no <view>"
    assert f"{subject} cannot be drawn: {reason}" in caplog.text
    section = Path("again/report.html").read_text()
    assert html.escape(reason) in section
    assert section.count("<details>") == 4 + 1, "the last one is that of the raw files"
    assert {inspected.trial.configuration.architecture for inspected in pictures.trials} == {
        "attention",
        "tcn",
        "transformer",
        "act_rnn",
    }
    assert not Path("again/inside/ntm").exists()
    assert Path("again/inside/vanishing_gradients.png").exists()


def test_without_pictures_there_is_no_section(seen: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(seen.root)
    evaluation = leaderboard.read_leaderboard(results(seen))
    assert evaluation is not None
    baselines = replace(evaluation, rows=[row for row in evaluation.rows if row.architecture == "persistence"])
    windowed = places.stage_folder("window", "demo")
    found = inspect_networks(
        baselines, list_trials(load_settings(), "demo", windowed), places.stage_folder("normalize", "demo"), windowed
    )
    found.write(tmp_path)
    assert "Inside the networks" not in render_report(evaluation, found)
    assert json.loads((tmp_path / "inside/pictures.json").read_text())["pictures"] == {}


def test_the_best_trial_is_the_one_with_the_lowest_validation_error(
    seen: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(seen.root)
    evaluation = leaderboard.read_leaderboard(results(seen))
    assert evaluation is not None
    trials: list[Trial] = list_trials(load_settings(), "demo", places.stage_folder("window", "demo"))
    found = {row.architecture: trial for row, trial in select_best_trials(evaluation.rows, trials)}
    assert found.keys() == (GRID.keys() - {"gru"}) | {"gru ensemble"}
    for architecture, best in found.items():
        errors = {
            trial.seed: json.loads((places.trials_folder("demo") / trial.key / "trial.json").read_text())["validation"][
                "mae"
            ]
            for trial in trials
            if trial.configuration.family == architecture
        }
        assert errors[best.seed] == min(errors.values())
