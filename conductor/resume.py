"""How an answer goes on after its stream failed with text already at the client.

Enters: what was sent, what failed, the lines that are left. Leaves: a `Resume`: continue by prefill, or start over and
skip what matches; None where neither is honest. Does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from onebeat.conductor.answers import ProblemKind, ProviderProblem
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.policy import Choice
from onebeat.conductor.records import ChatRequest, Message, Role, Text
from onebeat.conductor.runtime import Line
from onebeat.conductor.watch import Detector

_HOPELESS = frozenset({Detector.REPETITION, Detector.GARBAGE, Detector.EMPTY})
"""What the client has is spoilt: continuing it would only continue the fault."""


class Joint(Enum):
    PREFILL = "prefill"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Resume:
    joint: Joint
    text: str
    """What the client has."""
    choices: tuple[Choice, ...]


def ways_to_resume(call: Call, attempt: Attempt, error: AttemptError, before: Resume | None) -> Resume | None:
    """The next way, in the order prefill, restart; `before`: the way that has just failed."""
    assert call.plan is not None
    if error.finding is not None and error.finding.detector in _HOPELESS:
        return None
    text = "".join(call.sent)
    choices = call.plan.choices
    # The model that began goes on best: same voice, and the only one that may say the same words again.
    own = [choice for choice in choices if choice.route is attempt.choice.route]
    ordered = (*own, *(choice for choice in choices if choice.route is not attempt.choice.route))
    prefill_failed = error.problem.kind is ProblemKind.PREFILL_REFUSED
    if prefill_failed:
        call.no_prefill.add(attempt.line.name)
    pursuit = call.pursuit
    # A taker that has been given up is none: the others may still begin anew.
    left = [choice for choice in ordered if pursuit is None or not pursuit.is_excluded(choice.route.name)]
    takers = tuple(choice for choice in left if _takes_prefill(call, call.runtime.lines[choice.route.name]))
    if takers and text.strip():
        return Resume(Joint.PREFILL, text, takers)
    if before is not None and before.joint is Joint.RESTART and error.problem.code == "differs":
        return None
    return Resume(Joint.RESTART, text, ordered)


def _takes_prefill(call: Call, line: Line) -> bool:
    if call.request.tools and call.request.answer_format is not None:
        return False
    return line.name not in call.no_prefill and line.provider.takes_prefill(line.upstream)


def resume_request(request: ChatRequest, resume: Resume | None) -> ChatRequest:
    """The request that continues: the client's own, with what it has as an assistant's message at the end.

    Trailing white space is left out: Anthropic refuses a prefill that ends in it, and `Skipper` takes it off again.
    """
    if resume is None or resume.joint is Joint.RESTART:
        return request
    message = Message(Role.ASSISTANT, (Text(resume.text.rstrip()),))
    return request.with_messages([*request.messages, message])


class Skipper:
    """Takes off the front of a new attempt's text what the client has already."""

    __slots__ = ("_is_exact", "_rest")

    def __init__(self, resume: Resume) -> None:
        self._is_exact = resume.joint is Joint.RESTART
        text = resume.text
        self._rest = text if self._is_exact else text[len(text.rstrip()) :]

    @property
    def is_done(self) -> bool:
        return not self._rest

    def take(self, text: str) -> str:
        """What of `text` is new. Raises `AttemptError` where a restarted answer differs from what was sent."""
        if not self._rest:
            return text
        size = min(len(self._rest), len(text))
        if self._rest[:size] == text[:size]:
            self._rest = self._rest[size:]
            return text[size:]
        if self._is_exact:
            raise differs()
        # A continuation need not repeat the white space that the prefill had lost.
        self._rest = ""
        return text

    def finish(self) -> None:
        if self._rest and self._is_exact:
            raise differs()


def differs() -> AttemptError:
    return AttemptError(
        ProviderProblem(
            ProblemKind.CUT, "the answer was cut, and no model could go on from where it stopped", code="differs"
        )
    )
