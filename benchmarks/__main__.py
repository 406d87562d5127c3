"""python -m benchmarks [NAME ...] [--quick] [--write]"""

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from project.atomic import write_json

NAMES = (
    "ingest",
    "batches",
    "steps",
    "cells",
    "overhead",
    "memory",
    "serve",
    "costs",
    "schedule",
    "runners",
    "tracking_load",
)
READ = ("lecture", "best", "sequences", "contract")
"""Accuracy, read from what a pipeline has left that has run for hours: only where it is asked for by name."""
GPU = ("gpu",)
"""Of a GPU: likewise."""
HERE = Path(__file__).parent.absolute()
RESULTS = HERE / "results"


def main() -> None:
    """Run benchmarks, print what they found, and with --write keep it in benchmarks/results and docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES + READ + GPU)}; none: all but the last five"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to try it")
    parser.add_argument("--write", action="store_true", help="keep the results")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES + READ + GPU):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES + READ + GPU)}")
    for name in chosen.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        about = {
            "what": (module.__doc__ or "").strip(),
            "command": f"python -m benchmarks {name}" + (" --quick" if chosen.quick else ""),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            **module.run(chosen.quick),
        }
        print(json.dumps(about, indent=1, ensure_ascii=False), flush=True)
        if chosen.write:
            write_json(RESULTS / f"{name}.json", about)
    if chosen.write:
        (HERE.parent / "docs" / "benchmarks.md").write_text(_page(), encoding="utf-8")


def _page() -> str:
    """The kept results as a page."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks --write` (`make bench` runs them without keeping the results). Where speed is",
        "measured, contenders are asked in turn in one run; a ratio is the median over the rounds, and above 1 Recast",
        "is better.",
    ]
    for name in READ + NAMES + GPU:
        file = RESULTS / f"{name}.json"
        if file.exists():
            about = json.loads(file.read_text(encoding="utf-8"))
            lines += ["", f"## {name}", "", about.pop("what"), "", *_section(about)]
    return "\n".join(lines) + "\n"


def _section(about: dict[str, Any]) -> list[str]:
    on = ", ".join(f"{key} {value}" for key, value in about.pop("machine").items())
    lines = [f"`{about.pop('command')}`, {about.pop('date')}, on: {on}."]
    for key, value in about.items():
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
