"""`onebeat route`: reads one prompt or many, decides, and explains each decision."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from onebeat.engine.errors import InputError, OnebeatError

if TYPE_CHECKING:
    from onebeat.engine.decision import Decision
    from onebeat.engine.records import Prompt
    from onebeat.engine.router import Router
    from onebeat.engine.targets import Setting, Target

LARGEST_INPUT_BYTES = 64 * 1024 * 1024
"""Of one prompt, or of one JSON line."""
BATCH_PROMPTS = 32
"""JSON lines scored in one forward pass."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the prompt, where it comes from, the dial and the constraints."""
    parser.add_argument("prompt", nargs="?", help="the prompt; - or nothing reads standard input")
    parser.add_argument("--file", type=Path, help="read the prompt from this file")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help='many prompts, one JSON value per line: a text, a list of messages, {"prompt": ...} or {"messages": ...}',
    )
    parser.add_argument("--json", action="store_true", help="print each decision as one line of JSON")
    parser.add_argument("--tradeoff", type=float, help="0 cheapest that is not hopeless ... 1 best (0.5)")
    parser.add_argument(
        "--target",
        help='instead of --tradeoff: "95%%" of the best model\'s quality, or "0.40 usd" per thousand requests',
    )
    parser.add_argument("--min-quality", type=float, help="only models predicted to reach this quality, 0 to 1")
    parser.add_argument("--max-cost-usd", type=float, help="only models predicted to cost at most this, in dollars")
    parser.add_argument("--model", action="append", metavar="NAME", help="choose among these only (repeat the flag)")
    parser.add_argument("--router", default="default", help="default, a folder, or hf:org/name[@revision]")
    parser.add_argument("--precision", default="auto", help="auto (int8), int8, bfloat16 or float32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def run(args: argparse.Namespace) -> int:
    """Prints one decision per prompt to standard output. Returns 2 when a line of `--jsonl` could not be decided."""
    from onebeat.engine.arguments import check_dial
    from onebeat.engine.targets import MIDDLE, check_target

    # What is wrong with the arguments is said before the seconds that loading takes.
    target = None if args.target is None else check_target(args.tradeoff, args.target, args.model)
    check_dial(MIDDLE if args.tradeoff is None else args.tradeoff, args.min_quality, args.max_cost_usd)
    with _open(args) as source:
        if args.jsonl:
            return _route_lines(args, source, target)
        prompt = _one_prompt(args, source)
    router, setting = _load(args, target)
    _print(router.route(prompt, **_dials(args, setting)), None, args, setting)
    return 0


def _route_lines(args: argparse.Namespace, source: BinaryIO | None, target: Target | None) -> int:
    if source is None:
        raise InputError("--jsonl reads lines from --file or standard input; leave out the prompt argument.")
    lines = _lines(source)
    batch, failed = list(islice(lines, BATCH_PROMPTS)), False
    if not batch:
        raise InputError(f"{_place(args)} holds no lines; give one JSON value per line.")
    router, setting = _load(args, target)
    while batch:
        for number, decision in _decide(router, batch, _dials(args, setting)):
            _print(decision, number, args, setting)
            failed = failed or isinstance(decision, OnebeatError)
        sys.stdout.flush()
        batch = list(islice(lines, BATCH_PROMPTS))
    return 2 if failed else 0


def _load(args: argparse.Namespace, target: Target | None) -> tuple[Router, Setting | None]:
    """The router, and where it sets its dial for `--target`."""
    from onebeat.engine.router import Router

    router = Router.from_pretrained(args.router, precision=args.precision, device=args.device)
    return router, None if target is None else router.setting_for(target)


def _dials(args: argparse.Namespace, setting: Setting | None) -> dict[str, Any]:
    from onebeat.engine.targets import MIDDLE

    return {
        "tradeoff": setting.tradeoff if setting else MIDDLE if args.tradeoff is None else args.tradeoff,
        "min_quality": args.min_quality,
        "max_cost_usd": args.max_cost_usd,
        "models": args.model,
    }


def _decide(
    router: Router, batch: list[tuple[int, bytes]], dials: dict[str, Any]
) -> Iterator[tuple[int, Decision | OnebeatError]]:
    """Decides lines together; a line that cannot be decided yields its error and holds up no other."""
    prompts: dict[int, Prompt] = {}
    errors: dict[int, OnebeatError] = {}
    for number, line in batch:
        try:
            prompts[number] = _prompt_of(line)
            router.prepare(prompts[number])
        except InputError as error:
            prompts.pop(number, None)
            errors[number] = error
    scores = router.score(list(prompts.values()))
    rows = {number: row for row, number in enumerate(prompts)}
    for number, _ in batch:
        if number in errors:
            yield number, errors[number]
            continue
        try:
            yield number, router.decide(scores, rows[number], **dials)
        except OnebeatError as error:
            yield number, error


def _place(args: argparse.Namespace) -> str:
    return "standard input" if args.file is None else str(args.file)


def _open(args: argparse.Namespace) -> AbstractContextManager[BinaryIO | None]:
    """The stream that holds the prompts, closed after use; None where the argument is the prompt."""
    given = args.prompt if args.prompt != "-" else None
    if given is not None and args.file is not None:
        raise InputError(f"both a prompt ({given[:40]!r}) and --file {args.file} are given; give one of them.")
    if given is not None:
        return nullcontext()
    if args.file is not None:
        try:
            return cast(AbstractContextManager[BinaryIO], args.file.open("rb"))
        except OSError as error:
            raise InputError(f"{args.file} cannot be read: {error.strerror}.") from error
    if sys.stdin is None or sys.stdin.isatty():
        closed = "" if sys.stdin is not None else " and standard input is closed"
        raise InputError(f"there is no prompt{closed}; give it as an argument, with --file, or on standard input.")
    return nullcontext(sys.stdin.buffer)


def _one_prompt(args: argparse.Namespace, source: BinaryIO | None) -> str:
    if source is None:
        # Bytes of the command line that are no UTF-8 arrive as half surrogates; as bytes they are named better.
        return _text(os.fsencode(args.prompt), "the argument")
    found = _bounded(source.read, _place(args))
    # The newline that ends a file or an echo is no part of the prompt.
    return _text(found, _place(args)).removesuffix("\n").removesuffix("\r")


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of every line that is not blank."""
    number = 0
    while line := _bounded(source.readline, f"line {number + 1}"):
        number += 1
        if line.strip():
            yield number, line


def _prompt_of(line: bytes) -> Prompt:
    try:
        value = json.loads(_text(line, "the line"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the line is not JSON ({error}); write each prompt as one JSON value per line.") from None
    if isinstance(value, dict):
        given = [key for key in ("prompt", "messages") if key in value]
        if len(given) != 1:
            found = ", ".join(map(repr, list(value)[:8])) or "no keys"
            raise InputError(f'the line has {found}; it needs one of "prompt" and "messages".')
        value = value[given[0]]
    if not isinstance(value, str | list):
        raise InputError(f"the line holds a {type(value).__name__}; a prompt is a text or a list of messages.")
    return value


def _bounded(read: Callable[[int], bytes], place: str) -> bytes:
    found = read(LARGEST_INPUT_BYTES + 1)
    if len(found) > LARGEST_INPUT_BYTES:
        raise InputError(f"{place} is over {LARGEST_INPUT_BYTES} bytes; give a shorter prompt.")
    return found


def _text(found: bytes, place: str) -> str:
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is not UTF-8 (byte 0x{found[error.start]:02x} at offset {error.start}); convert it to UTF-8."
        ) from None


def _print(
    decision: Decision | OnebeatError, number: int | None, args: argparse.Namespace, setting: Setting | None
) -> None:
    if isinstance(decision, OnebeatError):
        if args.json:
            print(json.dumps({"line": number, "error": str(decision)}))
        else:
            print(f"onebeat: line {number}: {decision}", file=sys.stderr)
        return
    if args.json:
        line = {} if number is None else {"line": number}
        expected = {} if setting is None else {"target": {"asked": args.target} | msgspec.to_builtins(setting)}
        print(json.dumps(line | msgspec.to_builtins(decision) | expected))
        return
    if number is not None:
        print(f"line {number}: ", end="")
    print(decision.reason)
    if setting is not None:
        bound = args.min_quality is not None or args.max_cost_usd is not None
        print(f"Target {args.target}: {setting.sentence()}{'; constraints change that' if bound else ''}.")
    width = max(5, *(len(candidate.model) for candidate in decision.scores))
    print(f"\n  {'model':{width}}  quality  tokens    cost USD  utility")
    for candidate in decision.scores:
        mark = ">" if candidate.model == decision.model else " "
        print(
            f"{mark} {candidate.model:{width}}  {candidate.quality:7.3f}  {candidate.output_tokens:6.0f}  "
            f"{candidate.cost_usd:10.6f}  {candidate.utility:7.3f}"
            + (f"  ruled out: {candidate.ruled_out}" if candidate.ruled_out else "")
        )
    timing = decision.timing
    print(
        f"\n  {'about ' if decision.estimated else ''}{decision.prompt_tokens} prompt tokens, tokenised in "
        f"{timing.tokenize_ms:.1f} ms, scored in {timing.compute_ms:.1f} ms"
    )
    if number is not None:
        print()
