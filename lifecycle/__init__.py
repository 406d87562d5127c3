"""What becomes of a problem after its first leaderboard: new rows, backtests, champions, serving, monitoring."""

import stages.tracking  # noqa: F401 - sets the environment variables that MLflow reads when it is imported
