"""Raw answers of many models to scores: each row by the grader that it names, in the order of the file.

Enters: decoded rows. Leaves: outcomes that `onebeat train` reads, and every row that could not be graded, with its
reason. Knows no file and no vendor.

    prompt or messages, model, output     what was asked, of whom, what came back
    grader      numeric, exact, choice, schema, code, judge; left out: what the row's other keys call for
    answer      numeric, exact, choice: the reference; judge: what it is shown as the right answer, if given
    choices     choice: the options' texts, or their letters, as "ABCD"
    schema      schema: a JSON Schema          tests     code: Python assertions, run after the answer's program
    first, second, preferred              preferences, instead of model and output: two models, and which answer was
                                          better: 1 or "first", 0 or "second", 0.5 or "tie", or the model's name
    input_tokens, output_tokens, cost_usd, latency_ms, group, time, weight, propensity    are passed on; of
                                          comparisons, which tell of two models at once, group and time are
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

import msgspec

from onebeat.conductor.learning.graders.code import Limits, grade_code
from onebeat.conductor.learning.graders.grade import CANNOT_GRADE, Grade, cannot_grade
from onebeat.conductor.learning.graders.numeric import boxed, grade_numeric, parse
from onebeat.conductor.learning.graders.preferences import Comparison, linked_groups, score_preferences
from onebeat.conductor.learning.graders.schema import grade_schema
from onebeat.conductor.learning.graders.text import grade_choice, grade_exact
from onebeat.conductor.learning.outcomes import OPTIONAL
from onebeat.engine.errors import InputError
from onebeat.engine.template import transcript, turns_of

GRADERS = ("numeric", "exact", "choice", "schema", "code", "judge", "preferences")
Row = Mapping[str, Any]
AskJudge = Callable[[str, str, str | None], Awaitable[Grade]]
"""(prompt, answer, reference) -> the judge's grade."""


@dataclass(frozen=True, slots=True)
class Graded:
    """What became of a row: an outcome, or the reason why there is none."""

    row: Row
    outcome: dict[str, Any] | None
    why: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that is no row: its text, and why."""

    text: str
    why: str


@dataclass(slots=True)
class Tally:
    """How many were graded, by grader, and why the others were not."""

    rows: int = 0
    outcomes: int = 0
    by_grader: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def ungraded(self, place: str, why: str) -> None:
        """Counts a row that could not be graded. Reasons are counted without what is particular to one row."""
        kind = why.removeprefix(f"{CANNOT_GRADE}: ").split(" (")[0].split(":")[0]
        kind = " ".join(word for word in kind.split() if not any(mark in word for mark in "'\"{[0123456789"))
        self.reasons[kind] += 1
        self.examples.setdefault(kind, f"first at {place}: {why[:160]}")

    def lines(self) -> list[str]:
        """The tally as text."""
        graders = ", ".join(f"{count:,} by {name}" for name, count in sorted(self.by_grader.items()))
        text = [f"{self.rows:,} rows read, {self.outcomes:,} outcomes" + (f" ({graders})" if graders else "")]
        return text + [f"  {count:,} {kind}: {self.examples[kind]}" for kind, count in sorted(self.reasons.items())]


@dataclass(frozen=True, slots=True)
class Grading:
    """How rows are graded. `judge` is None where none was named."""

    default: str | None = None
    """The grader of rows that name none."""
    judge: AskJudge | None = None
    limits: Limits = field(default_factory=Limits)
    jobs: int = 2
    """Programs and judge's calls under way at once."""

    async def run(
        self, rows: Iterable[tuple[str, Row | Unreadable]], tally: Tally
    ) -> AsyncIterator[tuple[str, Graded]]:
        """Every row with its place and what became of it, in order; preferences, which need each other, last.

        Memory holds `jobs` rows and the preferences.
        """
        waiting: deque[tuple[str, asyncio.Task[Graded]]] = deque()
        comparisons: list[tuple[str, Row]] = []
        try:
            for place, row in rows:
                tally.rows += 1
                if isinstance(row, Unreadable):
                    kept = {"place": place, "text": row.text}
                    yield self._count(tally, place, Graded(kept, None, f"unreadable: {row.why}"))
                elif self._name(row) == "preferences":
                    comparisons.append((place, row))
                else:
                    waiting.append((place, asyncio.create_task(self._grade(row))))
                    if len(waiting) >= self.jobs:
                        first, task = waiting.popleft()
                        yield self._count(tally, first, await task)
            while waiting:
                first, task = waiting.popleft()
                yield self._count(tally, first, await task)
        finally:
            for _, task in waiting:
                task.cancel()
        for place, graded in _preferences(comparisons):
            yield self._count(tally, place, graded)

    def _count(self, tally: Tally, place: str, graded: Graded) -> tuple[str, Graded]:
        if graded.outcome is None:
            tally.ungraded(place, graded.why)
        else:
            tally.outcomes += 1
            tally.by_grader[self._name(graded.row)] += 1
        return place, graded

    def _name(self, row: Row) -> str:
        """The grader of a row: what it names, else what its keys call for, else the default, else what `answer` is."""
        named = row.get("grader")
        if isinstance(named, str) and named:
            return named
        for key, name in (("preferred", "preferences"), ("tests", "code"), ("schema", "schema"), ("choices", "choice")):
            if row.get(key) is not None:
                return name
        if self.default is not None:
            return self.default
        answer = _text(row.get("answer"))
        if answer is None:
            return ""
        number = parse(boxed(answer) or answer)
        # "12 Monkeys" is a text: what follows a number must be a unit that is known.
        return "numeric" if number is not None and (number.unit is None or number.kind is not None) else "exact"

    async def _grade(self, row: Row) -> Graded:
        problem = _incomplete(row)
        grade = cannot_grade(problem) if problem is not None else await self._score(self._name(row), row)
        return Graded(row, None if grade.score is None else _outcome(row, grade.score), grade.reason)

    async def _score(self, name: str, row: Row) -> Grade:
        output, answer = row["output"], _text(row.get("answer"))
        if name == "judge":
            if self.judge is None:
                return cannot_grade("no judge was named")
            prompt = row["prompt"] if isinstance(row.get("prompt"), str) else transcript(turns_of(row["messages"]))
            return await self.judge(prompt, output, answer)
        if name == "code":
            if not isinstance(row.get("tests"), str):
                return cannot_grade("the row has no tests")
            return await asyncio.to_thread(grade_code, output, row["tests"], limits=self.limits)
        if name == "schema":
            if not isinstance(row.get("schema"), dict):
                return cannot_grade("the row has no schema that is an object")
            return await asyncio.to_thread(grade_schema, output, row["schema"])
        if name not in ("numeric", "exact", "choice"):
            said = f"the row names the grader {name!r}" if name else "the row names no grader and has no answer"
            return cannot_grade(f"{said}; known are {', '.join(GRADERS)}")
        if answer is None:
            return cannot_grade("the row has no answer that is a text or a number")
        if name == "choice":
            return _choice(output, answer, row.get("choices"))
        return grade_numeric(output, answer) if name == "numeric" else grade_exact(output, answer)


def _incomplete(row: Row) -> str | None:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        try:
            turns_of(row.get("messages") or [])
        except InputError:
            return "the row has no prompt, and no messages that can be read"
    for key in ("model", "output"):
        if not isinstance(row.get(key), str) or (key == "model" and not row[key].strip()):
            return f"the row has no {key} that is a text"
    return None


def _choice(output: str, answer: str, choices: object) -> Grade:
    """The reference may be a letter, or the text of one of the options."""
    if choices is None:
        return grade_choice(output, answer)
    if isinstance(choices, str):
        return grade_choice(output, answer, letters=choices.upper())
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        return cannot_grade("choices is neither a text of letters nor a list of 2 to 26 options")
    letters = ascii_uppercase[: len(choices)]
    texts = [_text(choice) for choice in choices]
    if texts.count(answer) == 1:
        answer = letters[texts.index(answer)]
    return grade_choice(output, answer, letters=letters, options=[text or "" for text in texts])


def _outcome(row: Row, score: float) -> dict[str, Any]:
    """The row as an outcome: what identifies it, the score, and what else `onebeat train` reads."""
    asked = {"prompt": row["prompt"]} if isinstance(row.get("prompt"), str) else {"messages": row["messages"]}
    passed = {key: row[key] for key in OPTIONAL if row.get(key) is not None}
    return {**asked, "model": row["model"], "score": score, **passed}


def _preferences(rows: list[tuple[str, Row]]) -> Iterable[tuple[str, Graded]]:
    """One outcome for every (prompt, model) that was compared, and the comparisons that could not be used."""
    comparisons: list[Comparison] = []
    asked: dict[str, tuple[str, Row]] = {}
    for place, row in rows:
        found = _comparison(row)
        if isinstance(found, str):
            yield place, Graded(row, None, f"{CANNOT_GRADE}: {found}")
        else:
            comparisons.append(found)
            asked.setdefault(found.prompt, (place, row))
    if not comparisons:
        return
    scored, scores, problem = _scores(comparisons)
    for place, row in rows:
        found = _comparison(row)
        if isinstance(found, str) or (found.first in scored and problem is None):
            continue
        others = ", ".join(sorted(scored - {found.first, found.second})) or "the other models"
        apart = (
            f"{found.first} and {found.second} were never compared with {others[:80]}, not even through others, so no "
            "common scale holds them; add comparisons that link them"
        )
        yield place, Graded(row, None, f"{CANNOT_GRADE}: {problem if found.first in scored else apart}")
    for (key, model), score in scores.items():
        place, row = asked[key]
        passed = {name: row[name] for name in ("prompt", "messages", "group", "time") if row.get(name) is not None}
        outcome = _outcome(passed | {"model": model}, round(score, 6))
        yield place, Graded({**row, "grader": "preferences"}, outcome, "preferences")


def _scores(
    comparisons: list[Comparison],
) -> tuple[frozenset[str], dict[tuple[str, str], float], str | None]:
    """(models, scores, what keeps them from being scored) of the linked models with most comparisons: what nothing
    links is on no common scale. No models where two such groups have equally many."""
    groups = linked_groups(comparisons)
    sizes = [sum(one.first in group for one in comparisons) for group in groups]
    if sizes[1:2] == sizes[:1]:
        return frozenset(), {}, None
    try:
        return groups[0], score_preferences([one for one in comparisons if one.first in groups[0]]).scores, None
    except InputError as error:
        return groups[0], {}, str(error)


def _comparison(row: Row) -> Comparison | str:
    """A row's comparison, or what is wrong with it."""
    problem = _incomplete(dict(row) | {"model": "any", "output": ""})
    if problem is not None:
        return problem
    first, second, preferred = row.get("first"), row.get("second"), row.get("preferred")
    if not isinstance(first, str) or not isinstance(second, str) or not first or first == second:
        return "first and second are not the names of two models"
    words: dict[object, float] = {"first": 1.0, first: 1.0, "second": 0.0, second: 0.0, "tie": 0.5}
    value = words.get(preferred) if isinstance(preferred, str) else preferred
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return "preferred is neither 0 to 1, first, second, tie, nor one of the two models"
    key = msgspec.json.encode(row.get("prompt") or row.get("messages"), order="sorted").decode()
    return Comparison(key, first, second, float(value))


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None
