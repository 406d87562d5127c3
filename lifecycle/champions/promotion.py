"""Changes of the champion: written to the history first, then set as aliases in MLflow.

MLflow's aliases `champion`, `previous` and `challenger` of a registered model follow from the history, a list of what
happened in `data/champion/<problem>/history.json`. The file is the truth: it is replaced as a whole before any alias is
set, and `reconcile` sets the aliases to what it says. After a kill between the two, or at any other moment, the next
call makes them agree.
"""

from collections.abc import Sequence
from typing import Literal

from mlflow.exceptions import MlflowException

from lifecycle.champions.history import (
    RETRAIN,
    Entry,
    Version,
    append_entry,
    champion_folder,
    champion_stack,
    find_challenger_in,
    find_champion_in,
    find_outcome_in,
    history_file,
    lock_history,
    make_entry,
    read_history,
)
from lifecycle.champions.registry import list_versions
from problems.errors import RecastError
from stages.tracking import store

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


TAKEN_OVER = "MLflow"
"""The author of an entry that stands for something that another checkout has done."""


def propose_challenger(version: Version) -> None:
    """Note in the history that a version is to be compared with the champion, and set its alias.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def next_entry(entries: list[Entry]) -> Entry | None:
        if find_challenger_in(problem, entries) == version:
            return None
        return make_entry("challenge", version, entries, None, "", RETRAIN, None)

    append_entry(problem, next_entry)
    reconcile(problem)


def promote(
    problem: str,
    version: Version,
    decision: str | None,
    reason: str = "",
    by: str = RETRAIN,
    experiment: str | None = None,
    expected: Version | Literal["any"] | None = "any",
) -> bool:
    """Make a version the champion. If it is the champion already, only the aliases are checked.

    Args:
        decision: id of the comparison that it rests on; None: a person has decided.
        expected: the champion that it replaces; None: there must not be one; any: whatever it is.

    Returns:
        Whether the champion was the expected one; otherwise it stays.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    is_expected = True

    def next_entry(entries: list[Entry]) -> Entry | None:
        nonlocal is_expected
        champion = find_champion_in(problem, entries)
        is_expected = expected in ("any", champion)
        if champion == version or not is_expected:
            return None
        return make_entry("promotion", version, entries, decision, reason, by, experiment)

    append_entry(problem, next_entry)
    reconcile(problem)
    return is_expected


def refuse(
    version: Version, decision: str | None, reason: str, by: str = RETRAIN, experiment: str | None = None
) -> None:
    """Note that a challenger is not promoted; once for each decision.

    Raises:
        TrackingError: MLflow has failed; the history has it all the same.
    """
    problem = version.problem

    def next_entry(entries: list[Entry]) -> Entry | None:
        if find_outcome_in(entries, decision):
            return None
        return make_entry("refusal", version, entries, decision, reason, by, experiment)

    append_entry(problem, next_entry)
    reconcile(problem)


def reconcile(problem: str) -> None:
    """Set MLflow's aliases to what the history says.

    Where there is no history yet, it begins with the champion that MLflow has, if there is one: another checkout that
    writes to the same store has made it. Until something happens in this checkout, MLflow's aliases stay as they are.

    Raises:
        RecastError: MLflow does not have a version that the history names.
        TrackingError: MLflow has failed.
    """
    with store.translate_errors():
        if not history_file(problem).exists():
            _take_over(problem)
        # The aliases follow from one reading of the history, which nobody writes meanwhile.
        with lock_history(problem):
            entries = read_history(problem)
            if any(entry.by != TAKEN_OVER for entry in entries):
                _set_aliases(problem, entries)


def _take_over(problem: str) -> None:
    """Begin a history with the champion that MLflow has, if there is one."""
    version = list_versions(problem).get(_read_aliases(problem).get(CHAMPION, 0))
    if version:
        append_entry(
            problem,
            lambda entries: (
                None
                if entries
                else make_entry("promotion", version, entries, None, "taken over from MLflow's alias", TAKEN_OVER, None)
            ),
        )


def _read_aliases(problem: str) -> dict[str, int]:
    """The aliases that MLflow has, with their versions; empty where it does not have the registered model."""
    try:
        aliases = store.get_client().get_registered_model(problem).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(version) for alias, version in aliases.items()}


def _set_aliases(problem: str, entries: Sequence[Entry]) -> None:
    """Set the aliases that differ from the history.

    Raises:
        RecastError: MLflow does not have a version.
    """
    aliases = _read_aliases(problem)
    stack = champion_stack(entries)
    challenger = find_challenger_in(problem, entries)
    expected = {
        CHAMPION: stack[-1].version if stack else None,
        PREVIOUS: stack[-2].version if len(stack) > 1 else None,
        CHALLENGER: challenger.version if challenger else None,
    }
    for alias, version in expected.items():
        if version is None and alias in aliases:
            store.get_client().delete_registered_model_alias(problem, alias)
        elif version is not None and aliases.get(alias) != version:
            try:
                store.get_client().set_registered_model_alias(problem, alias, str(version))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise _missing_versions_error(problem) from error
                raise


def _missing_versions_error(problem: str) -> RecastError:
    return RecastError(
        f"{history_file(problem)} names versions that MLflow at {store.tracking_uri()} does not have. Set "
        "MLFLOW_TRACKING_URI to the store that has them, or move "
        f"{champion_folder(problem)} aside to begin a new history"
    )
