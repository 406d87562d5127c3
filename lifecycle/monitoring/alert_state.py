"""Which broken rules were already announced, so that each one is announced once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lifecycle.monitoring.history import monitor_folder
from lifecycle.monitoring.rules import BrokenRule
from project.atomic import write_json
from project.records import read_record


@dataclass(frozen=True)
class AlertState:
    """The broken rules of a version that were announced. A rule that is no longer broken is taken out again."""

    version: int
    rules: list[str]


def _alert_state_file(problem: str) -> Path:
    return monitor_folder(problem) / "told.json"


def rules_to_announce(problem: str, version: int, broken: Sequence[BrokenRule]) -> list[BrokenRule]:
    """Those of the broken rules that were not announced yet.

    Raises:
        RecastError: the file that says what was announced cannot be read.
    """
    file = _alert_state_file(problem)
    if not file.exists():
        return list(broken)
    state = read_record(file, AlertState, "delete it; the rules that are broken now will be announced again")
    return [rule for rule in broken if state.version != version or rule.rule not in state.rules]


def record_announced(problem: str, version: int, broken: Sequence[BrokenRule]) -> None:
    """Record that these rules were announced."""
    state = AlertState(version, sorted({rule.rule for rule in broken}))
    write_json(_alert_state_file(problem), asdict(state))
