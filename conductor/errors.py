"""What goes wrong between a decision and an answer. All of it is caught by the dispatcher; faces render the problems.

OnebeatError
├── RequestError         (conductor.records) the client's request cannot be served as it stands
├── ProviderError        (conductor.answers) an upstream failure, as its vendor module read it
├── AttemptError         one upstream call came to nothing: its problem, and the watch's finding if that is why
└── UnansweredError      nothing could answer: what the client is told
"""

from __future__ import annotations

from onebeat.conductor.answers import ProblemKind, ProviderProblem
from onebeat.conductor.watch import Finding
from onebeat.engine.errors import OnebeatError


class AttemptError(OnebeatError):
    """One upstream call failed, or gave an answer that the watch would not let through."""

    def __init__(self, problem: ProviderProblem, finding: Finding | None = None) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.finding = finding

    @property
    def cause(self) -> str:
        """For the ledger and the metrics: a detector's name, or a problem's kind."""
        return self.finding.detector.value if self.finding is not None else self.problem.kind.value


class UnansweredError(OnebeatError):
    """No route answered, and none will before the deadline."""

    def __init__(self, problem: ProviderProblem, cause: str | None = None) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.cause = cause or problem.kind.value


def unanswered(message: str, retry_after_s: float | None) -> UnansweredError:
    """A 503 with an honest Retry-After."""
    problem = ProviderProblem(ProblemKind.OVERLOADED, message, retry_after_s=retry_after_s)
    return UnansweredError(problem, "unavailable")
