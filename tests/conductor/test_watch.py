"""Every detector finds its fault, is silent on its look-alike, and stays within its price per chunk."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.answers import Answer, Finished, FinishReason, StreamEvent, TextDelta, ToolCallDelta, Usage
from onebeat.conductor.config import WatchSection
from onebeat.conductor.records import Text, ToolCall
from onebeat.conductor.watch import Detector, Finding, Watch, loop_in, watch_answer

ALL_ACT = WatchSection(**dict.fromkeys(Detector, "act"))  # type: ignore[arg-type]
STOP = Finished(FinishReason.STOP, "stop")


def findings(*events: StreamEvent, tokens: int | None = None, **options: object) -> dict[Detector, Finding]:
    watch = Watch(ALL_ACT, **options)  # type: ignore[arg-type]
    found = [finding for event in events if (finding := watch.feed(event)) is not None] + watch.finish(tokens)
    assert len({f.detector for f in found}) == len(found)
    return {finding.detector: finding for finding in found}


def text(*pieces: str) -> list[StreamEvent]:
    return [TextDelta(piece) for piece in pieces]


def test_empty_and_blank() -> None:
    assert set(findings(STOP)) == {Detector.EMPTY}
    assert "white space" in findings(*text(" ", "\n\n"), STOP)[Detector.EMPTY].detail
    assert not findings(*text(" ", "4"), STOP)
    assert not findings(ToolCallDelta(0, "c", "f", "{}"), Finished(FinishReason.TOOL_CALLS, "tool_calls"))
    assert not findings(Finished(FinishReason.CONTENT_FILTER, "content_filter"))


@pytest.mark.parametrize("unit", ["very ", "I think that I should. ", "The answer is unclear. " * 8, "好的", "ab"])
@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_a_loop_is_found_while_it_runs(unit: str, chunk: int) -> None:
    whole = "A reasonable beginning that says something sensible first. " + unit * (4000 // len(unit))
    watch, found_at = Watch(ALL_ACT), None
    for at in range(0, len(whole), chunk):
        finding = watch.feed(TextDelta(whole[at : at + chunk]))
        if finding is not None:
            assert finding.detector is Detector.REPETITION and finding.act
            found_at = at + chunk
            break
    assert found_at is not None and found_at < 60 + max(900, 5 * len(unit)) + 256 + chunk


def test_rulers_tables_and_lists_are_no_loops() -> None:
    table = "".join(f"| {i} | {i * i} | no |\n" for i in range(120))
    ruler = "-" * 800 + "\nTitle\n" + "=" * 400 + "\n"
    code = "".join(f"    self.field_{i} = field_{i}\n" for i in range(60))
    zeros = "[" + ", ".join(["0"] * 100) + "]"
    for good in (table, ruler, code, zeros, " " * 1000 + "x"):
        assert not findings(*text(*[good[i : i + 5] for i in range(0, len(good), 5)]), STOP), good[:40]


@given(st.text(min_size=1, max_size=200), st.integers(4, 40))
def test_loops_are_exact(unit: str, times: int) -> None:
    found = loop_in((unit * times)[-4096:])
    if found is not None:
        period, repeated = found
        tail = (unit * times)[-4096:]
        assert tail.endswith(tail[-period:] * repeated)


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as an AI I am unable to do so.",
        "I cannot assist with this request.",
        "As an AI language model, I cannot browse.",
        "Sorry, I can't help with that request.",
        "I'm unable to provide medical advice.",
        "I must decline.",
    ],
)
def test_refusals(said: str) -> None:
    assert Detector.REFUSAL in findings(*text(said), STOP)


@pytest.mark.parametrize(
    "said",
    [
        "I can't believe it: the answer is 4!",
        "Sorry to hear that. Here is what helps: sleep.",
        "The function cannot provide a value, because x is None.",
        "I cannot stress enough how simple this is: 4.",
        "\"I'm sorry, but I can't\" is what the clerk in the story says.",
    ],
)
def test_what_only_sounds_like_a_refusal(said: str) -> None:
    assert not findings(*text(said), STOP)


def test_a_vendors_own_refusal_counts() -> None:
    assert Detector.REFUSAL in findings(TextDelta("No.", is_refusal=True), STOP)
    assert set(findings(Finished(FinishReason.REFUSAL, "refusal"))) == {Detector.REFUSAL}


def test_truncated_json() -> None:
    assert Detector.TRUNCATED_JSON in findings(*text('{"a": [1, 2'), STOP, wants_json=True)
    assert not findings(*text('{"a": ', "[1, 2]}\n"), STOP, wants_json=True)
    assert Detector.TRUNCATED_JSON not in findings(*text('{"a": [1, 2'), STOP)


def test_truncated_answers() -> None:
    assert Detector.TRUNCATED_ANSWER in findings(*text("It follows that the"), STOP)
    assert not findings(*text("It follows that the sum is 4"), STOP)
    limit = Finished(FinishReason.LENGTH, "length")
    assert not findings(*text("one two the"), limit, tokens=100, max_output_tokens=100)
    early = findings(*text("one two"), limit, tokens=10, max_output_tokens=100)
    assert not early[Detector.TRUNCATED_ANSWER].act
    assert not findings(*text("one two"), limit)[Detector.TRUNCATED_ANSWER].act


def test_tool_calls() -> None:
    called = Finished(FinishReason.TOOL_CALLS, "tool_calls")
    whole = [ToolCallDelta(0, "c", "f", '{"a"'), ToolCallDelta(1, "d", "g"), ToolCallDelta(0, arguments=": 1}")]
    assert not findings(*whole, called)
    assert Detector.UNCLOSED_TOOL_CALL in findings(*whole[:2], called)
    assert Detector.UNCLOSED_TOOL_CALL in findings(*text("x"), Finished(FinishReason.MALFORMED_TOOL_CALL, "m"))
    assert set(findings(*whole, STOP)) == {Detector.WRONG_FINISH}
    assert set(findings(*text("x"), called)) == {Detector.WRONG_FINISH}
    assert set(findings(*text("x"), Finished(FinishReason.UNKNOWN, "odd"))) == {Detector.WRONG_FINISH}


def test_garbage() -> None:
    assert Detector.GARBAGE in findings(*text("ok so far \ufffd\ufffd\x01\x02"), STOP)
    assert Detector.GARBAGE in findings(*text("\ufffd", "\ufffd", "\ufffd"), STOP)
    assert not findings(*text("one \ufffd is not garbage. " + "It is one of many letters. " * 4), STOP)
    assert not findings(*text("tabs\tand\r\nnewlines\f, emoji 👩‍👩‍👧, العربية, 日本語\u2028"), STOP)


def test_modes() -> None:
    for mode, expected in (("off", None), ("report", False), ("act", True)):
        found = Watch(WatchSection(empty=mode)).finish()  # type: ignore[arg-type]
        found = [f for f in found if f.detector is Detector.EMPTY]
        assert (found[0].act if found else None) is expected


def test_a_whole_answer_is_watched_like_a_stream() -> None:
    def answer(*parts: Text | ToolCall, finish: FinishReason = FinishReason.STOP) -> Answer:
        return Answer("i", "m", parts, finish, finish.value, Usage(1, 1))

    assert watch_answer(answer(Text("fine.")), Watch(ALL_ACT)) == []
    assert [f.detector for f in watch_answer(answer(), Watch(ALL_ACT))] == [Detector.EMPTY]
    loop = "x" * 5000 + "and so it goes on. " * 2000 + "The end, and something else altogether. " + "y. " * 3
    assert Detector.REPETITION in {f.detector for f in watch_answer(answer(Text(loop)), Watch(ALL_ACT))}
    call = answer(ToolCall("c", "f", "{"), finish=FinishReason.TOOL_CALLS)
    assert [f.detector for f in watch_answer(call, Watch(ALL_ACT))] == [Detector.UNCLOSED_TOOL_CALL]


@given(st.lists(st.text(max_size=40), max_size=40), st.booleans())
def test_no_text_breaks_it(pieces: list[str], wants_json: bool) -> None:
    findings(*text(*pieces), STOP, wants_json=wants_json)


def test_the_price_of_a_chunk() -> None:
    words = [f"word{i % 977} " for i in range(20_000)]
    events = [TextDelta(word) for word in words]
    watch = Watch(ALL_ACT)
    started = time.process_time()
    for event in events:
        watch.feed(event)
    # Measured 1.1 us; 20 us leaves room for a busy machine and still catches work that grows with the answer.
    assert (time.process_time() - started) / len(events) < 20e-6


def test_json_depth_does_not_break_it() -> None:
    deep = "[" * 100_000
    assert Detector.TRUNCATED_JSON in findings(*text(deep), STOP, wants_json=True)
    assert msgspec.json.encode(Finding(Detector.EMPTY, "d", True)) == b'{"detector":"empty","detail":"d","act":true}'


def test_good_answers_raise_no_alarm() -> None:
    for good in (
        "The answer is 42.",
        "First, 3 x 4 = 12.\nThen, 12 + 5 = 17.\n\n#### 17",
        "| a | b |\n|---|---|\n" + "".join(f"| {i} | {i * 7} |\n" for i in range(100)),
        "```python\nfor i in range(10):\n    print(i)\n```",
        "\n".join(f"{i}. Item number {i} of a long list that has many items in it." for i in range(1, 80)),
    ):
        assert not findings(*text(*[good[at : at + 4] for at in range(0, len(good), 4)]), STOP), good[:40]
