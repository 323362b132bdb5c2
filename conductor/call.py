"""One client's request on its way through the gateway: what was decided, tried, spent and sent.

Enters: facts from the dispatcher. Leaves: the `Report` for the client and the rows for the ledger. Does no I/O.
"""

from __future__ import annotations

import asyncio
import random
import time

import msgspec

from onebeat.conductor.answers import ProviderProblem, Report, Usage
from onebeat.conductor.attempt import Attempt
from onebeat.conductor.context import PromptSize
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.ledger_rows import AttemptRow, RequestRow
from onebeat.conductor.policy import Choice, Plan
from onebeat.conductor.pricing import cost_usd
from onebeat.conductor.pursuit import Pursuit
from onebeat.conductor.records import ChatRequest, Priority
from onebeat.conductor.routes import Prediction
from onebeat.conductor.runtime import Runtime
from onebeat.conductor.security import Client

MAX_DETAIL_CHARACTERS = 300
_ZERO = Usage()
_ids = random.Random()
"""Seeded by the system once. An id names a request and opens nothing: feedback on it wants the key that sent it."""


def new_id(now_unix: float) -> str:
    """`ob-` and 24 hexadecimal digits: the time in microseconds, then chance. So the ledger's indexes grow at the end,
    which is half the work of rows in random order (12 against 21 us a request)."""
    return f"ob-{int(now_unix * 1e6) & 0xFFFFFFFFFFFFFF:014x}{_ids.getrandbits(40):010x}"


class Call:
    """Made when a request has been parsed; `request_row` ends it."""

    __slots__ = (
        "act_on_soft",
        "arrival",
        "asked_deadline_at",
        "at",
        "attempts",
        "client",
        "cost_usd",
        "deadline_at",
        "dropped_messages",
        "first_token_ms",
        "has_waited",
        "id",
        "last_attempt",
        "last_problem",
        "ledger_number",
        "no_prefill",
        "notes",
        "operation",
        "output_before",
        "plan",
        "predictions",
        "priority",
        "pursuit",
        "reason",
        "request",
        "reserved_usd",
        "response_model",
        "router_ms",
        "rows",
        "runtime",
        "second_best",
        "sent",
        "served",
        "size",
        "soft_choice",
        "started",
        "tradeoff",
        "usage",
    )

    def __init__(
        self,
        runtime: Runtime,
        request: ChatRequest,
        client: Client,
        size: PromptSize,
        now: float,
    ) -> None:
        self.at = time.time()
        self.id = new_id(self.at)
        self.started = now
        self.runtime = runtime
        self.request = request
        self.client = client
        self.size = size
        self.arrival: int | None = None
        """Its place in the waiting room, once it has waited."""
        self.priority: Priority = client.priority(request.options.priority)
        asked_ms = request.options.deadline_ms
        self.asked_deadline_at = None if asked_ms is None else now + asked_ms / 1e3
        """When the answer must have begun because the client said so; no call starts after it."""
        self.deadline_at = self.asked_deadline_at or now + runtime.fleet.contingency.deadline_ms / 1e3
        """Until when the request waits for a route that is free."""
        self.tradeoff = 0.5
        self.operation = "chat"
        """chat | transcription"""
        self.plan: Plan | None = None
        self.pursuit: Pursuit | None = None
        self.predictions: dict[str, Prediction] | None = None
        self.router_ms = 0.0
        self.attempts = 0
        self.has_waited = False
        """In the waiting room, since its last call."""
        self.reserved_usd: float | None = None
        """Set aside of its key's budget; None before the first call."""
        self.rows: list[AttemptRow] = []
        self.ledger_number = 0
        """Of its last row, once they are entered."""
        self.cost_usd = 0.0
        self.notes: list[str] = []
        self.sent: list[str] = []
        """Text that the client has."""
        self.output_before = 0
        """Tokens of earlier attempts whose text the client has."""
        self.dropped_messages = 0
        self.served: Choice | None = None
        self.response_model: str | None = None
        self.usage = _ZERO
        self.reason = ""
        self.first_token_ms: float | None = None
        self.act_on_soft = True
        self.soft_choice: Choice | None = None
        self.second_best: Attempt | None = None
        """Holds a whole answer that a soft detector disliked: it is given where nothing better comes."""
        self.last_problem: ProviderProblem | None = None
        self.last_attempt: Attempt | None = None
        self.no_prefill: set[str] = set()
        """Lines that refused to continue this answer."""

    @property
    def is_late(self) -> bool:
        """Whether the client's own deadline has passed with no content out: nothing may be called for it any more."""
        at = self.asked_deadline_at
        return at is not None and not self.sent and asyncio.get_running_loop().time() >= at

    @property
    def has_local_model(self) -> bool:
        """Whether the local model stands by for this request: it has not been called yet."""
        local = self.runtime.fleet.contingency.local_model
        return local is not None and not self.sent and all(row.model != local for row in self.rows)

    def calls_left(self) -> int:
        """Upstream calls that the budget still holds. One of them is kept for the last resort (the local model, or the
        answer that a detector only disliked) where there is one and the budget is more than a single call."""
        most = self.runtime.fleet.resilience.max_attempts
        kept = most > 1 and (self.soft_choice is not None or self.has_local_model)
        return most - self.attempts - kept

    def acquire(self, choice: Choice, now: float) -> bool:
        """Whether this route may be called now: it has room, and the client's key bears it. Both are counted then, in
        one step, so that requests that come at once cannot share a last place. Raises `RequestError` 429 where the
        key's budget of dollars is set aside for others."""
        model = choice.route.model
        if self.reserved_usd is None:
            self.client.reserve(choice.cost_usd, self.at)
            self.reserved_usd = choice.cost_usd
        if model.expensive and not self.client.take_expensive(self.at):
            return False
        if self.runtime.lines[choice.route.name].state.acquire(now, choice.prompt_tokens):
            return True
        if model.expensive:
            self.client.give_back_expensive(self.at)
        return False

    def ended(self, attempt: Attempt, outcome: str, error: AttemptError | None, now: float) -> float:
        """Enters one attempt; its price by the model that the response names. Returns its dollars."""
        usage, estimated = attempt.billed()
        estimated = estimated or (attempt.extra_is_guess and attempt.extra_usd > 0)
        name = attempt.line.name
        usd = attempt.extra_usd
        if usage is not _ZERO and (usage.input_tokens or usage.output_tokens):
            model = self.runtime.prices.of_response(name, attempt.response_model or attempt.line.upstream)
            usd += cost_usd(model, usage)
        self.cost_usd += usd
        self.rows.append(
            AttemptRow(
                request_id=self.id,
                number=len(self.rows) + 1,
                at=self.at + (attempt.started - self.started),
                model=name,
                provider=attempt.line.provider_name,
                response_model=attempt.response_model,
                outcome=outcome,
                problem=error.cause if error is not None else None,
                detail=error.problem.message[:MAX_DETAIL_CHARACTERS] if error is not None else None,
                status=attempt.status,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.cached_input_tokens,
                output_tokens=usage.output_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                cost_usd=usd,
                estimated=estimated,
                first_token_ms=attempt.first_token_ms,
                total_ms=1e3 * (now - attempt.started),
            )
        )
        return usd

    def serve(self, attempt: Attempt) -> None:
        """The answer is this attempt's: what the client is told about model, usage and reason."""
        self.served = attempt.choice
        self.response_model = attempt.response_model
        usage, _ = attempt.billed()
        if self.output_before:
            usage = msgspec.structs.replace(usage, output_tokens=usage.output_tokens + self.output_before)
        self.usage = usage
        if self.first_token_ms is None and attempt.first_token_at is not None:
            self.first_token_ms = 1e3 * (attempt.first_token_at - self.started)
        for finding in attempt.findings:
            self.notes.append(finding.note)

    def report(self, choice: Choice, *, final: bool) -> Report:
        """For headers (`final` False: the cost is not known yet) and the last block."""
        assert self.plan is not None
        reason = self.plan.decision.reason
        name = choice.route.name
        if name != self.plan.decision.model:
            before = next((row for row in self.rows if row.outcome != "served" and row.problem), None)
            why = f"{before.model} failed ({before.problem})" if before else "what is preferred cannot be called now"
            reason = f"{name} answered: {why}. {reason}"
        self.reason = reason
        return Report(
            name,
            reason,
            max(1, self.attempts),
            self.cost_usd if final else None,
            self.id,
            self.dropped_messages,
            tuple(self.notes),
        )

    def request_row(self, outcome: str, cause: str | None, now: float) -> RequestRow:
        plan, runtime = self.plan, self.runtime
        usage = self.usage
        if outcome != "served" and self.rows:
            usage = Usage(self.rows[-1].input_tokens, self.rows[-1].output_tokens)
        best = runtime.table.always_best
        best_usd = 0.0
        if self.operation != "chat":
            best, best_usd = None, self.cost_usd  # Nothing was chosen by quality, and nothing saved.
        elif best is not None:
            best_usd = cost_usd(runtime.fleet.models[best], Usage(usage.input_tokens, usage.output_tokens))
        first = plan.choices[0] if plan is not None else None
        propensity = first.propensity if first is not None else 1.0
        return RequestRow(
            id=self.id,
            at=self.at,
            key_name=self.client.name,
            face=self.request.face.value,
            asked_model=self.request.model,
            model=self.served.route.name if self.served is not None else None,
            response_model=self.response_model,
            outcome=outcome,
            cause=cause,
            decided_model=plan.decision.model if plan is not None else None,
            decided_by=plan.decided_by if plan is not None else "none",
            propensity=propensity,
            tradeoff=self.tradeoff,
            stream=self.request.stream,
            attempts=self.attempts,
            prompt_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=self.cost_usd,
            router_ms=self.router_ms,
            router_usd=self.router_ms / 3.6e6 * runtime.fleet.router.machine_usd_per_hour,
            best_model=best,
            best_usd=best_usd,
            first_token_ms=self.first_token_ms,
            total_ms=1e3 * (now - self.started),
            dropped_messages=self.dropped_messages,
            reason=self.reason or (plan.decision.reason if plan is not None else ""),
            notes="; ".join(self.notes) or None,
            scores=self._scores(),
            prompt=self._prompt(),
        )

    def _scores(self) -> str | None:
        if self.predictions is None or self.plan is None:
            return None
        scores = {c.route.name: (round(c.quality, 4), round(c.output_tokens, 1)) for c in self.plan.choices}
        return msgspec.json.encode(scores).decode()

    def _prompt(self) -> str | None:
        if not self.runtime.fleet.ledger.store_prompts:
            return None
        return msgspec.json.encode(self.request.as_prompt()).decode()
