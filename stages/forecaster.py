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
from numpy.typing import NDArray
from safetensors.torch import load_file

from architectures import REGISTRY, WindowShape


class Forecaster(PythonModel):  # type: ignore[misc]
    """A trained network between its scaling in and its scaling out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `model.json` and the weights, where it has any."""
        about: dict[str, Any] = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        architecture = REGISTRY[about["architecture"]]
        self.network = architecture(
            WindowShape(**about["shape"]), architecture.Hyperparameters.model_validate(about["hyperparameters"])
        )
        if "weights" in context.artifacts:
            self.network.load_state_dict(load_file(context.artifacts["weights"]))
        self.network.eval()
        self.center_F = np.array(about["center"])
        self.scale_F = np.array(about["scale"])
        self.target = about["shape"]["target"]

    def predict(
        self, context: PythonModelContext, model_input: NDArray[np.float32], params: dict[str, Any] | None = None
    ) -> NDArray[np.float64]:
        """Forecasts (B,) in the target's unit, from windows (B, T, F) in the columns' own units."""
        x_BTF = torch.from_numpy(((model_input - self.center_F) / self.scale_F).astype(np.float32))
        with torch.inference_mode():
            y_B = self.network(x_BTF).double().numpy()
        forecasts: NDArray[np.float64] = y_B * self.scale_F[self.target] + self.center_F[self.target]
        return forecasts


mlflow.models.set_model(Forecaster())
