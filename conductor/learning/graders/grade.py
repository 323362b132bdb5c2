"""What a grader says of one answer.

Enters: nothing. Leaves: the record. Knows no grader.
"""

from __future__ import annotations

from dataclasses import dataclass

CANNOT_GRADE = "cannot grade"


@dataclass(frozen=True, slots=True)
class Grade:
    """A score from 0 to 1, or None where the grader cannot tell; and why, in a few words."""

    score: float | None
    reason: str

    @property
    def graded(self) -> bool:
        """Whether there is a score."""
        return self.score is not None


def right(reason: str) -> Grade:
    """A score of 1."""
    return Grade(1.0, reason)


def wrong(reason: str) -> Grade:
    """A score of 0."""
    return Grade(0.0, reason)


def cannot_grade(why: str) -> Grade:
    """No score."""
    return Grade(None, f"{CANNOT_GRADE}: {why}")
