"""What becomes of versions that were trained on rows which a person has taken back."""

from dataclasses import dataclass

from lifecycle.champions.history import Version, champion_stack, find_champion, read_history, roll_back
from lifecycle.champions.lineage import find_versions_using, list_known_versions


@dataclass(frozen=True)
class Withdrawal:
    """What became of a problem's versions.

    Attributes:
        trained: the versions that were trained on the rows.
        unknown: the champion, if it is not known in this checkout what it was made of.
        before: the champion before.
        after: the champion now. If it is among `trained`, no former champion was trained without the rows.
    """

    trained: tuple[int, ...]
    unknown: int | None
    before: Version | None
    after: Version | None

    def describe(self, problem: str) -> list[str]:
        """Write it for people, with what to do next, line by line."""
        retrain = f"`recast retrain {problem}` trains without them"
        if self.unknown is not None:
            return [
                f"{problem}: this checkout does not know whether version {self.unknown}, the champion, was trained on "
                f"these rows; {retrain}"
            ]
        if not self.trained:
            return [f"{problem}: no known version was trained on these rows"]
        lines = [f"{problem}: trained on these rows: version {', '.join(map(str, self.trained))}"]
        if self.before and self.after and self.before != self.after:
            lines.append(
                f"{problem}: version {self.before.version}, the champion, was among them; version "
                f"{self.after.version}, {self.after.label}, which was not, is the champion again; {retrain}"
            )
        elif self.after and self.after.version in self.trained:
            lines.append(
                f"{problem}: version {self.after.version} stays the champion although it was among them, as no former "
                f"champion was trained without these rows; {retrain}"
            )
        else:
            lines.append(f"{problem}: the champion was not among them")
        return lines


def withdraw_versions(problem: str, sha256: str, by: str, reason: str) -> Withdrawal:
    """Make the newest former champion that never saw a raw file the champion again, if the champion has seen it.

    If there is none, the champion stays. It may be called again.

    Args:
        sha256: the checksum of the raw file.
        by: the person who has taken it back.
        reason: a sentence for the history.
    """
    trained = {lineage.version for lineage, _ in find_versions_using(sha256) if lineage.problem == problem}
    known = set(list_known_versions(problem))
    clean = known - trained
    before = find_champion(problem)
    if before and before.version in trained:
        former = [entry.version for entry in champion_stack(read_history(problem))]
        # Counted beforehand: each step back is written, and none of them may be the wrong one.
        steps = next((i for i, version in enumerate(reversed(former)) if version in clean), 0)
        for _ in range(steps):
            roll_back(problem, by, reason)
    unknown = before.version if before and before.version not in known else None
    return Withdrawal(tuple(sorted(trained)), unknown, before, find_champion(problem))
