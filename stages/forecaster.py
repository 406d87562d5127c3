"""The model that MLflow serves: windows in the columns' own units in, forecasts in the target's unit out.

MLflow stores this file as the model ("models from code"), beside the package `architectures`, the weights and
`model.json`; nothing is pickled. It imports nothing else of Recast.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from safetensors.torch import load_file

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
        self.center_F = np.array(about["center"])
        self.scale_F = np.array(about["scale"])
        self.target = about["shape"]["target"]

    # MLflow would take a signature from type hints here, and warns of their lack; ours is given with the model.
    _skip_type_hint_validation = True

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Forecasts (B,) in the target's unit, from windows (B, T, F) in the columns' own units."""
        x_BTF = torch.from_numpy(((model_input - self.center_F) / self.scale_F).astype(np.float32))
        with torch.inference_mode():
            y_B = self.network(x_BTF).double().numpy()
        return y_B * self.scale_F[self.target] + self.center_F[self.target]


mlflow.models.set_model(Forecaster())
