"""Stage window for whole sequences: each split's sequences, cut into the pieces that a network reads."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from architectures.shape import WindowShape
from learning.answers import ANSWER_KINDS
from problems.errors import RecastError
from problems.problem import SequenceProblem
from problems.split import SPLITS
from project.atomic import replace_folder, write_json
from stages.sequences.reading import WINDOWS_FILE, EncodedSequences, SequenceWindows, read_bounds


def cut_sequences(problem: SequenceProblem, encoded: Path, out: Path) -> SequenceWindows:
    """Write the pieces of each split, and a description of them, into the folder `out`.

    Args:
        out: a folder whose last part is the problem's name, which messages mention.

    Raises:
        RecastError: a split has too few steps for a piece.
    """
    sequence_format, rule = problem.source.format, problem.window
    about, bounds_Q3 = EncodedSequences.read(encoded), read_bounds(encoded)
    sizes_Q = bounds_Q3[:, 1] - bounds_Q3[:, 0]
    length = rule.length or int(sizes_Q[bounds_Q3[:, 2] == 0].max())
    pieces: dict[str, NDArray[np.int64]] = {}
    left_out = {}
    for i, split in enumerate(SPLITS):
        in_split = np.flatnonzero(bounds_Q3[:, 2] == i)
        split_pieces = [
            piece
            for sequence in in_split.tolist()
            for piece in _cut_sequence(
                problem, int(bounds_Q3[sequence, 0]), int(bounds_Q3[sequence, 1]), length, sequence
            )
        ]
        if not split_pieces:
            raise RecastError(f"{split}: no step has an answer; let problems.{out.name}.split give it more sequences")
        pieces[split] = np.array(split_pieces, dtype=np.int64)
        steps_read = (pieces[split][:, 2] - pieces[split][:, 0]).sum()
        left_out[split] = 0 if sequence_format.per_step else int(sizes_Q[in_split].sum() - steps_read)
    longest = max(int((pieces_K4[:, 2] - pieces_K4[:, 0]).max()) for pieces_K4 in pieces.values())
    token: Literal["characters", "words"] | None = None
    if sequence_format.is_shifted and problem.table.tokens is not None:
        token = "characters" if problem.table.tokens == "characters" else "words"
    windows = SequenceWindows(
        length=rule.length,
        context=rule.context,
        scored=rule.scored,
        carry=rule.carry,
        windows={split: len(pieces_K4) for split, pieces_K4 in pieces.items()},
        left_out=left_out,
        table=about.sha256,
        objective=sequence_format.objective,
        token=token,
        shape=WindowShape(
            steps=longest if sequence_format.per_step else length,
            features=about.features,
            target=None,
            horizon=1,
            day=0,
            codes=about.codes,
            each=sequence_format.per_step,
            outputs=ANSWER_KINDS[sequence_format.objective].count_outputs(about.answers),
            carried=rule.carry,
        ),
    )
    with replace_folder(out) as folder:
        for split, pieces_K4 in pieces.items():
            np.save(folder / f"{split}.npy", pieces_K4, allow_pickle=False)
        write_json(folder / WINDOWS_FILE, asdict(windows))
    return windows


def _cut_sequence(
    problem: SequenceProblem, begin: int, end: int, length: int, sequence: int
) -> Iterator[tuple[int, ...]]:
    """The pieces of one sequence; none where no step has an answer."""
    sequence_format, rule = problem.source.format, problem.window
    if not sequence_format.per_step:
        yield max(begin, end - length), end - 1, end, sequence
        return
    # The last step of a shifted sequence has no next step.
    end = end - 1 if sequence_format.is_shifted else end
    first_scored = begin if rule.scored is None else max(begin, end - rule.scored)
    if rule.length is None:
        if first_scored < end:
            yield begin, first_scored, end, sequence
        return
    for piece_begin in range(begin, end, length):
        piece_end = min(piece_begin + length, end)
        if piece_end > first_scored:
            yield max(begin, piece_begin - rule.context), max(piece_begin, first_scored), piece_end, sequence
