"""Prompts become the ids that transformers would give, cuts are honest, and user text never becomes a control token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from onebeat.engine.control_tokens import PART_CHARACTERS
from onebeat.engine.errors import FormatError, InputError
from onebeat.engine.tokens import PromptTokenizer
from tests.engine.tiny_routers import edit_json
from tools.synthetic_checkpoint import CHAT_TEMPLATE, CONTROL_TOKENS, write_tokenizer

START, END = 256 + CONTROL_TOKENS.index("<|im_start|>"), 256 + CONTROL_TOKENS.index("<|im_end|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder, max_prompt_tokens=256)


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=CHAT_TEMPLATE)


def text_of(folder: Path, ids: list[int]) -> str:
    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids, skip_special_tokens=False))


CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 17 * 23?\n"},
    {"role": "assistant", "content": "391"},
    {"role": "user", "content": "日本語 🎵"},
]


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:2]])
def test_ids_are_those_of_transformers(
    tokenizer: PromptTokenizer, reference: PreTrainedTokenizerFast, messages: list[dict[str, Any]]
) -> None:
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    prepared = tokenizer.prepare(messages)
    assert prepared.token_ids == expected
    assert (prepared.prompt_tokens, prepared.cut_tokens, prepared.estimated) == (len(expected), 0, False)


def test_a_text_is_a_conversation_of_one_user_message(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.prepare("hello") == tokenizer.prepare([{"role": "user", "content": "hello"}])
    assert tokenizer.prepare("hello") == tokenizer.prepare(
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    )


def test_what_is_no_text_is_named_not_dropped(folder: Path, tokenizer: PromptTokenizer) -> None:
    prepared = tokenizer.prepare(
        [
            {"role": "developer", "content": "x"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "see"}, {"type": "image_url", "image_url": {}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a":1}'}}]},
            {"role": "tool", "content": [{"type": "tool_result", "content": "42"}]},
        ]
    )
    text = text_of(folder, prepared.token_ids)
    assert "<|im_start|>system\nx<|im_end|>" in text
    assert "see\n[image_url]<|im_end|>" in text
    assert '[tool call f {"a":1}]<|im_end|>' in text
    assert "<|im_start|>tool\n42<|im_end|>" in text


@given(
    st.lists(
        st.one_of(st.sampled_from([*CONTROL_TOKENS, "<|im_", "\ue000", "\ue001", "3", "7\ue002"]), st.text(max_size=4)),
        min_size=1,
        max_size=8,
    )
)
def test_user_text_never_becomes_a_control_token(folder: Path, tokenizer: PromptTokenizer, pieces: list[str]) -> None:
    text = "a" + "".join(pieces)
    prepared = tokenizer.prepare(text)
    assert (prepared.token_ids.count(START), prepared.token_ids.count(END)) == (2, 1)
    assert max(set(prepared.token_ids) - {START, END}) < 256, "only the template's own control tokens"
    assert text_of(folder, prepared.token_ids) == (f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"), (
        "and nothing of the text is lost"
    )


@pytest.mark.parametrize("before", [PART_CHARACTERS - 4, PART_CHARACTERS, 2 * PART_CHARACTERS - 1])
def test_a_huge_text_is_searched_for_control_tokens_across_its_parts(tokenizer: PromptTokenizer, before: int) -> None:
    prepared = tokenizer.prepare("a" * before + "<|im_end|>")
    assert prepared.token_ids.count(END) == tokenizer.prepare("a").token_ids.count(END)


@pytest.mark.parametrize("role", ["user<|im_end|>", "", "x" * 40, None, 3, "a b"])
def test_a_role_that_could_spell_something_is_refused(tokenizer: PromptTokenizer, role: object) -> None:
    with pytest.raises(InputError, match="message 0 is"):
        tokenizer.prepare([{"role": role, "content": "hello"}])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", r"the prompt is empty \(0 characters\)"),
        (" \n\t", r"the prompt is empty \(only 3 characters of white space\)"),
        ("<|im_start|> <|im_end|>\n", "24 characters are nothing but the model's own control tokens"),
        ("<|im_end|>" * 600_000, "nothing but the model's own control tokens"),
        ([{"role": "user", "content": None}], "the prompt is empty"),
        ([], r"a prompt is \[\]; give a string or a list of at least one message"),
        (None, "a prompt is null"),
        (["hello"], 'message 0 is "hello"; it must be {"role": ..., "content": ...}'),
        ([{"role": "user", "content": 3}], "the content of message 0 is 3"),
        ([{"role": "user", "content": [{"text": "x"}]}], "a part of message 0 is"),
        ("half \ud83d here", r"half a surrogate pair \(U\+D83D at character 5\)"),
        ("x" * 600_000 + "\ud83d", r"half a surrogate pair \(U\+D83D at character 600000\)"),
    ],
)
def test_a_prompt_that_cannot_be_routed_by_is_refused(tokenizer: PromptTokenizer, prompt: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        tokenizer.prepare(prompt)


@pytest.fixture(scope="module")
def budgets(folder: Path) -> dict[int, PromptTokenizer]:
    return {budget: PromptTokenizer(folder, max_prompt_tokens=budget) for budget in (16, 17, 99, 300, 10**6)}


@given(st.sampled_from([16, 17, 99, 300]), st.integers(1, 5000))
def test_a_cut_keeps_head_and_tail_and_counts_exactly(
    budgets: dict[int, PromptTokenizer], budget: int, characters: int
) -> None:
    text = "".join(chr(97 + index % 26) for index in range(characters))
    whole = budgets[10**6].prepare(text).token_ids
    prepared = budgets[budget].prepare(text)
    kept = min(budget, len(whole))
    assert len(prepared.token_ids) == kept
    if prepared.estimated:
        assert len(text) > 15 * budget - 60
        assert abs(prepared.prompt_tokens - len(whole)) <= 0.05 * len(whole) + 12, "12 letters of a split control token"
    else:
        assert prepared.prompt_tokens == len(whole)
    assert prepared.cut_tokens == prepared.prompt_tokens - kept
    if kept < len(whole):
        assert prepared.token_ids == whole[: budget // 2] + whole[len(whole) - (budget - budget // 2) :]


@pytest.mark.parametrize(
    "text", ["The quick brown fox. " * 250_000, "a" * 5_000_000, "語" * 2_000_000, "<|im_end|>x" * 450_000]
)
def test_five_megabytes_are_cut_before_they_are_tokenised(tokenizer: PromptTokenizer, text: str) -> None:
    start = time.perf_counter()
    prepared = tokenizer.prepare(text)
    assert time.perf_counter() - start < 2.0
    assert prepared.estimated and len(prepared.token_ids) == 256
    assert prepared.prompt_tokens == pytest.approx(len(text.encode()), rel=0.05)
    assert prepared.token_ids[0] == START and prepared.token_ids[-1] != END


def test_a_tokenizer_with_words_longer_than_the_window_still_fills_the_budget(tmp_path: Path) -> None:
    """One token per 400 characters: the ends are widened until they hold enough tokens."""
    word = "x" * 400
    tokenizer = Tokenizer(models.WordLevel({word: 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prepared = PromptTokenizer(tmp_path, template="{prompt}", max_prompt_tokens=64).prepare(f"{word} " * 1000)
    assert prepared.token_ids.count(0) == 64 and prepared.cut_tokens == pytest.approx(936, rel=0.25)


def test_plain_text_gets_the_frame_that_the_tokenizer_was_trained_with(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({"<s>": 0, "</s>": 1, "hello": 2, "you": 3, "?": 4, "beat": 5}, unk_token="?")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    plain = PromptTokenizer(tmp_path, template="{prompt} you", max_prompt_tokens=16)
    assert plain.prepare("hello").token_ids == [0, 2, 3, 1]
    long = plain.prepare("hello " * 30)
    assert long.token_ids == [0, *[2] * 13, 3, 1] and (long.prompt_tokens, long.cut_tokens) == (33, 17)


def chat(folder: Path, template: object, tmp_path: Path) -> PromptTokenizer:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    edit_json(tmp_path / "tokenizer_config.json", lambda found: found.update(chat_template=template))
    return PromptTokenizer(tmp_path)


def test_a_conversation_that_the_template_refuses_is_read_as_a_transcript(folder: Path, tmp_path: Path) -> None:
    strict = (
        "{% if messages | length > 1 %}{{ raise_exception('alternate!') }}{% endif %}"
        "{{ bos_token + messages[0]['content'] | trim }}"
    )
    tokenizer = chat(folder, strict, tmp_path)
    prepared = tokenizer.prepare([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert text_of(folder, prepared.token_ids) == "<|im_start|>user: a\n\nuser: b"


def test_templates_are_found_where_transformers_keeps_them(folder: Path, tmp_path: Path) -> None:
    named = chat(folder, [{"name": "default", "template": "A{{ messages[0].content }}"}], tmp_path)
    assert text_of(folder, named.prepare("x").token_ids) == "Ax"
    (tmp_path / "chat_template.jinja").write_text("B{{ messages[0].content }}")
    assert text_of(folder, PromptTokenizer(tmp_path).prepare("x").token_ids) == "Bx"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template"),
        ("{% for %}", "cannot be rendered"),
        ("{{ messages[0].content }}{% for i in range(10**9) %}x{% endfor %}", "cannot be rendered"),
        ("{{ messages[0].content }}{{ 1 // 0 }}", "cannot be rendered"),
        ("{{ undefined_thing.x.y }}", "cannot be rendered"),
        ("always the same", "leaves out the user's message"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "cannot be rendered"),
        (3, "is 3; it must be text"),
    ],
)
def test_a_template_that_does_not_work_is_refused_when_it_is_loaded(
    folder: Path, tmp_path: Path, template: object, sentence: str
) -> None:
    with pytest.raises(FormatError, match=sentence):
        chat(folder, template, tmp_path)


def test_a_tokenizer_that_is_missing_broken_or_too_large_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no tokenizer\.json"):
        PromptTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(FormatError, match=r"tokenizer\.json is not a tokenizer"):
        PromptTokenizer(tmp_path)
    with pytest.raises(FormatError, match="knows 264 tokens and the embedding has 200 rows"):
        PromptTokenizer(folder, vocab_size=200)
