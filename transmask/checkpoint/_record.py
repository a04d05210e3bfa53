"""What transmask notes in the metadata of a checkpoint it pruned, and of a masks file: JSON with a version."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError, InvalidArgumentError, TransmaskError
from ..pattern import Constraint, Pattern, as_constraint

__all__ = ["RECORD_VERSION", "PruneRecord"]

RECORD_VERSION = 1
SEVERAL_PATTERNS_VERSION = 2
"""Written only where tensors hold different patterns, which releases that know version 1 alone would judge wrongly."""


@dataclass(frozen=True, slots=True)
class PruneRecord:
    """Which tensors hold which pattern.

    Attributes
    ----------
    pattern : Pattern
        Of every tensor that `others` does not name.
    constraint : {"exactly", "at_most"}
    solver : str
        Name of the solver that made the masks; empty if not known, or if there were several.
    axes : dict of str to tuple of two int
        For each tensor that was pruned, the axes that form its matrix.
    others : dict of str to Pattern
        The tensors that hold another pattern.
    """

    pattern: Pattern
    constraint: Constraint
    solver: str
    axes: dict[str, tuple[int, int]]
    others: dict[str, Pattern] = field(default_factory=dict)

    @classmethod
    def of(
        cls, patterns: Mapping[str, Pattern], constraint: Constraint, solver: str, axes: dict[str, tuple[int, int]]
    ) -> PruneRecord:
        """Make a record of at least one tensor from the pattern of each."""
        pattern = patterns[next(iter(axes))]
        return cls(
            pattern, constraint, solver, axes, {name: patterns[name] for name in axes if patterns[name] != pattern}
        )

    @property
    def patterns(self) -> dict[str, Pattern]:
        """The pattern of each tensor that was pruned."""
        return dict.fromkeys(self.axes, self.pattern) | self.others

    def restricted_to(self, names: Iterable[str]) -> PruneRecord:
        """Return what it says about some of the tensors; names that it does not have are ignored."""
        axes = {name: self.axes[name] for name in names if name in self.axes}
        others = {name: self.others[name] for name in axes if name in self.others}
        return PruneRecord(self.pattern, self.constraint, self.solver, axes, others)

    def joined_to(self, old: PruneRecord | None) -> PruneRecord:
        """Add what an earlier run noted about the tensors that this one leaves alone.

        Raises
        ------
        InvalidArgumentError
            If they were pruned with another constraint.
        """
        left = {} if old is None else {name: axes for name, axes in old.axes.items() if name not in self.axes}
        if old is None or not left:
            return self
        if old.constraint != self.constraint:
            raise InvalidArgumentError(
                f"`constraint` must be {old.constraint!r}, which {next(iter(left))!r} was pruned with before, got "
                f"{self.constraint!r}. One file holds one constraint: prune that tensor again too."
            )
        solver = self.solver if self.solver == old.solver else ""
        return PruneRecord.of(old.patterns | self.patterns, self.constraint, solver, left | self.axes)

    def to_json(self, **more: object) -> str:
        """Write the record, and `more` fields, as one JSON object."""
        several = {"patterns": {name: str(pattern) for name, pattern in self.others.items()}} if self.others else {}
        fields = {
            "version": SEVERAL_PATTERNS_VERSION if self.others else RECORD_VERSION,
            "pattern": str(self.pattern),
            "constraint": self.constraint,
            "solver": self.solver,
            "axes": {name: list(axes) for name, axes in self.axes.items()},
        }
        return json.dumps(fields | several | more, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> PruneRecord:
        """Read the record that `to_json` wrote; other fields are ignored.

        Raises
        ------
        CheckpointError
            If it is damaged, or of a version that this release does not know; `where` says where it stood.
        """
        fields = parse_object(text, where)
        version = fields.get("version")
        if version not in (RECORD_VERSION, SEVERAL_PATTERNS_VERSION) or isinstance(version, bool):
            raise CheckpointError(
                f"the transmask record in {where} must have version {RECORD_VERSION} or {SEVERAL_PATTERNS_VERSION}, "
                f"got {version!r}. Use the release of transmask that wrote it, or a later one."
            )
        try:
            axes = {str(name): (int(first), int(second)) for name, (first, second) in fields["axes"].items()}
            if any(first == second or min(first, second) < 0 for first, second in axes.values()):
                raise ValueError("two different axes make a matrix")
            others = {} if version == RECORD_VERSION else fields["patterns"]
            if not others.keys() <= axes.keys():
                raise ValueError("it has a pattern for a tensor without axes")
            return cls(
                Pattern.parse(fields["pattern"]),
                as_constraint(fields["constraint"]),
                str(fields["solver"]),
                axes,
                {name: Pattern.parse(text) for name, text in others.items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, TransmaskError) as error:
            raise CheckpointError(f"the transmask record in {where} is damaged: {error}.") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; bytes are UTF-8, and may begin with the byte-order mark that some editors write.

    Raises
    ------
    CheckpointError
        If `text` is not a JSON object, or an object in it has a key twice; `where` says where it stood.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} must hold JSON, but it cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must hold a JSON object, got {type(value).__name__}.")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the members of an object; JSON leaves open which of two with the same key counts."""
    value = dict(pairs)
    if len(value) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {twice!r} twice")
    return value
