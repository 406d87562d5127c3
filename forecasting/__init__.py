"""From a user's rows to forecasts: exactly the code that is stored with a model and serves with it.

It imports only `architectures`, `learning` and `problems`. `forecaster` has the trained network, `windows` makes what
the network reads from rows, `preparation` scales the columns, `about` describes a forecaster, and `mlflow_model` is the
file that MLflow runs.
"""
