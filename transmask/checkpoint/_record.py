"""What transmask notes in the metadata of a checkpoint it pruned, and of a masks file: JSON with a version."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, InvalidArgumentError, TransmaskError
from ..pattern import Constraint, Pattern, as_constraint

__all__ = ["RECORD_VERSION", "PruneRecord"]

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class PruneRecord:
    """Which tensors hold which pattern.

    Attributes
    ----------
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    solver : str
        Name of the solver that made the masks; empty if not known, or if there were several.
    axes : dict of str to tuple of two int
        For each tensor that was pruned, the axes that form its matrix.
    """

    pattern: Pattern
    constraint: Constraint
    solver: str
    axes: dict[str, tuple[int, int]]

    def joined_to(self, old: PruneRecord | None) -> PruneRecord:
        """Add what an earlier run noted about the tensors that this one leaves alone.

        Raises
        ------
        InvalidArgumentError
            If they were pruned with another pattern or constraint.
        """
        left = {} if old is None else {name: axes for name, axes in old.axes.items() if name not in self.axes}
        if old is None or not left:
            return self
        if (old.pattern, old.constraint) != (self.pattern, self.constraint):
            before, now = (f"{record.pattern} {record.constraint.replace('_', ' ')}" for record in (old, self))
            raise InvalidArgumentError(
                f"`pattern` must be {before}, which {next(iter(left))!r} was pruned with before, got {now}. "
                "One file holds one pattern: prune that tensor again too."
            )
        solver = self.solver if self.solver == old.solver else ""
        return PruneRecord(self.pattern, self.constraint, solver, left | self.axes)

    def to_json(self, **more: object) -> str:
        """Write the record, and `more` fields, as one JSON object."""
        fields = {
            "version": RECORD_VERSION,
            "pattern": str(self.pattern),
            "constraint": self.constraint,
            "solver": self.solver,
            "axes": {name: list(axes) for name, axes in self.axes.items()},
        }
        return json.dumps(fields | more, ensure_ascii=False)

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
        if version != RECORD_VERSION:
            raise CheckpointError(
                f"the transmask record in {where} must have version {RECORD_VERSION}, got {version!r}. "
                "Use the release of transmask that wrote it, or a later one."
            )
        try:
            axes = {str(name): (int(first), int(second)) for name, (first, second) in fields["axes"].items()}
            if any(first == second or min(first, second) < 0 for first, second in axes.values()):
                raise ValueError("two different axes make a matrix")
            return cls(
                Pattern.parse(fields["pattern"]), as_constraint(fields["constraint"]), str(fields["solver"]), axes
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
