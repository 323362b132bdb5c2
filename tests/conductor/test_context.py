"""Tokens are counted well enough to fit windows; only whole turns are dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.context import MESSAGE_TOKENS, TokenScale, drop_oldest, size_of, turns_of
from onebeat.conductor.records import (
    ChatRequest,
    Media,
    MediaKind,
    Message,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    WireFormat,
)


def message(role: Role, text: str) -> Message:
    return Message(role, (Text(text),))


def request(*messages: Message, **fields: object) -> ChatRequest:
    return ChatRequest(WireFormat.OPENAI, "auto", messages, **fields)  # type: ignore[arg-type]


CALL = Message(Role.ASSISTANT, (ToolCall("c1", "look", '{"at": 1}'),))
RESULT = Message(Role.TOOL, (ToolResult("c1", (Text("seen"),)),))


def test_english_and_chinese_are_about_right() -> None:
    english = "The quick brown fox jumps over the lazy dog. " * 100  # 1,001 tokens with o200k_base
    assert 950 <= size_of(request(message(Role.USER, english))).tokens(3.8) <= 1250
    chinese = "敏捷的棕色狐狸跳过了懒狗。" * 100  # 13 characters, 10 to 14 tokens with current tokenizers
    assert 1000 <= size_of(request(message(Role.USER, chinese))).tokens(3.8) <= 1600


def test_images_tools_and_frames_count() -> None:
    bare = size_of(request(message(Role.USER, "hi"))).tokens(3.8)
    assert bare == int(2 / 3.8 + MESSAGE_TOKENS) + 1
    pictured = request(Message(Role.USER, (Text("hi"), Media(MediaKind.IMAGE, url="https://x/y.png"))))
    assert size_of(pictured).tokens(3.8) > bare + 900
    tooled = request(message(Role.USER, "hi"), tools=(Tool("look", "d" * 380),))
    assert size_of(tooled).tokens(3.8) > bare + 100


def test_the_scale_converges_on_the_models_own_count() -> None:
    scale = TokenScale()
    for _ in range(200):
        scale.learn(int(1000 * scale.ratio), 1300)
    assert 1.28 < scale.ratio < 1.32
    for _ in range(500):
        scale.learn(int(1000 * scale.ratio), 10**9)
    assert scale.ratio <= 4.0
    before = scale.ratio
    scale.learn(10, 30)
    assert scale.ratio == before


def test_turns_hold_calls_and_their_results_together() -> None:
    messages = [
        message(Role.SYSTEM, "s"),
        message(Role.USER, "1"),
        CALL,
        RESULT,
        message(Role.ASSISTANT, "a"),
        message(Role.USER, "2"),
        message(Role.USER, "2b"),
        message(Role.ASSISTANT, "b"),
        message(Role.USER, "3"),
    ]
    assert turns_of(messages) == ([0], [[1, 2, 3, 4], [5, 6, 7], [8]])


def test_oldest_turns_go_first_and_the_count_is_told() -> None:
    body = "x" * 380
    chat = request(
        message(Role.SYSTEM, "be brief"),
        message(Role.USER, body),
        message(Role.ASSISTANT, body),
        message(Role.USER, body),
        CALL,
        RESULT,
        message(Role.ASSISTANT, body),
        message(Role.USER, "last"),
    )
    assert (whole := drop_oldest(chat, 10_000, 3.8, 1.0)) and whole.dropped_messages == 0
    shorter = drop_oldest(chat, 280, 3.8, 1.0)
    assert shorter is not None and (shorter.dropped_messages, shorter.dropped_turns) == (2, 1)
    assert [m.role for m in shorter.request.messages] == [
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
        Role.TOOL,
        Role.ASSISTANT,
        Role.USER,
    ]
    assert drop_oldest(chat, 5, 3.8, 1.0) is None
    assert "messages" not in shorter.request.wire


roles = st.sampled_from([Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL])


@given(st.lists(st.tuples(roles, st.integers(0, 300)), min_size=1, max_size=30), st.integers(1, 2000))
def test_what_is_kept_fits_and_is_whole_turns_from_the_end(spec: list[tuple[Role, int]], window: int) -> None:
    messages = [RESULT if role is Role.TOOL else message(role, "x" * size) for role, size in spec]
    chat = request(*messages)
    system, turns = turns_of(messages)
    assert sorted(system + [index for turn in turns for index in turn]) == list(range(len(messages)))
    shorter = drop_oldest(chat, window, 3.8, 1.0)
    if shorter is not None:
        assert size_of(shorter.request).tokens(3.8) <= window + len(messages)
        kept = [index for turn in turns[shorter.dropped_turns :] for index in turn]
        assert list(shorter.request.messages) == [messages[index] for index in sorted(system + kept)]
        assert shorter.dropped_messages == len(messages) - len(shorter.request.messages)
