"""How far the training of a trial has come, and the file that it resumes from."""

import hashlib
import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from architectures import Network
from project.atomic import replace_file
from project.progress import print_warning
from stages.training.flat_weights import FlatWeights
from stages.training.history import Epoch

DIGEST_BYTES = 32
"""A checkpoint begins with the SHA-256 of the rest."""


@dataclass(kw_only=True)
class FitResult:
    """A network that is trained, or a baseline, which is not.

    Attributes:
        best_epoch: the epoch, counted from 1, with the lowest selection measure on validation; 0 for a baseline.
        seconds: the time spent in training, over all attempts.
    """

    network: Network
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class TrainingState(FitResult):
    """How far training has come: all that is needed to resume it.

    Attributes:
        flat: the weights as the optimizer sees them; None: it sees each by itself.
        best: the weights of the best epoch.
    """

    flat: FlatWeights | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    best: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(training: TrainingState, checkpoint: Path) -> None:
    """Write a state, in place of the former one."""
    state = {
        "network": training.network.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scaler": training.scaler.state_dict(),
        "history": [asdict(epoch) for epoch in training.history],
        "best_epoch": training.best_epoch,
        "best": training.best,
        "seconds": training.seconds,
    }
    # By way of memory: PyTorch's own writer does not say when a disk is full, only that writing has failed.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replace_file(checkpoint) as temporary:
        temporary.write_bytes(hashlib.sha256(buffer.getbuffer()).digest() + buffer.getbuffer())


def load_checkpoint(training: TrainingState, checkpoint: Path, device: torch.device) -> None:
    """Resume from a checkpoint if it exists and is as it was written; a damaged one is ignored, with a warning."""
    if not checkpoint.exists():
        return
    content = checkpoint.read_bytes()
    digest, saved = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(saved).digest() != digest:
        print_warning(f"{checkpoint} is damaged; the trial is trained from its first epoch")
        return
    state = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
    training.network.load_state_dict(state["network"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    training.history = [Epoch(**epoch) for epoch in state["history"]]
    training.best_epoch, training.best, training.seconds = state["best_epoch"], state["best"], state["seconds"]
