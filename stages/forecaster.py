"""The model that MLflow serves: windows in the columns' own units in, forecasts in the target's unit out.

Of a problem of whole sequences, numbers or codes come in, and probabilities of classes or labels go out.

MLflow stores this file as the model ("models from code"), beside the package `architectures`, the weights and
`model.json`; nothing is pickled. It imports nothing else of Recast.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors.torch import load_file
from torch import Tensor

from architectures import REGISTRY, WindowShape
from architectures.combined import build


class Forecaster(PythonModel):  # type: ignore[misc]
    """A trained network between its scaling in and its scaling out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `model.json` and the weights, where it has any."""
        about: dict[str, Any] = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        hyperparameters = REGISTRY[about["architecture"]].Hyperparameters.model_validate(about["hyperparameters"])
        self.network = build(about["architecture"], hyperparameters, WindowShape(**about["shape"]))
        if "weights" in context.artifacts:
            self.network.load_state_dict(load_file(context.artifacts["weights"]))
        self.network.eval()
        self.about = about

    # MLflow would take a signature from type hints here, and warns of their lack; ours is given with the model.
    _skip_type_hint_validation = True

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers (B, S, O) to windows (B, T, F), without the dimensions that are one: forecasts in the target's unit.

        S are leads, or where each step is answered, steps; O are quantiles, classes or labels.
        """
        about = self.about
        if about["shape"]["codes"] is None:
            x_BTF = torch.from_numpy(((model_input - np.array(about["center"])) / about["scale"]).astype(np.float32))
        else:
            x_BTF = torch.from_numpy(model_input.astype(np.int64))
        self.network.forget()
        with torch.inference_mode():
            y_BSO = ANSWERS[about["objective"]](self.network(x_BTF).double()).numpy()
        target = about["shape"]["target"]
        if target is not None:
            y_BSO = y_BSO * about["scale"][target] + about["center"][target]
        if about["shape"]["outputs"] == 1:
            y_BSO = y_BSO[:, :, 0]
        return y_BSO if about["shape"]["each"] or about["shape"]["leads"] > 1 else y_BSO[:, 0]


ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {
    # Quantiles that cross are sorted; of one number there is nothing to sort.
    "value": lambda y_BSO: y_BSO.sort(dim=2)[0],
    "binary": torch.sigmoid,
    "labels": torch.sigmoid,
    "classes": lambda y_BSO: y_BSO.softmax(dim=2),
}
"""What a network's outputs say."""


mlflow.models.set_model(Forecaster())
