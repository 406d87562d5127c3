"""The files of grids/: what they claim of the networks that they train."""

import shutil
from pathlib import Path

from architectures import REGISTRY, WindowShape
from problems.columns import derived_columns
from project.settings.grid import Configuration, expand_grid
from project.settings.loading import load_settings, overlay_settings
from project.settings.sections import Settings
from stages.training.fit import initialize_network

ROOT = Path(__file__).parents[3]


def settings_of(file: str, folder: Path) -> Settings:
    """params.yaml with a file of grids/ in its place."""
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    overlay_settings(ROOT / "grids" / file, folder / "params.yaml")
    return load_settings(folder / "params.yaml")


def parameters(settings: Settings, problem: str, configuration: Configuration) -> int:
    """The weights of a configuration's network on windows of a problem with hourly rows."""
    declared = settings.problem(problem)
    features = declared.table.features + derived_columns(declared.table)
    shape = WindowShape(
        steps=declared.window.lookback // declared.window.step,
        features=len(features),
        target=features.index(declared.table.target),
        horizon=24,
        day=24,
        climatology=(len(features) - 2, len(features) - 1) if declared.table.climatology else None,
    )
    network = initialize_network(configuration.architecture, configuration.hyperparameters, shape, seed=0)
    return sum(weight.numel() for weight in network.parameters())


def test_all_has_every_architecture_at_two_comparable_sizes(tmp_path: Path) -> None:
    settings = settings_of("all.yaml", tmp_path)
    configurations = expand_grid(settings.grid)
    assert {configuration.architecture for configuration in configurations} == set(REGISTRY)
    for name, architecture in REGISTRY.items():
        own = [configuration for configuration in configurations if configuration.architecture == name]
        if not architecture.trainable:
            continue
        assert len({configuration.hyperparameters.model_dump()["learning_rate"] for configuration in own}) > 1, name
        sizes = sorted({parameters(settings, "nyc", configuration) for configuration in own})
        if name == "linear":
            assert sizes == [48 * 11 + 1]
        elif name == "constant":
            assert sizes == [1]
        else:
            small, large = sizes
            assert 3_800 <= small <= 6_000, name
            assert 13_000 <= large <= 16_000, name


def gru(inputs: int, units: int) -> int:
    """Keras's GRU(units): three gates, each with the inputs' weights, the state's and two biases."""
    return 3 * (inputs * units + units * units + 2 * units)


def test_the_lectures_networks_have_the_parameters_of_keras(tmp_path: Path) -> None:
    """By the formulas of Keras's layers, on windows of 120 steps of the 12 columns."""
    settings = settings_of("lecture.yaml", tmp_path)
    counts = {
        configuration.label: parameters(settings, "jena", configuration) for configuration in expand_grid(settings.grid)
    }
    dropout = "dropout=0.1 recurrent_dropout=0.5"
    assert counts["dense"] == (120 * 12 + 1) * 32 + 33  # D5
    assert counts["gru"] == counts["gru reversed=True initial=keras"] == gru(12, 32) + 33  # D6, D8
    d7 = f"gru units=[32, 64] activation=[tanh, relu] {dropout} epochs=40"
    assert counts[d7] == gru(12, 32) + gru(32, 64) + 65
    assert counts["gru bidirectional=True epochs=40"] == 2 * gru(12, 32) + 65  # D9
    convolutions = (12 * 5 + 1) * 32 + (32 * 5 + 1) * 32
    assert counts[f"conv_gru {dropout}"] == convolutions + gru(32, 32) + 33  # D10
