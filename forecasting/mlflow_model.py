"""The model that MLflow serves: it stores this file ("models from code"), beside what a forecaster is loaded from.

MLflow runs it where the model is loaded. A table comes in as rows with `time`, `series` and the declared columns in
their own units, and a row a forecast goes out; of a problem of whole sequences, numbers or codes come in, and
probabilities of classes or labels go out.
"""

from pathlib import Path

import mlflow
import polars as pl
from mlflow.pyfunc import PythonModel, PythonModelContext

from forecasting.forecaster import Forecaster


class Served(PythonModel):  # type: ignore[misc]
    """A forecaster as MLflow calls a model."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the forecaster, which tries its stored example."""
        self.forecaster = Forecaster.load(Path(context.artifacts["model"]).parent)

    # MLflow would take a signature from type hints here, and warns of their lack; ours is given with the model.
    _skip_type_hint_validation = True

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers (B, ...) to windows (B, T, F); or a pandas table with a row a forecast, from one with rows.

        With the parameter `all_windows` from every complete window; else from the one that ends with each series' rows.
        """
        if self.forecaster.about.preparation is None:
            return self.forecaster.answer(model_input)
        rows = pl.from_pandas(model_input)
        forecasts = self.forecaster.forecast(rows, all_windows=bool((params or {}).get("all_windows", False)))
        return forecasts.drop("inputs").to_pandas()


mlflow.models.set_model(Served())
