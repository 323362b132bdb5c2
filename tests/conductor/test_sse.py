"""The SSE parser: every line ending, every split, bounds, and what the standard says of odd fields."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebeat.conductor.sse import EventTooLargeError, ServerSentEvent, SSEParser


def parse(*pieces: bytes, max_event_bytes: int = 1 << 20) -> list[ServerSentEvent]:
    parser = SSEParser(max_event_bytes)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close()


def reference(body: bytes) -> list[ServerSentEvent]:
    """The standard, step by step, on the whole body at once (with our dispatch at the end)."""
    text = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, kind = [], [], b""
    for line in [*text.split(b"\n"), b""]:
        if line == b"":
            if data:
                events.append(ServerSentEvent(b"\n".join(data), kind or b"message"))
            data, kind = [], b""
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
    return events


WORDS = [
    "data",
    ":",
    " ",
    "event: x",
    "data: a",
    ": ping",
    "id: 7",
    "retry: 10",
    "é🦉",
    "data:",
    "\x00",
    "data: [DONE]",
]
WORDS += ["\ufeff", "\n", "\r", "\r\n", "\n\n"]
PIECES = st.sampled_from([word.encode() for word in WORDS])


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 60), max_size=12))
def test_any_split_of_any_bytes_gives_what_the_standard_says(body: bytes, cuts: list[int]) -> None:
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(*pieces) == reference(body)


@settings(max_examples=50, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_byte_by_byte_is_the_same_as_at_once(body: bytes) -> None:
    assert parse(*[body[i : i + 1] for i in range(len(body))]) == parse(body)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_endings(end: bytes) -> None:
    body = end.join([b"event: delta", b"data: one", b"data: two", b"", b": comment", b"data:three", b"", b""])
    assert parse(body) == [ServerSentEvent(b"one\ntwo", b"delta"), ServerSentEvent(b"three")]


def test_carriage_return_and_line_feed_in_two_pieces_are_one_line_end() -> None:
    assert parse(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [ServerSentEvent(b"a\nb")]


def test_a_character_split_between_pieces_survives() -> None:
    owl = "🦉".encode()
    (event,) = parse(b"data: " + owl[:2], owl[2:] + b"\n\n")
    assert event.data.decode() == "🦉"


def test_bom_is_dropped_at_the_start_only_even_when_split() -> None:
    bom = b"\xef\xbb\xbf"
    assert parse(bom[:1], bom[1:2], bom[2:] + b"data: a\n\n") == [ServerSentEvent(b"a")]
    assert parse(b"data: " + bom + b"\n\n") == [ServerSentEvent(bom)]


def test_an_event_without_data_is_no_event_and_its_type_is_forgotten() -> None:
    assert parse(b"event: ping\n\ndata: a\n\n") == [ServerSentEvent(b"a")]


def test_an_empty_data_line_is_an_event_with_no_data() -> None:
    assert parse(b"data\n\n", b"data:\ndata:\n\n") == [ServerSentEvent(b""), ServerSentEvent(b"\n")]


def test_id_and_retry_are_remembered_and_bad_ones_ignored() -> None:
    parser = SSEParser()
    parser.feed(b"id: 7\nretry: 250\n\nid: 8\0\nretry: soon\n\n")
    assert (parser.last_id, parser.retry_ms) == (b"7", 250)


def test_the_end_of_the_body_dispatches_what_has_no_blank_line() -> None:
    assert parse(b"data: a") == [ServerSentEvent(b"a")]
    assert parse(b"data: a\n") == [ServerSentEvent(b"a")]
    assert parse(b"data: a\n\n") == [ServerSentEvent(b"a")]


@pytest.mark.parametrize("piece_bytes", [1_000, 65_536, 11_000_000])
def test_a_ten_megabyte_event_takes_linear_time(piece_bytes: int) -> None:
    body = b"data: " + b"x" * 10_000_000 + b"\n\n"
    begun = time.perf_counter()
    (event,) = parse(*[body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes)], max_event_bytes=1 << 25)
    assert len(event.data) == 10_000_000
    assert time.perf_counter() - begun < 2.0, "copying the held line again with each piece is quadratic"


def test_an_event_over_its_bound_is_refused_in_one_line_or_in_many() -> None:
    with pytest.raises(EventTooLargeError, match="over 1000 bytes"):
        parse(b"data: " + b"x" * 600, b"x" * 600, max_event_bytes=1000)
    with pytest.raises(EventTooLargeError):
        parse(*[b"data: " + b"x" * 100 + b"\n"] * 12, max_event_bytes=1000)
    assert len(parse(*[b"data: " + b"x" * 900 + b"\n\n"] * 5, max_event_bytes=1000)) == 5
