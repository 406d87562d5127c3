"""The model that MLflow serves: MLflow stores this file ("models from code") and the files of a forecaster beside it.

MLflow runs this file where the model is loaded. The model of a table takes rows with `time`, `series` and the declared
columns in their own units, and gives a row for each forecast. The model of a problem of whole sequences takes numbers
or codes, and gives probabilities of classes or labels.
"""

from pathlib import Path

import mlflow
import polars as pl
from mlflow.pyfunc import PythonModel, PythonModelContext

from forecasting.forecaster import Forecaster


class ServedForecaster(PythonModel):  # type: ignore[misc]
    """A forecaster with the methods that MLflow calls."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the forecaster, which checks itself against its stored example."""
        self.forecaster = Forecaster.load(Path(context.artifacts["model"]).parent)

    # MLflow would derive a signature from type hints and warns that there are none; the model has its own signature.
    _skip_type_hint_validation = True

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answers (B, ...) to windows (B, T, F); or, from a pandas table of rows, one with a row for each forecast.

        With the parameter `all_windows` it forecasts from every complete window; without it, from the window that ends
        with the last row of each series.
        """
        if self.forecaster.about.preparation is None:
            return self.forecaster.answer(model_input)
        rows = pl.from_pandas(model_input)
        forecasts = self.forecaster.forecast(rows, all_windows=bool((params or {}).get("all_windows", False)))
        return forecasts.drop("inputs").to_pandas()


mlflow.models.set_model(ServedForecaster())
