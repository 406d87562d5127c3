"""The training of one trial, from its seed to its best weights.

On the CPU the result is a function of the trial's specification alone, bit for bit, also when training was killed and
resumed: every epoch draws from generators seeded by (seed, epoch), and a checkpoint is saved at the end of each epoch.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from architectures import Axes, Network, TrainedAxes, WindowShape, combined
from learning.objectives import Objective
from learning.optimizers import OPTIMIZERS
from learning.schedules import SCHEDULES
from project.settings.sections import TrainSettings
from stages.training.baselines import spread_baseline
from stages.training.batches import SplitData
from stages.training.checkpoint import FitResult, TrainingState, load_checkpoint, save_checkpoint
from stages.training.failures import TrialFailed
from stages.training.flat_weights import FlatWeights
from stages.training.history import Epoch
from stages.training.peak_memory import total_memory
from stages.training.scoring import mean_scores

WEIGHT_BYTES = 12
"""What training needs for a weight at least: the weight, its gradient and its best value, in float32."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def initialize_network(architecture: str, hyperparameters: Axes, shape: WindowShape, seed: int) -> Network:
    """A network with its initial weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return combined.build_network(architecture, hyperparameters, shape)


def outline_network(architecture: str, hyperparameters: Axes, shape: WindowShape) -> Network:
    """A network whose weights have shapes but no values, and so take no memory.

    Raises:
        ShapeError: the architecture cannot work on windows of this shape.
        TrialFailed: a weight is larger than any tensor can be.
    """
    try:
        with torch.device("meta"):
            return combined.build_network(architecture, hyperparameters, shape)
    except RuntimeError as error:
        raise TrialFailed(f"is too large for PyTorch: {error}") from error


def _check_memory(network: Network, device: torch.device) -> None:
    """
    Args:
        network: its outline.

    Raises:
        TrialFailed: the device has less memory than training the network takes, whatever else runs there. Without this
            check the system would grant the memory, and end the process when it is used.
    """
    weights = sum(weight.numel() for weight in network.parameters())
    needed, memory = weights * WEIGHT_BYTES, total_memory(device)
    if needed > memory:
        raise TrialFailed(
            f"out of memory: training its {weights:,} weights takes at least {needed / 2**30:,.1f} GiB, and the device "
            f"has {memory / 2**30:,.1f} GiB",
            transient=True,
        )


def fit(
    architecture: str,
    hyperparameters: Axes,
    seed: int,
    settings: TrainSettings,
    shape: WindowShape,
    objective: Objective,
    data: dict[str, SplitData],
    device: torch.device,
    checkpoint: Path,
    after_epoch: Callable[[TrainingState], None],
    before_step: Callable[[], None] = lambda: None,
) -> FitResult:
    """Train to the end, from `checkpoint` if it exists, and return the weights that are best on validation.

    It sets PyTorch's seed and number of threads, which belong to the process: train one trial at a time in a process.

    Args:
        shape: of the windows, with the outputs that the objective needs.
        checkpoint: written after every epoch; the caller removes it when the trial is done.
        after_epoch: called after every epoch's checkpoint, and once with what a checkpoint has when it is resumed.
        before_step: called before every step; what it raises ends the training.

    Raises:
        TrialFailed: the loss is infinite or not a number, or the network is too large for the device.
    """
    torch.set_num_threads(settings.threads)
    # The same switch as `use_deterministic_algorithms`, which would import PyTorch's compiler.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    # Otherwise PyTorch would fill whatever it allocates, in case that an operation reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    exact = settings.precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    # cuDNN has a switch of its own: without it, a recurrent layer computes float32 as TF32.
    torch.backends.cudnn.allow_tf32 = not exact
    _check_memory(outline_network(architecture, hyperparameters, shape), device)
    network = initialize_network(architecture, hyperparameters, shape, seed).to(device)
    if not isinstance(hyperparameters, TrainedAxes):
        spread_baseline(network, objective.quantiles, data["validation"])
        return FitResult(network=network)
    # On a GPU, PyTorch's optimizers take all weights at once as it is, and cuDNN lays them out in its own way.
    flat = FlatWeights(network) if device.type == "cpu" else None
    trained = [flat.vector] if flat else [*network.parameters()]
    training = TrainingState(
        network=network,
        flat=flat,
        optimizer=OPTIMIZERS[hyperparameters.optimizer](trained, hyperparameters.learning_rate),
        scaler=torch.amp.GradScaler(device.type, enabled=settings.precision == "float16"),
    )
    load_checkpoint(training, checkpoint, device)
    if training.history:
        after_epoch(training)
    while not _is_complete(training, settings, count_epochs(hyperparameters, settings)):
        start = time.perf_counter()
        train_loss = _train_epoch(training, hyperparameters, settings, objective, data["train"], seed, before_step)
        _validate_epoch(training, train_loss, objective, data["validation"])
        training.seconds += time.perf_counter() - start
        save_checkpoint(training, checkpoint)
        after_epoch(training)
    network.load_state_dict(training.best)
    return training


def count_epochs(hyperparameters: Axes, settings: TrainSettings) -> int:
    """The most epochs that a trial is trained for: 0 where there is nothing to train."""
    if not isinstance(hyperparameters, TrainedAxes):
        return 0
    return hyperparameters.epochs or settings.epochs


def _is_complete(training: TrainingState, settings: TrainSettings, epochs: int) -> bool:
    waited = len(training.history) - training.best_epoch
    return len(training.history) >= epochs or (settings.patience is not None and waited >= settings.patience)


def _train_epoch(
    training: TrainingState,
    axes: TrainedAxes,
    settings: TrainSettings,
    objective: Objective,
    data: SplitData,
    seed: int,
    before_step: Callable[[], None],
) -> float:
    """Train for one more epoch and return the mean loss of its steps.

    Raises:
        TrialFailed: the loss is infinite or not a number.
    """
    network, flat, optimizer, scaler = training.network, training.flat, training.optimizer, training.scaler
    trained = optimizer.param_groups[0]["params"]
    epoch = len(training.history) + 1
    epoch_seed = (seed << 20) + epoch
    torch.manual_seed(epoch_seed)
    network.train()
    mixed = torch.autocast(data.device.type, PRECISIONS[settings.precision], enabled=settings.precision != "float32")
    # Added up on the device: reading the loss at each step would make the device wait for Python.
    total, steps = torch.zeros((), device=data.device), 0
    epoch_steps = settings.steps_per_epoch or data.count_batches(settings.batch_size)
    all_steps = epoch_steps * count_epochs(axes, settings)
    batches = data.iterate_shuffled(
        settings.batch_size, settings.steps_per_epoch, torch.Generator().manual_seed(epoch_seed)
    )
    for batch in batches:
        before_step()
        if batch.begins:
            network.forget()
        done = (epoch_steps * (epoch - 1) + steps) / all_steps
        for group in optimizer.param_groups:
            group["lr"] = axes.learning_rate * SCHEDULES[axes.schedule](done)
        with mixed:
            predicted = network(batch.x_BTF).float()
        # The members of an ensemble are trained each by its own answers.
        members = predicted if predicted.dim() == 4 else predicted.unsqueeze(0)
        loss = torch.stack([objective.loss(y_BSO, batch.y_BSK, batch.weight_BS) for y_BSO in members]).mean()
        total += loss.detach()
        penalty = network.penalty()
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(loss))
        if flat:
            flat.take_gradients()
        if settings.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, settings.clip)
        scaler.step(optimizer)
        scaler.update()
        steps += 1
    train_loss = float(total) / steps
    if not math.isfinite(train_loss):
        raise TrialFailed(f"diverged in epoch {epoch}: the training loss is {train_loss}")
    return train_loss


def _validate_epoch(training: TrainingState, train_loss: float, objective: Objective, data: SplitData) -> None:
    """Add the epoch that was trained to the history, and keep its weights if they are the best on validation.

    Raises:
        TrialFailed: the selection measure is infinite or not a number.
    """
    epoch, selection = len(training.history) + 1, objective.selection_measure
    values = objective.compute_measures(mean_scores(training.network, data, objective))
    error = values[selection.name]
    if not math.isfinite(error):
        raise TrialFailed(f"diverged in epoch {epoch}: the validation {selection.title} is {error}")
    lowest = min((former.validation[selection.name] for former in training.history), default=math.inf)
    # Errors in the history are normalised: without a scale, the values by a measure's own name are too.
    validation = {measure.name: values[measure.name] for measure in objective.measures}
    training.history.append(Epoch(epoch, train_loss, validation))
    if error < lowest:
        training.best_epoch = epoch
        training.best = {name: value.detach().clone() for name, value in training.network.state_dict().items()}
