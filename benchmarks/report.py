"""What is written of the measurements: tables, and the README's section, whose every word follows from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import OURS, PLAIN, Rows, ratios
from transmask import list_solvers
from transmask.solvers._table import TABLE

__all__ = ["readme_section", "table"]

COMMAND = "python -m benchmarks.solvers --json docs/benchmark.json --readme"


def table(rows: Rows) -> str:
    """Return rows as a Markdown table, their keys as the head."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    return "\n".join(lines + [f"| {' | '.join(_cell(key, row.get(key)) for key in keys)} |" for row in rows])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "loss":
        return f"{value:.2%}" if value > 1e-9 else "0"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return str(value)


def readme_section(report: dict[str, Any]) -> str:
    """Return what the README says of the measurements."""
    described = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    foreign = {info.name for info in list_solvers()} - set(TABLE)
    rows = [row for row in report["solvers"] if row["contender"] not in foreign]
    shape = " x ".join(map(str, report["shape"]))
    parts = [
        f"Best of {report['rounds']} interleaved rounds on a {shape} Gaussian matrix, float32 unless the row says "
        f"otherwise ({described}). *numpy argpartition* makes the plain, one-sided N:M mask of ready magnitudes: where "
        "it is divided by ours, above 1 is faster than numpy.",
        table(ratios(rows)),
    ]
    if report.get("layers"):
        rounds = report["layers"][0]["rounds"]
        parts += [
            f"Microseconds for whole calls on small matrices, best of {rounds} interleaved rounds. The last rows are "
            "the matrices of the linear layers of the demo's trained network, one after the other:",
            table([{k: v for k, v in row.items() if k not in ("blocks", "rounds")} for row in report["layers"]]),
        ]
    parts += [
        _where_others_are_faster(rows, report.get("layers", []), shape),
        _sampled(rows),
        table([_shown(row) for row in rows]),
        f"Made by `{COMMAND}`, which also shows how time grows, ties and warm starts.",
    ]
    return "\n\n".join(parts)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table of solvers as the README shows it."""
    name, blocks = row["contender"], row["blocks timed"]
    shown = {
        "pattern": row["pattern"],
        "contender": f"{name}, at most" if row["constraint"] == "at_most" else name,
        "milliseconds": row["milliseconds"],
        "blocks timed": f"{blocks:,}" if blocks == row["blocks"] else f"{blocks:,} of {row['blocks']:,}",
        "rounds": row["rounds"],
    }
    return shown | {key: row.get(key) for key in ("time / ours", "plain / time", "loss")}


def _sampled(rows: Rows) -> str:
    """Say what the columns of the table of solvers mean."""
    text = (
        'All solvers, "exactly" unless the row says otherwise. *time / ours* compares with `primal_dual` without its '
        "proof; *loss* is the kept weight that the masks fall short of the optimum."
    )
    if any(row["blocks timed"] < row["blocks"] for row in rows):
        text += (
            ' Slow solvers were timed on a part of the blocks, which the row says ("8 of 221,184"), in rounds of their '
            "own, and the time was multiplied up."
        )
    return text


def _where_others_are_faster(rows: Rows, layers: Rows, shape: str) -> str:
    """Say where another solver, or numpy's plain mask, takes less time than ours for the mask alone."""
    patterns: dict[str, list[str]] = {}
    faster: dict[str, dict[str, list[str]]] = {}
    times = [(row["contender"], shape, row["pattern"], row["time / ours"]) for row in rows]
    for row in layers:
        for name in (OURS, "greedy", PLAIN):
            times.append((name, row["weights"], row["pattern"], row[f"{name}, us"] / row[f"{OURS}, us"]))
    for name, where, pattern, share in times:
        if name == OURS:
            patterns.setdefault(where, []).append(pattern)
        elif share < 1 and name in {PLAIN, *TABLE}:
            faster.setdefault(name, {}).setdefault(where, []).append(pattern)
    if not faster:
        return "In none of these measurements was another solver, or numpy's plain mask, faster than `primal_dual`."
    cases = []
    for name, places in faster.items():
        who = "Numpy's plain mask, which is not transposable," if name == PLAIN else f"`{name}`"
        at = (f"{where} at {_all_or(found, patterns[where])}" for where, found in places.items())
        cases.append(f"{who} takes less time on {'; '.join(at)}")
    return f"`primal_dual` is not the fastest everywhere, its proof aside. {'. '.join(cases)}."


def _all_or(some: Sequence[str], every: Sequence[str]) -> str:
    """Name some of the patterns."""
    return "every pattern" if len(some) == len(every) > 1 else ", ".join(some)
