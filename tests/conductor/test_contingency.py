"""The waiting room is bounded and fair by priority; the pursuit never offers what is spent."""

from __future__ import annotations

import asyncio
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.answers import ProblemKind, ProviderProblem
from onebeat.conductor.config import PolicySection, ResilienceSection
from onebeat.conductor.context import PromptSize
from onebeat.conductor.contingency import ShedError, WaitingRoom
from onebeat.conductor.errors import AttemptError
from onebeat.conductor.fleet_file import parse_fleet
from onebeat.conductor.policy import Ask, Choice, Plan, Status, named_plan, plan
from onebeat.conductor.pursuit import Pursuit, Wait
from onebeat.conductor.records import Priority
from onebeat.conductor.routes import RouteTable

FLEET = '[providers.p]\nkind = "openai"\nbase_url = "http://127.0.0.1:1"\n' + "".join(
    f'[models.{name}]\nprovider = "p"\nprior_quality = {quality}\ncontext_tokens = {window}\n'
    "input_usd_per_million = 1\noutput_usd_per_million = 1\n"
    for name, quality, window in (("best", 0.9, 1000), ("near", 0.87, 1000), ("poor", 0.6, 9000))
)
TABLE = RouteTable(parse_fleet(FLEET), {}, datetime.date(2026, 1, 1))
ASK = Ask(PromptSize(40, 0, 4), 1.0, max_output_tokens=10)


def automatic() -> Plan:
    return plan(TABLE, ASK, None, lambda name: Status())


def pursuit(made: Plan) -> Pursuit:
    return Pursuit(made, PolicySection(), ResilienceSection(), lambda: 0.5)


def failure(kind: ProblemKind, **fields: object) -> AttemptError:
    return AttemptError(ProviderProblem(kind, "m", **fields))  # type: ignore[arg-type]


def free(choice: Choice) -> float | None:
    return None


def name_of(picked: Choice | Wait | None) -> str | None:
    return picked.route.name if isinstance(picked, Choice) else None


def test_auto_moves_on_at_once_to_what_is_nearly_as_good() -> None:
    chase = pursuit(automatic())
    first = chase.next(0.0, free)
    assert name_of(first) == "best" and isinstance(first, Choice)
    chase.failed(first, failure(ProblemKind.SERVER_ERROR), 0.0)
    assert name_of(chase.next(0.0, free)) == "near"


def test_auto_waits_out_a_short_backoff_rather_than_fall_far() -> None:
    chase = pursuit(automatic())
    first, second = chase.plan.choices[:2]
    chase.failed(first, failure(ProblemKind.STALLED), 0.0)  # silent: not called again
    chase.failed(second, failure(ProblemKind.SERVER_ERROR), 0.0)
    waiting = chase.next(0.0, free)
    assert isinstance(waiting, Wait) and 0 < waiting.until < 0.2
    assert name_of(chase.next(waiting.until, free)) == "near"
    chase.failed(second, failure(ProblemKind.SERVER_ERROR), 1.0)
    assert name_of(chase.next(1.0, free)) == "poor"


def test_a_named_model_waits_for_its_short_reset_and_not_for_a_long_one() -> None:
    made = named_plan(TABLE, ASK, ["poor", "best"], lambda name: Status())
    chase = pursuit(made)
    picked = chase.next(0.0, lambda choice: 1.5 if choice.route.name == "poor" else None)
    assert isinstance(picked, Wait) and picked.until == 1.5
    assert name_of(chase.next(0.0, lambda choice: 60.0 if choice.route.name == "poor" else None)) == "best"


def test_final_problems_end_the_chase_and_overflow_looks_for_more_room() -> None:
    for kind in (ProblemKind.CONTENT_POLICY, ProblemKind.INVALID_REQUEST):
        chase = pursuit(automatic())
        chase.failed(chase.plan.choices[0], failure(kind), 0.0)
        assert chase.next(0.0, free) is None
    chase = pursuit(automatic())
    chase.failed(chase.plan.choices[0], failure(ProblemKind.CONTEXT_OVERFLOW), 0.0)
    assert name_of(chase.next(0.0, free)) == "poor"
    chase = pursuit(automatic())
    chase.failed(chase.plan.choices[0], failure(ProblemKind.SERVER_ERROR, should_retry=False), 0.0)
    assert name_of(chase.next(99.0, free)) == "near"


@given(st.lists(st.sampled_from(list(ProblemKind)), max_size=30))
def test_a_chase_always_ends(kinds: list[ProblemKind]) -> None:
    """Whatever fails, a route that is not cooling is offered at most a few times."""
    chase, now = pursuit(automatic()), 0.0
    cooling = {ProblemKind.RATE_LIMITED, ProblemKind.OVERLOADED, ProblemKind.PREFILL_REFUSED}
    offered = 0
    for kind in kinds:
        if kind in cooling:
            continue
        picked = chase.next(now, free)
        if isinstance(picked, Wait):
            now = picked.until
            picked = chase.next(now, free)
        if picked is None:
            break
        assert isinstance(picked, Choice)
        offered += 1
        chase.failed(picked, failure(kind), now)
    assert offered <= 6


async def test_who_is_most_urgent_is_served_first() -> None:
    room, order = WaitingRoom(10), []

    async def wait(name: str, priority: Priority, until: float) -> None:
        await room.wait(until, priority, ["r"])
        order.append(name)

    loop = asyncio.get_running_loop()
    until = loop.time() + 0.05
    priorities = (
        ("low", Priority.LOW),
        ("first", Priority.NORMAL),
        ("second", Priority.NORMAL),
        ("high", Priority.HIGH),
    )
    tasks = [asyncio.create_task(wait(name, priority, until)) for name, priority in priorities]
    await asyncio.sleep(0)
    room.freed("other")
    room.freed("r")
    await asyncio.sleep(0.01)
    assert order == ["high"]
    await asyncio.gather(*tasks)
    assert order == ["high", "first", "second", "low"] and len(room) == 0


async def test_a_full_room_sheds_the_least_urgent() -> None:
    room = WaitingRoom(2)
    loop = asyncio.get_running_loop()
    far = loop.time() + 60
    low = asyncio.create_task(room.wait(far, Priority.LOW, ["r"]))
    normal = asyncio.create_task(room.wait(far, Priority.NORMAL, ["r"]))
    await asyncio.sleep(0)
    with pytest.raises(ShedError):
        await room.wait(far, Priority.LOW, ["r"])
    high = asyncio.create_task(room.wait(far, Priority.HIGH, ["r"]))
    await asyncio.sleep(0)
    with pytest.raises(ShedError, match="more urgent"):
        await low
    assert len(room) == 2 and room.shed == 2
    room.wake_all()
    await asyncio.gather(normal, high)
    leaver = asyncio.create_task(room.wait(far, Priority.HIGH, ["r"]))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert len(room) == 0


async def test_nobody_waits_beyond_a_deadline() -> None:
    room = WaitingRoom(2)
    now = asyncio.get_running_loop().time()
    await asyncio.wait_for(room.wait(float("inf"), Priority.LOW, ["r"], now + 0.03), 1.0)
