"""Where every attempt and every request ends: its route's state, the ledger's rows, the key's dollars, the metrics.

Enters: ended attempts and calls. Leaves: rows and counts. Knows no socket but the attempt's own, which it closes.
"""

from __future__ import annotations

import asyncio

from onebeat.conductor.attempt import Attempt
from onebeat.conductor.call import Call
from onebeat.conductor.contingency import WaitingRoom
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.ledger import Ledger
from onebeat.conductor.metrics import Metrics


class Accounts:
    def __init__(self, ledger: Ledger, metrics: Metrics, room: WaitingRoom) -> None:
        self.ledger = ledger
        self.metrics = metrics
        self.room = room

    def end(self, call: Call, attempt: Attempt, outcome: str, error: AttemptError | None) -> None:
        """Every attempt comes here once: its connection, its route's state, the ledger's row, the metrics."""
        now = asyncio.get_running_loop().time()
        attempt.upstream.close()
        line = attempt.line
        usd = call.ended(attempt, outcome, error, now)
        if attempt.choice.route.model.expensive and not attempt.accepted:
            call.client.give_back_expensive(call.at)
        if outcome == "served" or (error is not None and error.finding is not None):
            line.state.succeeded(attempt.first_token_ms, 1e3 * (now - attempt.started))
            if attempt.usage is not None and not call.request.has_images:
                line.scale.learn(attempt.choice.prompt_tokens, attempt.usage.input_tokens)
        elif error is not None:
            line.state.failed(error.problem, now)
        else:
            line.state.left()
        if len(self.room):
            self.room.freed(line.name)
        self._count(call, attempt, error, usd, now)

    def _count(self, call: Call, attempt: Attempt, error: AttemptError | None, usd: float, now: float) -> None:
        metrics, line = self.metrics, attempt.line
        labels = (call.operation, line.provider_name, line.upstream, attempt.response_model or "")
        metrics.duration.observe(now - attempt.started, (*labels, error.cause if error is not None else ""))
        if attempt.usage is not None:
            metrics.tokens.observe(attempt.usage.input_tokens, ("input", *labels))
            metrics.tokens.observe(attempt.usage.output_tokens, ("output", *labels))
        if attempt.first_token_at is not None:
            metrics.first_token.observe(attempt.first_token_at - attempt.started, labels)
            if attempt.finished is not None and attempt.usage is not None and attempt.usage.output_tokens > 1:
                rest_s = now - attempt.first_token_at
                metrics.per_token.observe(rest_s / (attempt.usage.output_tokens - 1), labels)
        if usd:
            metrics.cost.add(usd, (line.name,))
        if error is not None:
            metrics.reroutes.add(1.0, (line.name, error.cause))
        for finding in attempt.findings:
            metrics.findings.add(1.0, (finding.detector.value, "yes" if finding.act else "no"))

    def enter(self, call: Call, outcome: str, cause: str | None) -> None:
        """The request's rows go to the ledger, its dollars to the key."""
        now = asyncio.get_running_loop().time()
        row = call.request_row(outcome, cause, now)
        call.ledger_number = self.ledger.append(*call.rows, row)
        if call.cost_usd or call.reserved_usd:
            call.client.settle(call.reserved_usd or 0.0, call.cost_usd, call.at)
        metrics = self.metrics
        metrics.requests.add(1.0, (row.face, outcome, row.decided_by))
        metrics.added.observe(now - call.started, (outcome,))
        if call.router_ms:
            metrics.router.observe(call.router_ms / 1e3, (row.decided_by,))
