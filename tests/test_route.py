"""The door: `onebeat route` decides, explains, and meets every bad input with one sentence and exit code 2."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebeat.cli import main
from tests.engine.tiny_routers import edit_json, edit_tensors, tiny_router

Route = Callable[..., tuple[int, str, str]]
DOWN = "model.layers.0.mlp.down_proj.weight"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_router(tmp_path_factory.mktemp("router"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A router to damage."""
    return shutil.copytree(good, tmp_path / "router")


@pytest.fixture
def route(good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Route:
    """Runs `onebeat route` in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str, stdin: bytes | None = None, router: Path = good) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(["route", "--router", str(router), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def sentence(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal, after checking that it is one and that nothing was decided."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("onebeat: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_an_argument_a_file_and_standard_input_decide_alike(route: Route, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("What is 17 * 23?\n")
    results = [
        route("What is 17 * 23?", "--json"),
        route("--file", str(tmp_path / "prompt.txt"), "--json"),
        route("--json", stdin=b"What is 17 * 23?\r\n"),
        route("-", "--json", stdin=b"\xef\xbb\xbfWhat is 17 * 23?"),
    ]
    decisions = [json.loads(out) for code, out, _ in results if code == 0]
    assert len(decisions) == 4
    for decision in decisions:
        decision.pop("timing")
    assert decisions[0] == decisions[1] == decisions[2] == decisions[3]
    assert set(decisions[0]["scores"][0]) == {"model", "quality", "output_tokens", "cost_usd", "utility", "ruled_out"}


def test_text_explains_every_model(route: Route) -> None:
    code, out, err = route("hello", "--tradeoff", "1", "--min-quality", "0.1")
    assert (code, err) == (0, "")
    first, *rest = out.splitlines()
    assert "wins at tradeoff 1: quality" in first
    for name in ("large", "middle", "small", "tiny", "cost USD", "utility", "prompt tokens, tokenised in"):
        assert any(name in line for line in rest)
    assert sum(line.startswith("> ") for line in rest) == 1


def test_json_lines_are_decided_in_order_and_bad_ones_hold_up_no_other(route: Route) -> None:
    lines = [
        b'"hello"',
        b"",
        b'{"messages": [{"role": "user", "content": "hello"}]}',
        b'{"prompt": ""}',
        b"{",
        b'"\xff"',
        b"3",
        b'{"text": "hello"}',
        b'[{"role": "user", "content": "hello"}]',
        *[b'"more"'] * 40,
    ]
    code, out, err = route("--jsonl", "--json", stdin=b"\n".join(lines))
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    assert [entry["line"] for entry in found] == [1, *range(3, 50)]
    assert found[0]["scores"] == found[1]["scores"] == found[7]["scores"]
    wrong = [
        "prompt is empty",
        "not JSON",
        "not UTF-8 (byte 0xff at offset 1)",
        "holds a int",
        "has 'text'; it needs one of",
    ]
    for entry, expected in zip(found[2:7], wrong, strict=True):
        assert set(entry) == {"line", "error"} and expected in entry["error"]
    code, out, err = route("--jsonl", stdin=b'"hello"\n""\n')
    assert code == 2 and out.startswith("line 1: ") and err.startswith("onebeat: line 2: the prompt is empty")
    assert route("--jsonl", "--json", stdin=b'"hello"\n')[0] == 0


PROMPTS: list[tuple[bytes, str]] = [
    (b"", "the prompt is empty (0 characters)"),
    (b" \n \n", "the prompt is empty (only"),
    (b"<|im_start|><|im_end|>\n", "nothing but the model's own control tokens"),
    (b"caf\xe9", "standard input is not UTF-8 (byte 0xe9 at offset 3); convert it to UTF-8"),
]


@pytest.mark.parametrize(("stdin", "expected"), PROMPTS)
def test_a_prompt_that_cannot_be_routed_by(route: Route, stdin: bytes, expected: str) -> None:
    assert expected in sentence(route(stdin=stdin))


def test_an_argument_that_is_no_utf8(route: Route) -> None:
    assert "the argument is not UTF-8 (byte 0xff at offset 1)" in sentence(route(os.fsdecode(b"a\xff")))


def test_five_megabytes_are_routed_and_the_cut_is_said(route: Route) -> None:
    code, out, _ = route(stdin=b"All work and no play. " * 240_000)
    assert code == 0 and "It read 512 of about 52" in out.splitlines()[0]


ARGUMENTS: list[tuple[list[str], str]] = [
    (["hi", "--tradeoff", "2"], "tradeoff is 2.0; it runs from 0"),
    (["hi", "--tradeoff", "nan"], "tradeoff is nan"),
    (["hi", "--min-quality", "7"], "min_quality is 7.0"),
    (["hi", "--max-cost-usd", "-1"], "max_cost_usd is -1.0"),
    (["hi", "--min-quality", "1"], "min_quality 1 failed: the best is"),
    (["hi", "--max-cost-usd", "0"], "max_cost_usd 0 failed: the cheapest is"),
    (["hi", "--model", "smal"], 'models names "smal", which this router does not score; the nearest known one is'),
    (["hi", "--precision", "int4"], "precision is \"int4\"; the nearest known one is 'int8'"),
    (["hi", "--device", "npu"], 'device is "npu"'),
    (["hi", "--file", "x"], "both a prompt ('hi') and --file x are given"),
    (["--file", "/nowhere/x"], "/nowhere/x cannot be read: No such file or directory"),
    (["--file", "/"], "/ cannot be read: Is a directory"),
    (["hi", "--jsonl"], "--jsonl reads lines from --file or standard input"),
    (["hi", "--router", "/nowhere"], '"/nowhere" is not a folder; give a router\'s folder, "default", or hf:org/name'),
    (["hi", "--router", ""], 'the router is ""; give a router\'s folder'),
    (["hi", "--router", "/etc/hostname"], '"/etc/hostname" is not a folder'),
    (["hi", "--router", "/dev"], "/dev has no router.json"),
    (["hi", "--router", "~nobody-of-that-name/x"], "is not a folder"),
    (["hi", "--router", "x" * 5000], f'"{"x" * 59}... (5002 characters) is not a folder'),
    (["hi", "--router", "a\0b"], '"a\\u0000b" is not a folder'),
    (["hi", "--router", "hf:"], '"hf:" is not a repository of the hub; write hf:org/name'),
    (["hi", "--router", "hf:nobody"], '"hf:nobody" is not a repository of the hub'),
    (["hi", "--router", "hf:../x"], '"hf:../x" is not a repository of the hub'),
    (["hi", "--router", "hf:org/" + "x" * 5000], "(5009 characters) is not a repository of the hub"),
    (["hi", "--router", "hf:org/name@"], "has no revision after the @"),
    (["hi", "--router", "hf:org/name@a\0b"], 'revision is "a\\u0000b"; write a branch, a tag or a commit'),
]


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS)
def test_an_argument_that_means_nothing(route: Route, arguments: list[str], expected: str) -> None:
    assert expected in sentence(route(*arguments))


def test_no_lines_are_said(route: Route) -> None:
    assert "standard input holds no lines" in sentence(route("--jsonl", stdin=b"\n\n"))


def test_a_terminal_without_a_prompt_is_told_how(good: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "onebeat", "route", "--router", str(good)]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60, check=False)
    os.close(controller)
    os.close(terminal)
    assert done.returncode == 2 and "there is no prompt; give it as an argument" in done.stderr


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def as_index(folder: Path, shard: str) -> None:
    """Turns the single file into one behind an index that names `shard` for one tensor."""
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "a.safetensors", "pt") as file:
        weight_map = dict.fromkeys(file.keys(), "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map | {DOWN: shard}}))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / "model.safetensors", change)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda found: found.update(changes))


def router_json(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "router.json", lambda found: found.update(changes))


def head(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / "router_head.safetensors", change)


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing tensor": (tensors(lambda t: t.pop(DOWN)), [f"has no tensor '{DOWN}' [32, 48]"]),
    "extra tensor": (tensors(lambda t: t.update(surplus=torch.zeros(1))), ["holds 'surplus', which a llama backbone"]),
    "misshaped tensor": (
        tensors(lambda t: t.update({DOWN: torch.zeros(32, 47)})),
        [f"'{DOWN}' as [32, 47]", "calls for [32, 48]"],
    ),
    "NaN": (tensors(lambda t: t[DOWN].view(-1)[5].fill_(float("nan"))), [f"holds nan in '{DOWN}' (element 5 of 1536)"]),
    "truncated": (lambda folder: cut(folder / "model.safetensors", 0.7), ["is truncated", "ends at byte"]),
    "truncated header": (lambda folder: cut(folder / "model.safetensors", 0.001), ["is not a whole safetensors file"]),
    "missing shard": (
        lambda folder: as_index(folder, "b.safetensors"),
        ["names the shard 'b.safetensors', which is not in"],
    ),
    "shard outside": (
        lambda folder: as_index(folder, "../b.safetensors"),
        ['names the shard "../b.safetensors"', "inside"],
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["holds neither model.safetensors nor"]),
    "architecture": (config(model_type="gpt_neox"), ['model_type "gpt_neox"', "qwen2, qwen3, llama, mistral"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json does not exist"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["has no tokenizer.json"]),
    "vocabulary": (config(vocab_size=100), ["knows 264 tokens and the embedding has 100 rows"]),
    "head width": (
        head(lambda t: t.update({"quality.weight": torch.zeros(4, 40)})),
        ["quality.weight of the head has shape [4, 40]", "[4, 32]"],
    ),
    "head of another backbone": (config(hidden_size=64, num_attention_heads=2), ["[300, 32]", "calls for [300, 64]"]),
    "head rows": (head(lambda t: t.update({"quality.bias": torch.zeros(3)})), ["[3]", "[4]"]),
    "head NaN": (head(lambda t: t["quality.bias"].fill_(float("nan"))), ["holds nan in 'quality.bias'"]),
    "head missing": (lambda folder: (folder / "router_head.safetensors").unlink(), ["has no router_head.safetensors"]),
    "head truncated": (lambda folder: cut(folder / "router_head.safetensors", 0.9), ["is truncated"]),
    "head tensor missing": (head(lambda t: t.pop("length.bias")), ["the head lacks length.bias"]),
    "head kind": (router_json(head={"kind": "forest"}), ['the head is of kind "forest"']),
    "newer format": (router_json(format_version=2), ["is of format version 2 and this onebeat reads up to 1"]),
    "unknown key": (router_json(colums=[]), ["unknown key \"colums\"; the nearest known one is 'columns'"]),
    "tap": (router_json(taps=[{"layer": 9, "pooling": "mean"}]), ["taps layer 9 and the backbone has 2"]),
    "budget": (router_json(max_prompt_tokens=4096), ["max_prompt_tokens is 4096", "512 positions"]),
    "no router.json": (lambda folder: (folder / "router.json").unlink(), ["has no router.json"]),
    "not JSON": (lambda folder: (folder / "router.json").write_text("{'a': 1}"), ["router.json is not valid JSON"]),
    "pickle": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N."),
        ["pytorch_model.bin is a pickle", "remove it"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_router_is_refused_with_what_is_wrong_and_how_to_mend_it(
    route: Route, folder: Path, name: str
) -> None:
    damage, expected = DAMAGE[name]
    damage(folder)
    refusal = sentence(route("hello", router=folder))
    assert all(part in refusal for part in expected), refusal
    assert refusal.rstrip().endswith((".", "?")) and (";" in refusal or ":" in refusal.removeprefix("onebeat: "))


def test_the_command_line_leaves_no_traceback_and_no_torch_for_a_bad_dial() -> None:
    """Through a real process: what is wrong with the arguments is said before torch is imported."""
    code = (
        "import sys; from onebeat.cli import main; code = main(['route', 'hi', '--tradeoff', '9']); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "onebeat: tradeoff is 9.0; it runs from 0 (cheapest that is not hopeless) to 1 (best).\n"
