"""What a leaderboard warns of: settings that make its results worse than they need to be."""

from pathlib import Path

from problems.problem import Problem
from stages.evaluation.number_format import choose_decimals, format_quantity
from stages.tables.seasons import YEAR, measure_seasons, measure_training_time


def list_warnings(name: str, problem: Problem, normalized: Path, windowed: Path) -> list[str]:
    """The warnings about a problem.

    Args:
        normalized, windowed: the folders of the stages `normalize` and `window`.
    """
    table = problem.table
    yearly = {key: value for key in ("calendar", "climatology") if (value := getattr(table, key)) and value.year}
    if not yearly:
        return []
    reasons = []
    trained = measure_training_time(normalized)
    if trained < YEAR:
        reasons.append(f"The training rows cover {trained.days} days, less than a year.")
    errors = measure_seasons(yearly.get("climatology") or yearly["calendar"], normalized, windowed)
    if errors is not None and errors.is_misleading:
        digits = choose_decimals(errors.persistence, 3)
        training, climatology, persistence = (
            format_quantity(error, digits, problem.unit)
            for error in (errors.training, errors.climatology, errors.persistence)
        )
        reasons.append(
            f"On the validation rows, the climatology is far worse than persistence: its MAE is {climatology}, that of "
            f"persistence {persistence}. On the training rows it is {training}."
        )
    if not reasons:
        return []
    settings = " and ".join(f"{key}.year" for key in yearly)
    advice = (
        "The yearly cycle among the inputs of the networks misleads them where the training rows do not teach it. Set "
        f"{settings} in problems.{name}.table to 0, or train on more years (problems.{name}.split)."
    )
    return [" ".join([*reasons, advice])]
