"""What is wrong with a command ends in one sentence before a prompt is read, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conductor.learning.house import Refused, training

MISTAKES: list[tuple[list[str], str]] = [
    (["--models", "cheap,unheard-of"], "no outcome names model 'unheard-of'"),
    (["--models", "cheap,dear,cheap"], '--models names "cheap" 2 times; name every column once'),
    (["--models", "cheap,,dear"], '--models names "" 1 times'),
    (["--models", "cheap"], "cheap is the only model with outcomes"),
    (["--taps", "deep"], "--taps is 'deep'"),
    (["--taps", "2:median"], "--taps is '2:median'"),
    (["--taps", "\u00b2"], "--taps is '\u00b2'"),
    (["--taps", ""], "--taps is ''"),
    (["--taps", "9"], "taps are at layers [9]; they must ascend"),
    (["--taps", "2,1"], "taps are at layers [2, 1]; they must ascend"),
    (["--recipe", "forest"], "--recipe is forest; it is one of kernel, linear, low_rank, mlp"),
    (["--hold-out", "nowhere"], "no prompt is of group 'nowhere'"),
    (["--hold-out", "short", "--hold-out", "long"], "leaves nothing to fit on"),
    (["--hold-out", "short", "--hold-out-newest", "0.2"], "hold out one or the other"),
    (["--hold-out-newest", "0.2"], "0 have a time"),
    (["--hold-out-newest", "nan"], "--hold-out-newest is nan; it must be a share above 0 and below 1"),
    (["--test-share", "2"], "--test-share is 2.0; it must be a share of 0 to below 1"),
    (["--test-share", "nan"], "--test-share is nan"),
    (["--test-share", "0.95"], "8 prompts are too few to fit and judge a head"),
    (["--prices", "missing.json"], "missing.json cannot be read"),
    (["--seed", "-1"], "--seed is -1; it must be a whole number of 0 to 4294967295"),
    (["--seed", "99999999999999999999999"], "--seed is 99999999999999999999999; it must be"),
    (["--max-prompts", "3"], "--max-prompts is 3; it must be a whole number of 20 to"),
    (["--template", "no mark"], '--template is "no mark"; it must be "chat" or hold {prompt} exactly once'),
    (["--max-prompt-tokens", "3"], "--max-prompt-tokens is 3; it must be a whole number of 16 to 4096"),
    (["--max-prompt-tokens", "5000"], "--max-prompt-tokens is 5000; it must be"),
    (["--name", " "], 'the router\'s name would be " "; give one with --name'),
    (["--backbone", "/nowhere"], '"/nowhere" is not a folder'),
    (["--backbone", "/dev"], "/dev/config.json does not exist"),
    (["--cache", "/dev/null/x"], "the folder for features, /dev/null/x, cannot be made (Not a directory)"),
    (["--output", "/dev/null/x"], "/dev/null/x cannot be"),
    (["--output", "/dev"], "/dev is there already and not an empty folder"),
    (["--fleet", "/nowhere.toml"], "/nowhere.toml"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_end_in_one_sentence_before_a_prompt_is_read(
    house: Path, refused: Refused, arguments: list[str], message: str
) -> None:
    refused([*training(house, "mistake"), *arguments], message)


EVAL_MISTAKES: list[tuple[list[str], str]] = [
    (["--bootstraps", "-1"], "--bootstraps is -1; it must be a whole number of 0 to"),
    (["--seed", "-1"], "--seed is -1"),
    (["--max-prompts", "0"], "--max-prompts is 0; it must be a whole number of 1 to"),
    (["--target", "soon"], "target is 'soon'; write a share"),
    (["--html", "/nowhere/x.html"], '--html is "/nowhere/x.html" and cannot be written (/nowhere is not a folder)'),
    (["--html", "/dev"], '--html is "/dev" and cannot be written (it is a folder)'),
    (["--router", "/nowhere"], '"/nowhere" is not a folder'),
    (["--cache", "/dev/null/x"], "the folder for features, /dev/null/x, cannot be made"),
]


@pytest.mark.parametrize(("arguments", "message"), EVAL_MISTAKES)
def test_mistakes_in_eval_end_in_one_sentence_before_a_prompt_is_read(
    house: Path, refused: Refused, arguments: list[str], message: str
) -> None:
    refused(["eval", str(house / "outcomes.jsonl"), "--router", str(house / "router"), *arguments], message)


ONBOARD_MISTAKES: list[tuple[list[str], str]] = [
    (["--count", "5", "--chosen", "x"], "--count is 5; it must be a whole number of 20 to 200"),
    (["--chosen", "/nowhere/x"], '--chosen is "/nowhere/x" and cannot be written'),
    (["--seed", "-1", "--chosen", "x"], "--seed is -1"),
    (["--input-usd", "nan"], "--input-usd is nan; it must be 0 to 1,000,000 dollars"),
    (["--output-usd", "-1"], "--output-usd is -1.0; it must be"),
    (["--model", " "], "--model is ' '; give the new model's name"),
    (["--successor-of", "nobody"], "--successor-of is 'nobody'; the columns are cheap, dear"),
    (["--output", "/dev"], "/dev is there already and not an empty folder"),
]


@pytest.mark.parametrize(("arguments", "message"), ONBOARD_MISTAKES)
def test_mistakes_in_onboard_end_in_one_sentence_before_a_prompt_is_read(
    house: Path, refused: Refused, arguments: list[str], message: str
) -> None:
    whole = ["--model", "other", "--outcomes", str(house / "outcomes.jsonl"), "--input-usd", "1", "--output-usd", "1"]
    whole += ["--output", str(house / "onboarded")]
    refused(["onboard", "--router", str(house / "router"), *whole, *arguments], message)
