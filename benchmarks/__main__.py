"""The command of the benchmarks: python -m benchmarks [NAME ...] [--quick] [--write], or --page."""

import argparse
import ast
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import describe_machine
from project.atomic import write_json

SPEED = (
    "ingest",
    "normalize",
    "batches",
    "steps",
    "cells",
    "overhead",
    "evaluation",
    "loop",
    "memory",
    "serve",
    "costs",
    "schedule",
    "runners",
    "tracking_load",
)
ACCURACY = ("lecture", "best", "sequences", "contract")
"""They read what a pipeline produced that ran for hours, so they run only when they are named."""
GPU = ("gpu",)
"""They need a GPU, so they run only when they are named."""
NAMES = (*ACCURACY, *SPEED, *GPU)
"""All benchmarks, in the order of the page."""

FOLDER = Path(__file__).parent.absolute()
RESULTS = FOLDER / "results"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Run benchmarks and print their results."""
    names = ", ".join(NAMES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{names}; without a name, all except {', '.join(ACCURACY + GPU)}"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, for a trial run")
    parser.add_argument(
        "--write", action="store_true", help="store the results in benchmarks/results and rewrite docs/benchmarks.md"
    )
    parser.add_argument(
        "--page", action="store_true", help="only rewrite docs/benchmarks.md from the stored results; measure nothing"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {names}")
    if not arguments.page:
        for name in arguments.names or SPEED:
            _run_benchmark(name, arguments.quick, arguments.write)
    if arguments.page or arguments.write:
        _update_descriptions()
        PAGE.write_text(render_page(), encoding="utf-8")


def _run_benchmark(name: str, quick: bool, write: bool) -> None:
    """Run a benchmark, print its result, and store it if `write` says so."""
    result = {
        "what": _describe(name),
        "command": f"python -m benchmarks {name}" + (" --quick" if quick else ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        **importlib.import_module(f"benchmarks.{name}").run(quick),
    }
    print(json.dumps(result, indent=1, ensure_ascii=False), flush=True)
    if write:
        write_json(RESULTS / f"{name}.json", result)


def _describe(name: str) -> str:
    """The docstring of a benchmark's module, which is not imported: some need a GPU or take seconds to load."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def _read_results() -> Iterator[tuple[str, dict[str, Any]]]:
    """The stored results, by the name of the benchmark, in the order of the page."""
    for name in NAMES:
        file = RESULTS / f"{name}.json"
        if file.exists():
            yield name, json.loads(file.read_text(encoding="utf-8"))


def _update_descriptions() -> None:
    """Copy today's docstrings into the stored results."""
    for name, result in _read_results():
        if result["what"] != _describe(name):
            write_json(RESULTS / f"{name}.json", result | {"what": _describe(name)})


def render_page() -> str:
    """The stored results as a page."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks --write` (`make bench` runs the benchmarks without storing the results).",
        "Where speed is measured, the contenders take turns within one run. A ratio is the median over the rounds;",
        "above 1, Recast is better.",
    ]
    for name, result in _read_results():
        lines += ["", f"## {name}", "", result.pop("what"), "", *_render_section(result)]
    return "\n".join(lines) + "\n"


def _render_section(result: dict[str, Any]) -> list[str]:
    machine = ", ".join(f"{key} {value}" for key, value in result.pop("machine").items())
    lines = [f"`{result.pop('command')}`, {result.pop('date')}, on: {machine}."]
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += ["", *([f"**{key}**", ""] if key != "results" else [])]
            lines += ["| | median | low | high | unit | ratio |", "|---|---:|---:|---:|---|---:|"]
            lines += [
                f"| {r['name']} | {r['median']:,} | {r['low']:,} | {r['high']:,} | {r['unit']} | {r['ratio']:.2f} |"
                for r in value
            ]
        elif isinstance(value, dict):
            columns = list(next(iter(value.values())))
            lines += ["", *([f"**{key}**", ""] if key != "results" else [])]
            lines += [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
            lines += [f"| {row} | {' | '.join(str(cells[c]) for c in columns)} |" for row, cells in value.items()]
        else:
            lines += ["", f"{key}: {value}"]
    return lines


if __name__ == "__main__":
    main()
