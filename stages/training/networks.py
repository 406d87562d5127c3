"""Loading the networks of finished trials."""

from safetensors.torch import load_file

from architectures import Network
from stages.tables.windows import AnyWindows
from stages.training.fit import initialize_network
from stages.training.objectives import choose_shape
from stages.training.trials import Trial, trial_folder


def load_network(trial: Trial, windows: AnyWindows) -> Network:
    """A finished trial's network with its best weights, on the CPU."""
    configuration, shape = trial.configuration, choose_shape(windows, trial.train)
    network = initialize_network(configuration.architecture, configuration.hyperparameters, shape, trial.seed)
    file = trial_folder(trial) / "weights.safetensors"
    network.load_state_dict(load_file(file) if file.exists() else {})
    return network.eval()
