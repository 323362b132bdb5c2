"""`onebeat grade`: rows go to the grader that they call for; what cannot be graded is kept, never scored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from onebeat.cli import main
from onebeat.conductor.learning.graders.code import Limits
from onebeat.conductor.learning.graders.grade import Grade
from onebeat.conductor.learning.graders.numeric import grade_numeric
from onebeat.conductor.learning.graders.rows import Graded, Grading, Tally, Unreadable
from onebeat.conductor.learning.graders.schema import grade_schema
from onebeat.conductor.learning.sources import read_outcomes
from tests.conductor.learning.graders.test_preferences_and_judge import completion

ASKED = {"prompt": "What is 6 times 7?", "model": "m"}


def graded(rows: list[Any], **settings: Any) -> tuple[list[Graded], Tally]:
    tally = Tally()

    async def collect() -> list[Graded]:
        places = ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return [found async for _, found in Grading(**settings).run(places, tally)]

    return asyncio.run(collect()), tally


SCORED: list[tuple[dict[str, Any], float]] = [
    ({"output": "It is 42.", "answer": "42"}, 1.0),
    ({"output": "It is 41.", "answer": 42}, 0.0),
    ({"output": "The answer is Paris", "answer": "paris"}, 1.0),
    ({"output": "The answer is 42", "answer": "42", "grader": "exact"}, 1.0),
    ({"output": "The answer is (B).", "answer": "B", "choices": ["fish", "fowl"]}, 1.0),
    ({"output": "The answer is (B).", "answer": "fowl", "choices": ["fish", "fowl"]}, 1.0),
    ({"output": "A", "answer": "B", "choices": "ABCD"}, 0.0),
    ({"output": "12 Monkeys", "answer": "12 Angry Men"}, 0.0),
    ({"output": "12 Angry Men", "answer": "12 Monkeys"}, 0.0),
    ({"output": "12 monkeys", "answer": "12 Monkeys"}, 1.0),
    ({"output": "It is 2.5 km.", "answer": "2500 m"}, 1.0),
    ({"output": "The answer is 0.5", "answer": "$\\frac{1}{2}$"}, 1.0),
    ({"output": '{"a": 1}', "schema": {"type": "object", "required": ["a"]}}, 1.0),
    ({"output": "[]", "schema": {"type": "object"}}, 0.0),
]


@pytest.mark.parametrize(("row", "score"), SCORED)
def test_a_row_goes_to_the_grader_that_it_calls_for(row: dict[str, Any], score: float) -> None:
    found, tally = graded([ASKED | row])
    assert found[0].outcome == {"prompt": "What is 6 times 7?", "model": "m", "score": score}
    assert (tally.rows, tally.outcomes, sum(tally.reasons.values())) == (1, 1, 0)


UNGRADED: list[tuple[Any, str]] = [
    (Unreadable("{", "not JSON"), "unreadable: not JSON"),
    ({}, "no prompt, and no messages"),
    ({"messages": [{"content": "no role"}], "model": "m", "output": ""}, "no prompt, and no messages"),
    ({"prompt": "p", "output": "42", "answer": "42"}, "the row has no model"),
    (ASKED | {"answer": "42"}, "the row has no output that is a text"),
    (ASKED | {"output": "42"}, "names no grader and has no answer; known are numeric, exact"),
    (ASKED | {"output": "42", "grader": "vibes"}, "names the grader 'vibes'; known are"),
    (ASKED | {"output": "42", "grader": "numeric"}, "no answer that is a text or a number"),
    (ASKED | {"output": "who knows", "answer": "42"}, "its last line holds no number"),
    (ASKED | {"output": "A or B", "answer": "C", "choices": ["x", "y"]}, "is not one of AB"),
    (ASKED | {"output": "A", "answer": "A", "choices": 3}, "choices is neither"),
    (ASKED | {"output": "{}", "schema": "object"}, "no schema that is an object"),
    (ASKED | {"output": "{}", "schema": {"required": 3}}, "the schema itself is wrong"),
    (ASKED | {"output": "x", "grader": "code"}, "the row has no tests"),
    (ASKED | {"output": "x", "grader": "judge"}, "no judge was named"),
    (ASKED | {"first": "a", "second": "a", "preferred": 1}, "not the names of two models"),
    (ASKED | {"first": "a", "second": "b", "preferred": 7}, "preferred is neither"),
    (ASKED | {"first": "a", "second": "b", "preferred": "tie"}, "1 comparisons are too few"),
]


@pytest.mark.parametrize(("row", "why"), UNGRADED)
def test_what_cannot_be_graded_has_a_reason_and_no_score(row: Any, why: str) -> None:
    found, tally = graded([row])
    assert found[0].outcome is None and why in found[0].why
    assert tally.outcomes == 0 and sum(tally.reasons.values()) == 1
    assert any("first at row 1: " in line for line in tally.lines())


def test_numbers_beyond_every_float_are_no_answers() -> None:
    for huge in ("9" * 5000, "1e9999999999", "1e299999", "3/" + "7" * 5000, "0." + "1" * 5000):
        assert grade_numeric(huge, "42").score is None
        assert grade_numeric("42", huge).score is None
    assert grade_numeric("1e200", "10^200").score is not None or grade_numeric("1e200", "1e200").score == 1.0


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "("},
        {"multipleOf": 0},
        {"enum": 5},
        {"properties": {"a": 3}},
        {"items": 3},
        {"minimum": "low"},
        {"type": 3},
    ],
)
def test_a_schema_that_is_none_cannot_be_graded_by(schema: dict[str, Any]) -> None:
    assert [grade_schema(answer, schema).score for answer in ('"text"', "4", "[1]", '{"a": 1}')].count(None) >= 1


def test_programs_run_side_by_side_and_their_tests_decide() -> None:
    output = "```python\ndef twice(x):\n    return 2 * x\n```"
    rows = [ASKED | {"output": output, "tests": f"assert twice(2) == {wanted}"} for wanted in (4, 5, 4)]
    found, tally = graded(rows, limits=Limits(required=()), jobs=3)
    assert [row.outcome["score"] for row in found if row.outcome] == [1.0, 0.0, 1.0]
    assert tally.by_grader == {"code": 3}


def test_order_is_kept_and_what_train_reads_is_passed_on() -> None:
    async def slow(prompt: str, answer: str, reference: str | None) -> Grade:
        await asyncio.sleep(0.02 if answer == "first" else 0.0)
        return Grade(0.7, f"{prompt}/{answer}/{reference}")

    messages = [{"role": "user", "content": "Hello"}]
    rows = [
        {"messages": messages, "model": "a", "output": "first", "group": "g", "output_tokens": 3, "cost_usd": None},
        ASKED | {"output": "second", "answer": "42", "weight": 2},
        ASKED | {"output": "42", "answer": "42", "grader": "numeric"},
    ]
    found, tally = graded(rows, default="judge", judge=slow, jobs=2)
    assert [row.why for row in found] == ["Hello/first/None", "What is 6 times 7?/second/42", "42"]
    assert found[0].outcome == {"messages": messages, "model": "a", "score": 0.7, "output_tokens": 3, "group": "g"}
    assert found[1].outcome is not None and found[1].outcome["weight"] == 2
    assert tally.by_grader == {"judge": 2, "numeric": 1}


def test_preferences_are_scored_together() -> None:
    rows = [
        {"prompt": f"p{number % 3}", "first": "a", "second": "b", "preferred": preferred, "group": "votes"}
        for number, preferred in enumerate(["a", "first", 1, 0.5, "tie", "second", "a", "a", True])
    ]
    found, tally = graded(rows)
    scores = {(row.outcome["prompt"], row.outcome["model"]): row.outcome["score"] for row in found if row.outcome}
    assert len(scores) == 6 and all(scores[f"p{n}", "a"] > scores[f"p{n}", "b"] for n in range(2))
    assert tally.by_grader == {"preferences": 6} and tally.rows == 9
    assert [row.why for row in found if row.outcome is None] == [
        "cannot grade: preferred is neither 0 to 1, first, second, tie, nor one of the two models"
    ]


def test_a_stray_pair_does_not_take_the_other_comparisons_with_it() -> None:
    votes = [{"prompt": f"p{number}", "first": "a", "second": "b", "preferred": "a"} for number in range(5)]
    stray = {"prompt": "q", "first": "c", "second": "d", "preferred": "c"}
    found, tally = graded([stray, *votes])
    assert tally.by_grader == {"preferences": 10}
    left = [row for row in found if row.outcome is None]
    assert [row.row for row in left] == [stray]
    assert "c and d were never compared with a, b" in left[0].why
    even, tally = graded([votes[0], stray])
    assert tally.outcomes == 0 and len(even) == 2


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_the_command_writes_outcomes_that_train_reads_and_keeps_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ASKED | {"output": "42", "answer": "42", "group": "sums"},
        "{broken",
        ASKED | {"output": "?", "answer": "42"},
    ]
    source = write(tmp_path / "raw.jsonl", [*rows, ASKED | {"model": "n", "output": "7", "answer": "42"}])
    output, left = tmp_path / "outcomes.jsonl", tmp_path / "left.jsonl"
    assert main(["grade", source, "--output", str(output)]) == 0
    printed = capsys.readouterr()
    assert "4 rows read, 2 outcomes (2 by numeric)" in printed.err
    assert "1 its last line holds no number: first at raw.jsonl:3" in printed.err
    assert "2 rows cannot be graded and are in no file: --ungraded FILE keeps them" in printed.out
    table = read_outcomes([output])
    assert (table.models, table.groups) == (("m", "n"), ("sums",)) and table.score.tolist() == [[1.0, 0.0]]
    assert main(["grade", source, "--output", str(output)]) == 2
    assert "which is there already; name a new file" in capsys.readouterr().err
    output.unlink()
    assert main(["grade", source, "--output", str(output), "--ungraded", str(left)]) == 0
    kept = [json.loads(line) for line in left.read_text().splitlines()]
    assert (
        (kept[0]["place"], kept[0]["text"]) == ("raw.jsonl:2", "{broken")
        and kept[1]["output"] == "?"
        and "no number" in kept[1]["why"]
    )
    assert main(["grade", str(left), "--output", str(tmp_path / "none.jsonl")]) == 2
    assert not (tmp_path / "none.jsonl").exists()


FLEET = """
[providers.one]
kind = "openai"
base_url = "{url}"
api_key_env = "JUDGE_KEY"
[models.referee]
provider = "one"
upstream = "judge-1"
context_tokens = 8192
input_usd_per_million = 1
output_usd_per_million = 1
"""


@asynccontextmanager
async def vendor(asked: list[dict[str, Any]]) -> AsyncIterator[str]:
    """A judge on loopback that believes everybody but echoes its key where it is asked of 13."""

    async def serve(request: web.Request) -> web.Response:
        asked.append(await request.json())
        if "13" in json.dumps(asked[-1]["messages"]):
            key = request.headers["Authorization"]
            return web.json_response({"error": {"message": f"bad key {key}", "type": "auth"}}, status=401)
        return web.json_response(completion('{"score": 8, "reason": "mostly"}'))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("how", ["fleet", "url"])
async def test_a_judge_is_reached_through_a_fleet_or_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-of-the-judge")
    rows = [ASKED | {"output": "forty-two"}, ASKED | {"prompt": "And 13?", "output": "odd"}]
    source, asked = write(tmp_path / "raw.jsonl", rows), []
    output, left = tmp_path / "judged.jsonl", tmp_path / "left.jsonl"
    async with vendor(asked) as url:
        if how == "fleet":
            (tmp_path / "fleet.toml").write_text(FLEET.format(url=url))
            to = ["--judge", "referee", "--fleet", str(tmp_path / "fleet.toml")]
        else:
            to = ["--judge", "judge-1", "--judge-url", url, "--judge-key-env", "JUDGE_KEY"]
        command = ["grade", source, "--grader", "judge", *to, "--output", str(output), "--ungraded", str(left)]
        assert await asyncio.to_thread(main, command) == 0
    assert [body["model"] for body in asked] == ["judge-1", "judge-1"]
    assert [json.loads(line)["score"] for line in output.read_text().splitlines()] == [0.8]
    assert "answered 401" in left.read_text() and "secret" not in left.read_text()


MISTAKES: list[tuple[list[str], str]] = [
    (["--grader", "numerc"], "--grader is 'numerc'; the nearest known one is 'numeric'"),
    (["--grader", "judge"], "no judge is named; give --judge MODEL with --fleet or --judge-url"),
    (["--judge", "m"], "--judge m needs one of --fleet and --judge-url"),
    (["--judge", "m", "--judge-url", "ftp://x"], "--judge-url is 'ftp://x'; give http(s)://HOST"),
    (["--judge", "m", "--judge-url", "http://x", "--judge-kind", "opnai"], "--judge-kind is 'opnai'; the nearest"),
    (["--judge", "m", "--judge-url", "http://x", "--judge-key-env", "NOT_SET_HERE"], "lacks NOT_SET_HERE"),
    (["--jobs", "0"], "--jobs is 0; it must be a whole number of 1 to 256"),
    (["--isolation", "net"], "--isolation names 'net'"),
    (["--ungraded", "{output}"], "are both"),
    (["nowhere.jsonl"], "there is no file nowhere.jsonl"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_end_in_one_sentence_and_no_file(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "raw.jsonl", [ASKED | {"output": "42", "answer": "42"}]), tmp_path / "out.jsonl"
    arguments = [argument.replace("{output}", str(output)) for argument in arguments]
    assert main(["grade", source, *arguments, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("onebeat: ") == 1 and not output.exists()


def test_a_mark_of_the_byte_order_is_no_part_of_a_row(tmp_path: Path) -> None:
    row = json.dumps(ASKED | {"output": "42", "answer": "42"})
    (tmp_path / "raw.jsonl").write_text(row + "\n", encoding="utf-8-sig")
    assert main(["grade", str(tmp_path / "raw.jsonl"), "--output", str(tmp_path / "o.jsonl")]) == 0


def test_empty_files_and_binary_garbage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "garbage.jsonl").write_bytes(bytes(range(256)) * 20)
    assert main(["grade", str(tmp_path / "empty.jsonl"), "--output", str(tmp_path / "a")]) == 2
    assert "holds no rows; give one JSON object per line" in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "garbage.jsonl"), "--output", str(tmp_path / "b")]) == 2
    printed = capsys.readouterr()
    assert "no row could be graded" in printed.out and "unreadable" in printed.err
    assert main(["grade", str(tmp_path), "--output", str(tmp_path / "c")]) == 2
    assert f"{tmp_path} is a folder; give files of raw answers" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in "abc")
