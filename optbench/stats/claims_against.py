"""The claims of two runs, paired by name; each is judged on the data of its own run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optbench.stats.arms import Arm
from optbench.stats.claims import ClaimPart, ClaimVerdict, JudgedClaim
from optbench.suite.claims import Claim
from optbench.suite.sides import side_text

OPPOSITE = {ClaimVerdict.SUPPORTED, ClaimVerdict.CONTRADICTED}


@dataclass(frozen=True)
class PartsOfBoth:
    """A part of a claim in two runs A and B, with the same model and variants in both.

    a, b: the part in each run. One is None if only the other run has such a part or if the claims differ.
    """

    a: ClaimPart | None
    b: ClaimPart | None

    @property
    def one(self) -> ClaimPart:
        """The part in A or, if there is none, the part in B."""
        found = self.a or self.b
        assert found is not None
        return found


@dataclass(frozen=True)
class ClaimOfBoth:
    """The claims of the same name in two runs A and B.

    a, b: the claim in each run; at most one is None, which means that the run's suite does not state the claim.
    apart: the settings of the claim that differ between the two suites, as (name, in A, in B).
    parts: the parts in A, in order, then those that are only in B; they are not paired if the claims differ.
    """

    name: str
    a: JudgedClaim | None
    b: JudgedClaim | None
    apart: tuple[tuple[str, object, object], ...]
    parts: tuple[PartsOfBoth, ...]

    @property
    def one(self) -> JudgedClaim:
        """The claim as stated in A, or in B if A does not state it."""
        found = self.a or self.b
        assert found is not None
        return found

    @property
    def alike(self) -> bool:
        """Whether both suites state the same claim."""
        return self.a is not None and self.b is not None and not self.apart

    @property
    def compared(self) -> bool:
        """Whether both suites state the same claim and neither verdict is `not comparable`.

        Other claims are not counted as changed or unchanged.
        """
        return self.alike and ClaimVerdict.NOT_COMPARABLE not in self.verdicts

    @property
    def verdicts(self) -> tuple[ClaimVerdict | None, ClaimVerdict | None]:
        return self.a.verdict if self.a else None, self.b.verdict if self.b else None

    @property
    def changes(self) -> bool:
        return self.compared and len(set(self.verdicts)) > 1

    @property
    def reversed(self) -> bool:
        """Whether the claim is supported in one run and contradicted in the other."""
        return self.changes and set(self.verdicts) == OPPOSITE


def claims_of_both(a: Sequence[JudgedClaim], b: Sequence[JudgedClaim]) -> list[ClaimOfBoth]:
    """Pair the claims of two runs by name: those in A, in order, then those that are only in B."""
    of_a, of_b = ({claim.name: claim for claim in side} for side in (a, b))
    return [_both(name, of_a.get(name), of_b.get(name)) for name in {**of_a, **of_b}]


def _both(name: str, a: JudgedClaim | None, b: JudgedClaim | None) -> ClaimOfBoth:
    apart: list[tuple[str, object, object]] = []
    if a is not None and b is not None:
        said = _stated(a.claim), _stated(b.claim)
        # A margin taken from the metric counts as if the claim stated it.
        apart = [(key, x, y) for (key, x), y in zip(said[0].items(), said[1].values(), strict=True) if x != y]
        if a.margin != b.margin:
            apart.append(("margin", a.margin, b.margin))
    of_a, of_b = ({} if side is None else {_place(part): part for part in side.parts} for side in (a, b))
    if apart:  # parts of different claims cannot be paired
        alone = [PartsOfBoth(part, None) for part in of_a.values()], [PartsOfBoth(None, part) for part in of_b.values()]
        parts = (*alone[0], *alone[1])
    else:
        parts = tuple(PartsOfBoth(of_a.get(place), of_b.get(place)) for place in {**of_a, **of_b})
    return ClaimOfBoth(name, a, b, tuple(apart), parts)


def _stated(claim: Claim) -> dict[str, object]:
    """Return the settings that must agree for two claims to be equal, except the margin; pairs of solutions as text."""
    stated = claim.model_dump(exclude={"text", "source", "given", "beside", "margin"})
    pairs = {key: side_text(side) for key in ("left", "right") if isinstance(side := stated[key], list)}
    return stated | pairs


def _place(part: ClaimPart) -> tuple[object, ...]:
    sides = ((side.optimizer, side.variant) if isinstance(side, Arm) else side for side in (part.left, part.right))
    return part.model, *sides
