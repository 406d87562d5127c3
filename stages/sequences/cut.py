"""TODO: what stages.sequences.cut is for."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.split import SPLITS
from project.atomic import replaced_folder, write_json
from stages.sequences.reading import WINDOWS, Encoded, Piecing, bounds_of


def cut(problem: SequenceProblem, encoded: Path, out: Path) -> Piecing:
    """Write the pieces of each split, and what a piece is, into the folder `out`.

    Args:
        out: its last part is the problem's name, which messages say.

    Raises:
        RecastError: a split has too few steps for a piece.
    """
    asked, rule, about, bounds = problem.source.asked, problem.window, Encoded.read(encoded), bounds_of(encoded)
    sizes = bounds[:, 1] - bounds[:, 0]
    length = rule.length or int(sizes[bounds[:, 2] == 0].max())
    pieces: dict[str, NDArray[np.int64]] = {}
    left_out = {}
    for i, split in enumerate(SPLITS):
        chosen = np.flatnonzero(bounds[:, 2] == i)
        found = [
            piece
            for sequence in chosen.tolist()
            for piece in _pieces(problem, int(bounds[sequence, 0]), int(bounds[sequence, 1]), length, sequence)
        ]
        if not found:
            raise RecastError(f"{split}: no step has an answer; give problems.{out.name}.split more sequences for it")
        pieces[split] = np.array(found, dtype=np.int64)
        read = (pieces[split][:, 2] - pieces[split][:, 0]).sum()
        left_out[split] = 0 if asked.each else int(sizes[chosen].sum() - read)
    tokens = problem.table.tokens
    longest = max(int((each[:, 2] - each[:, 0]).max()) for each in pieces.values())
    windowing = Piecing(
        length=rule.length,
        context=rule.context,
        scored=rule.scored,
        carry=rule.carry,
        windows={split: len(each) for split, each in pieces.items()},
        left_out=left_out,
        table=about.sha256,
        objective=asked.objective,
        token=None if not asked.shifted or tokens is None else "characters" if tokens == "characters" else "words",
        shape=WindowShape(
            steps=longest if asked.each else length,
            features=about.features,
            target=None,
            horizon=1,
            day=0,
            codes=about.codes,
            each=asked.each,
            outputs=about.answers if asked.objective in ("classes", "labels") else 1,
            carried=rule.carry,
        ),
    )
    with replaced_folder(out) as folder:
        for split, each in pieces.items():
            np.save(folder / f"{split}.npy", each, allow_pickle=False)
        write_json(folder / WINDOWS, asdict(windowing))
    return windowing


def _pieces(problem: SequenceProblem, begin: int, end: int, length: int, sequence: int) -> Iterator[tuple[int, ...]]:
    """The pieces of one sequence of so many steps; none where no step has an answer."""
    asked, rule = problem.source.asked, problem.window
    if not asked.each:
        yield max(begin, end - length), end - 1, end, sequence
        return
    # The last step of a shifted sequence has no next one.
    last = end - 1 if asked.shifted else end
    from_here = begin if rule.scored is None else max(begin, last - rule.scored)
    if rule.length is None:
        if from_here < last:
            yield begin, from_here, last, sequence
        return
    for first in range(begin, last, length):
        until = min(first + length, last)
        if until > from_here:
            yield max(begin, first - rule.context), max(first, from_here), until, sequence
