"""The steps of the retrain flow, `flows/retrain.py`."""
