"""TODO: what stages.training.networks is for."""

from safetensors.torch import load_file

from architectures import Network
from stages.tables.windows import AnyWindows
from stages.training.fit import build
from stages.training.objectives import shape_for
from stages.training.trials import Trial, trial_folder


def load_network(trial: Trial, windows: AnyWindows) -> Network:
    """A finished trial's network with its best weights, on the CPU."""
    configuration, shape = trial.configuration, shape_for(windows, trial.train)
    network = build(configuration.architecture, configuration.hyperparameters, shape, trial.seed)
    file = trial_folder(trial) / "weights.safetensors"
    network.load_state_dict(load_file(file) if file.exists() else {})
    return network.eval()
