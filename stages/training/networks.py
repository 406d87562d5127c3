"""Loading the networks of finished trials."""

from safetensors.torch import load

from architectures import Network
from stages.tables.windows import AnyWindows
from stages.training.fit import initialize_network
from stages.training.objectives import choose_shape
from stages.training.trials import WEIGHTS_FILE, Trial, read_trial, trial_folder


def load_network(trial: Trial, windows: AnyWindows) -> Network:
    """A finished trial's network with its best weights, on the CPU.

    Raises:
        DamagedTrial: a file of the trial is missing, or is not as training wrote it.
    """
    read_trial(trial)
    configuration, shape = trial.configuration, choose_shape(windows, trial.train)
    network = initialize_network(configuration.architecture, configuration.hyperparameters, shape, trial.seed)
    file = trial_folder(trial) / WEIGHTS_FILE
    network.load_state_dict(load(file.read_bytes()) if file.exists() else {})
    return network.eval()
