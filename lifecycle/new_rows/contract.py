"""The data contract: the rules that new rows must keep before anything is trained on them.

The defaults of the rules follow from the known rows: all that were ingested before. What these never did, or what they
do not do in the season of the new rows, is a breach. `python -m benchmarks contract` measures the defaults.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl

from lifecycle.new_rows.change_rules import check_changes
from lifecycle.new_rows.increment_table import find_growing_problem, read_increment_table
from lifecycle.new_rows.known_table import KnownTable, join_marked, open_known_table, time_range
from lifecycle.new_rows.quarantine import Arrival, Breach, read_accepted_times
from lifecycle.new_rows.time_rules import check_cadence, check_daily_cycle, check_gaps, check_overlap, check_series
from lifecycle.new_rows.value_rules import check_drift, check_missing, check_ranges, check_stuck
from problems.errors import RecastError
from problems.problem import Problem
from project import paths
from project.settings.sections import Settings
from stages.tables.tabulation import thin_table

NEAR = timedelta(days=40)
"""Known rows so close to the new ones are examined together with them."""


def check_contract(problem: str, settings: Settings, arrival: Arrival) -> list[Breach]:
    """Find the rules of the problem's contract that new rows break, compared with the known rows.

    Raises:
        RecastError: the known rows cannot be read.
    """
    declared, growth = find_growing_problem(problem, settings)
    try:
        new = read_increment_table(growth.source, arrival.pending, declared)
    except RecastError as error:
        return [Breach("types", None, str(error), {"file": arrival.pending.name})]
    store, ingested = paths.raw_folder(problem), paths.stage_folder("ingest", problem)
    with open_known_table(declared, store, ingested) as known:
        return find_breaches(declared, new, known, read_accepted_times(problem))


def find_breaches(
    problem: Problem, new: pl.DataFrame, known: KnownTable, accepted: Sequence[datetime] = ()
) -> list[Breach]:
    """Find the rules that new rows break.

    Args:
        new: the table that `ingest` would make of the new rows, before it is thinned.
        accepted: the first times of increments that broke the contract and that a person accepted.
    """
    features, contract = list(problem.table.features), problem.contract
    first, last = time_range(new["time"])
    names = ["time", "series", *features]
    around = known.table.filter(pl.col("time").is_between(first - NEAR, last + NEAR))
    # A gap may be longer than `NEAR`: the last row before it is examined too.
    before = known.table.filter(pl.col("time") < first - NEAR).group_by("series", maintain_order=True).tail(1)
    joined = join_marked(pl.concat([before.select(names), around.select(names)]), new.select(names))
    if problem.table.thin:
        joined = thin_table(joined, known.cadence)
    near = joined.collect()
    cadence = list(check_cadence(problem, near, known))
    breaches = [
        *check_series(contract, new, known),
        *check_ranges(contract, features, new, known),
        *check_stuck(contract, features, near, known),
        *cadence,
        *check_gaps(contract, near, known),
        *check_missing(contract, features, near, known),
    ]
    if contract.clock:
        breaches += [*check_overlap(features, new, known), *check_daily_cycle(features, near, known)]
    if contract.drift is not None:
        breaches += check_drift(contract.drift, features, near, known)
    # From row to row, rows of another cadence always change in another way.
    if contract.change is not None and not cadence:
        rows = join_marked(known.table.select(names), new.select(names))
        if problem.table.thin:
            rows = thin_table(rows, known.cadence)
        breaches += check_changes(contract.change, features, rows, known, accepted)
    return breaches
