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
        f"otherwise ({described}). *numpy argpartition* makes the plain, one-sided N:M mask: where it is divided by "
        "ours, above 1 is faster than numpy.",
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
        _where_others_are_faster(rows, report.get("layers", [])),
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


def _where_others_are_faster(rows: Rows, layers: Rows) -> str:
    """Say where another solver, or numpy's plain mask, takes less time than ours for the mask alone."""
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for row in rows:
        if row["contender"] in {PLAIN, *TABLE} - {OURS} and row["time / ours"] < 1:
            found.setdefault((row["contender"], "the large matrix"), []).append((row["pattern"], row["time / ours"]))
    for row in layers:
        for name in ("greedy", PLAIN):
            share = row[f"{name}, us"] / row[f"{OURS}, us"]
            if share < 1:
                found.setdefault((name, row["weights"]), []).append((row["pattern"], share))
    if not found:
        return "In none of these measurements was another solver, or numpy's plain mask, faster than `primal_dual`."
    cases = [f"{_called(name)} on {where} ({_listed(shares)})" for (name, where), shares in found.items()]
    start = "`primal_dual` is not the fastest everywhere. In parts of its time, without its proof: "
    return f"{start}{'; '.join(cases)}."


def _called(name: str) -> str:
    return "numpy's plain mask" if name == PLAIN else f"`{name}`"


def _listed(shares: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{share:.2f} at {pattern}" for pattern, share in shares)
