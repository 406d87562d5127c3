"""The training of one trial, from its seed to its best weights.

On CPU the result is a function of the trial's specification alone, bit for bit, also when training was killed and
resumed: every epoch draws from generators seeded by (seed, epoch), and each epoch's end is saved.
"""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from architectures import Axes, Network, TrainedAxes, WindowShape, combined
from project.atomic import replaced_file
from project.settings.sections import Train
from stages.training.batches import Batch, Data
from stages.training.history import Epoch
from stages.training.objectives import Objective, Scores

EVALUATION_BATCH = 1024
"""Windows forecast at once outside training, at most; part of no result but its last bits."""
EVALUATION_NUMBERS = 1 << 24
"""Numbers in what a network makes of them on the way, roughly: of long windows, there are fewer at once."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    # Keras's RMSprop averages with 0.9 where PyTorch's default is 0.99; the lecture's is Keras's.
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr, alpha=0.9, eps=1e-7),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""What the step size is multiplied by, by the share of the training that is done (Loshchilov & Hutter 2017)."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrialFailed(Exception):
    """The trial has no result; the message is the reason. The rest of the grid goes on.

    Attributes:
        transient: it may end well another time, on a machine with more memory, say.
    """

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


_WANT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_alloc_failed")
"""What PyTorch's messages say, in small letters: only CUDA's own allocator has an exception class for it."""


def failure(error: Exception) -> TrialFailed:
    """An error that a trial has met, as the failure of that trial."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text.lower() for sign in _WANT_OF_MEMORY):
        return TrialFailed(f"out of memory: {text}", transient=True)
    return TrialFailed(f"{type(error).__name__}: {text}")


@dataclass
class Progress:
    """How far a trial has come: all that is needed to go on from here.

    Attributes:
        seconds: spent in training so far, over all the times that it was resumed.
        best_epoch: the epoch, counted from 1, that the measure which selects calls best; 0 for a baseline.
    """

    network: Network
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def build(architecture: str, hyperparameters: Axes, shape: WindowShape, seed: int) -> Network:
    """A network with its initial weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return combined.build(architecture, hyperparameters, shape)


def fit(
    architecture: str,
    hyperparameters: Axes,
    seed: int,
    settings: Train,
    shape: WindowShape,
    aim: Objective,
    data: dict[str, Data],
    device: torch.device,
    checkpoint: Path,
    after_epoch: Callable[[Progress], None],
    before_step: Callable[[], None] = lambda: None,
) -> Progress:
    """Train to the end, from `checkpoint` if it is there, and return the weights that are best on validation.

    The seed of PyTorch's generator and the number of its threads are the process's: one trial at a time in a process.

    Args:
        shape: of the windows, with the outputs that `aim` wants.
        checkpoint: written after every epoch; the caller removes it with the trial done.
        after_epoch: told after every epoch's checkpoint.
        before_step: called before every step; what it raises ends the training.

    Raises:
        TrialFailed: the loss is no number any more.
    """
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(device.type == "cpu")
    exact = settings.precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    # cuDNN's own switch: without it a recurrent layer's float32 is TF32.
    torch.backends.cudnn.allow_tf32 = not exact
    progress = _start(build(architecture, hyperparameters, shape, seed).to(device), hyperparameters, settings, device)
    if progress.optimizer is None:
        return progress
    assert isinstance(hyperparameters, TrainedAxes)
    _resume(progress, checkpoint, device)
    while not _done(progress, settings, epochs_of(hyperparameters, settings)):
        begun = time.perf_counter()
        _train_epoch(progress, hyperparameters, settings, aim, data, seed, device, before_step)
        progress.seconds += time.perf_counter() - begun
        _save(progress, checkpoint)
        after_epoch(progress)
    progress.network.load_state_dict(progress.best)
    return progress


def answers(network: Network, data: Data) -> Iterator[tuple[Tensor, Batch]]:
    """The answers (B, S, O) to every window, in order, and the batches that they are to; in eval mode."""
    network.eval()
    with torch.inference_mode():
        for batch in data.in_order(_at_once(network, data)):
            if batch.begins:
                network.forget()
            yield network(batch.x_BTF).float(), batch
    network.forget()


def _at_once(network: Network, data: Data) -> int:
    """How many windows are forecast at once: none has to be found out, as each is as long as the first."""
    _, steps, features = data.at(torch.arange(1)).x_BTF.shape
    widest = max([features, 32, *(layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear))])
    return max(1, min(EVALUATION_BATCH, EVALUATION_NUMBERS // (steps * widest)))


def forecast(network: Network, data: Data) -> Tensor:
    """Answers (N, S, O) to every window in order, normalised, on the CPU."""
    return torch.cat([y_BSO.cpu() for y_BSO, _ in answers(network, data)])


def scored(network: Network, data: Data, aim: Objective) -> Iterator[tuple[Scores, Tensor]]:
    """The scores (B, S) of the answers to every window, in order, and how much each counts (B, S)."""
    for y_BSO, batch in answers(network, data):
        scores = aim.scores(y_BSO, batch.y_BSK)
        weight_BS = batch.weight_BS
        yield scores, torch.ones_like(next(iter(scores.values()))) if weight_BS is None else weight_BS.double()


def means(network: Network, data: Data, aim: Objective) -> dict[str, float]:
    """The mean of each score over every answer."""
    sums: dict[str, Tensor] = {}
    weights = torch.zeros((), dtype=torch.float64, device=data.device)
    for scores, weight_BS in scored(network, data, aim):
        weights += weight_BS.sum()
        for name, score_BS in scores.items():
            sums[name] = sums.get(name, torch.zeros_like(weights)) + (score_BS * weight_BS).sum()
    return {name: float(each / weights) for name, each in sums.items()}


def _start(network: Network, axes: Axes, settings: Train, device: torch.device) -> Progress:
    optimizer = None
    if isinstance(axes, TrainedAxes):
        optimizer = OPTIMIZERS[axes.optimizer](network.parameters(), lr=axes.learning_rate)
    return Progress(network, optimizer, torch.amp.GradScaler(device.type, enabled=settings.precision == "float16"))


def epochs_of(hyperparameters: Axes, settings: Train) -> int:
    """How many epochs a trial is trained at most: 0 where there is nothing to train."""
    if not isinstance(hyperparameters, TrainedAxes):
        return 0
    return hyperparameters.epochs or settings.epochs


def _done(progress: Progress, settings: Train, epochs: int) -> bool:
    waited = len(progress.history) - progress.best_epoch
    return len(progress.history) >= epochs or (settings.patience is not None and waited >= settings.patience)


def _train_epoch(
    progress: Progress,
    axes: TrainedAxes,
    settings: Train,
    aim: Objective,
    data: dict[str, Data],
    seed: int,
    device: torch.device,
    before_step: Callable[[], None],
) -> None:
    """One epoch of training and one pass over the validation windows.

    Raises:
        TrialFailed: the loss has become infinite or no number.
    """
    network, optimizer, scaler = progress.network, progress.optimizer, progress.scaler
    assert optimizer is not None
    epoch = len(progress.history) + 1
    drawn = (seed << 20) + epoch
    torch.manual_seed(drawn)
    network.train()
    mixed = torch.autocast(device.type, PRECISIONS[settings.precision], enabled=settings.precision != "float32")
    # Added up on the device: reading a loss at each step would make the device wait for Python.
    total, steps = torch.zeros((), device=device), 0
    in_epoch = settings.steps_per_epoch or data["train"].steps(settings.batch_size)
    in_training = in_epoch * epochs_of(axes, settings)
    batches = data["train"].shuffled(
        settings.batch_size, settings.steps_per_epoch, torch.Generator().manual_seed(drawn)
    )
    for batch in batches:
        before_step()
        if batch.begins:
            network.forget()
        done = (in_epoch * (epoch - 1) + steps) / in_training
        for group in optimizer.param_groups:
            group["lr"] = axes.learning_rate * SCHEDULES[axes.schedule](done)
        with mixed:
            predicted = network(batch.x_BTF).float()
        # An ensemble has an answer of each member.
        members = predicted if predicted.dim() == 4 else predicted.unsqueeze(0)
        loss = torch.stack([aim.loss(y_BSO, batch.y_BSK, batch.weight_BS) for y_BSO in members]).mean()
        total += loss.detach()
        penalty = network.penalty()
        if penalty is not None:
            loss = loss + penalty
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(loss))
        if settings.clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        scaler.step(optimizer)
        scaler.update()
        steps += 1
    train_loss = float(total) / steps
    if not math.isfinite(train_loss):
        raise TrialFailed(f"diverged in epoch {epoch}: the training loss is {train_loss}")
    validation = aim.measured(means(network, data["validation"], aim))
    selects = validation[aim.measure.name]
    if not math.isfinite(selects):
        raise TrialFailed(f"diverged in epoch {epoch}: the validation {aim.measure.title} is {selects}")
    progress.history.append(Epoch(epoch, train_loss, {each.name: validation[each.name] for each in aim.measures}))
    if selects < min((each.validation[aim.measure.name] for each in progress.history[:-1]), default=math.inf):
        progress.best_epoch = epoch
        progress.best = {name: value.detach().clone() for name, value in network.state_dict().items()}


def _save(progress: Progress, checkpoint: Path) -> None:
    assert progress.optimizer is not None
    state = {
        "network": progress.network.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "scaler": progress.scaler.state_dict(),
        "history": [asdict(each) for each in progress.history],
        "best_epoch": progress.best_epoch,
        "best": progress.best,
        "seconds": progress.seconds,
    }
    # By way of memory: of a full disk PyTorch's own writer says no more than that it has failed.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replaced_file(checkpoint) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _resume(progress: Progress, checkpoint: Path, device: torch.device) -> None:
    """Go on from the checkpoint, if there is one."""
    if not checkpoint.exists():
        return
    assert progress.optimizer is not None
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    progress.network.load_state_dict(state["network"])
    progress.optimizer.load_state_dict(state["optimizer"])
    progress.scaler.load_state_dict(state["scaler"])
    progress.history = [Epoch(**each) for each in state["history"]]
    progress.best_epoch, progress.best, progress.seconds = state["best_epoch"], state["best"], state["seconds"]
