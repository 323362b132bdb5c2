"""`onebeat grade`: raw answers to outcomes that `onebeat train` reads."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from onebeat.engine.errors import ConfigError, InputError

if TYPE_CHECKING:
    from onebeat.conductor.config import Model
    from onebeat.conductor.config import Provider as ProviderConfig
    from onebeat.conductor.learning.graders.rows import AskJudge, Grading, Tally, Unreadable

EXAMPLE = """each row is one JSON object:
  prompt or messages, model, output     what was asked, of whom, what came back
  grader      numeric, exact, choice, schema, code, judge or preferences. Left out: preferences for rows with
              `preferred`, code with `tests`, schema with `schema`, choice with `choices`; else --grader; else numeric
              where `answer` is a number and exact where it is a text
  answer      the reference, of numeric, exact and choice (a letter, or an option's text); shown to a judge, if given
  choices     the options' texts, or their letters, as "ABCD"
  schema      a JSON Schema             tests       Python assertions, run after the answer's program in a sandbox
  first, second, preferred              instead of model and output: two models and which answer was better: "first",
              "second", "tie", a model's name, or 1 to 0; scored together by Bradley and Terry's model
input_tokens, output_tokens, cost_usd, latency_ms, group, time, weight and propensity are passed on to the outcome; of
a row with `preferred`, which tells of two models at once, only group and time are.

examples:
  onebeat grade answers.jsonl --output outcomes.jsonl --ungraded left.jsonl
  onebeat grade left.jsonl --grader judge --judge gpt-5 --fleet fleet.toml --output judged.jsonl
  onebeat grade left.jsonl --grader judge --judge gpt-5 --judge-url https://api.openai.com/v1 \\
      --judge-key-env OPENAI_API_KEY --output judged.jsonl
  onebeat train outcomes.jsonl judged.jsonl --prices prices.json --output my-router

A row that cannot be graded is counted with its reason and gets no score; --ungraded keeps it as it was, with `why`, so
that it can be graded again; of a line that is no JSON object, its `place` and `text`. A judge is asked once for each
row.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `onebeat grade`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("answers", nargs="+", type=Path, help="files of raw answers, as JSON lines")
    add("--output", type=Path, required=True, help="write outcomes here, as JSON lines; a new file")
    add("--ungraded", type=Path, help="write the rows that cannot be graded here, each with its reason; a new file")
    add("--grader", help="of rows that name none and whose keys call for none")
    add("--judge", metavar="MODEL", help="the judge: a model of --fleet, or its name at --judge-url")
    add("--fleet", type=Path, help="fleet.toml that says how the judge is called")
    add("--judge-url", metavar="URL", help="base URL of the judge's provider, instead of --fleet")
    add("--judge-key-env", metavar="NAME", help="environment variable that holds the key for --judge-url")
    add("--judge-kind", default="openai_compatible", help="openai_compatible (default), openai, anthropic or gemini")
    add("--jobs", type=int, default=2, help="programs and judge's calls at once (default %(default)s)")
    add(
        "--isolation",
        default="network,files,processes",
        help="what the kernel must keep programs from, or none is run (default %(default)s; none to run them anyway)",
    )


def run(args: argparse.Namespace) -> int:
    """Grades. Returns 2 when no row could be graded."""
    from onebeat.conductor.learning.graders.code import ISOLATION, Limits
    from onebeat.conductor.learning.graders.rows import GRADERS, Grading, Tally
    from onebeat.engine.arguments import whole
    from onebeat.engine.strict_json import nearest

    whole("--jobs", args.jobs, least=1, largest=256)
    if args.grader is not None and args.grader not in GRADERS:
        raise InputError(f"--grader is {args.grader!r}; {nearest(args.grader, GRADERS)}.")
    required = () if args.isolation == "none" else tuple(part.strip() for part in args.isolation.split(","))
    for part in required:
        if part not in ISOLATION:
            raise InputError(f"--isolation names {part!r}; {nearest(part, (*ISOLATION, 'none'))}.")
    for path in args.answers:
        if not path.is_file():
            there = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
            raise InputError(f"{there}; give files of raw answers, as JSON lines.")
    _check_new("--output", args.output)
    _check_new("--ungraded", args.ungraded)
    if args.ungraded is not None and args.ungraded.absolute() == args.output.absolute():
        raise InputError(f"--output and --ungraded are both {args.output}; name two files.")
    judge = _judge(args)
    tally = Tally()
    with args.output.open("xb") as output:
        left = None if args.ungraded is None else args.ungraded.open("xb")
        try:
            grading = Grading(default=args.grader, limits=Limits(required=required), jobs=args.jobs)
            asyncio.run(_grade(args, grading, judge, tally, output, left))
        finally:
            if left is not None:
                left.close()
    for line in tally.lines():
        print(line, file=sys.stderr)
    return _finish(args, tally)


def _finish(args: argparse.Namespace, tally: Tally) -> int:
    ungraded = sum(tally.reasons.values())
    if not tally.outcomes:
        args.output.unlink()
    if not tally.rows:
        raise InputError(f"{', '.join(map(str, args.answers))} holds no rows; give one JSON object per line.")
    print(f"{tally.outcomes:,} outcomes are in {args.output}" if tally.outcomes else "no row could be graded")
    if ungraded:
        kept = f"are in {args.ungraded}" if args.ungraded else "are in no file: --ungraded FILE keeps them"
        print(f"{ungraded:,} rows cannot be graded and {kept}")
    return 0 if tally.outcomes else 2


async def _grade(
    args: argparse.Namespace,
    grading: Grading,
    judge: tuple[str, ProviderConfig, Model] | None,
    tally: Tally,
    output: BinaryIO,
    left: BinaryIO | None,
) -> None:
    """Writes as it goes, so that what was paid for is kept whatever happens."""
    from dataclasses import replace

    async with AsyncExitStack() as stack:
        if judge is not None:
            grading = replace(grading, judge=await stack.enter_async_context(_asking(*judge)))
        rows = (row for path in args.answers for row in _rows(path))
        async for _, graded in grading.run(rows, tally):
            if graded.outcome is not None:
                output.write(msgspec.json.encode(graded.outcome) + b"\n")
                output.flush()
            elif left is not None:
                kept = {key: value for key, value in graded.row.items() if key != "why"}
                left.write(msgspec.json.encode({**kept, "why": graded.why}) + b"\n")
                left.flush()


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Unreadable]]:
    from onebeat.conductor.learning.graders.rows import Unreadable

    decoder = msgspec.json.Decoder()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            place, text = f"{path.name}:{number}", line.decode(errors="backslashreplace").rstrip("\r\n")
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield place, Unreadable(text, str(error))
                continue
            found = f"a {type(row).__name__} where an object is expected"
            yield place, row if isinstance(row, dict) else Unreadable(text, found)


def _check_new(flag: str, path: Path | None) -> None:
    from onebeat.conductor.learning.preflight import check_output_file

    check_output_file(flag, path)
    if path is not None and path.exists():
        raise InputError(f"{flag} is {path}, which is there already; name a new file.")


def _judge(args: argparse.Namespace) -> tuple[str, ProviderConfig, Model] | None:
    """The judge's name at its provider and how it is called. Raises `ConfigError` for half of what is needed."""
    from onebeat.conductor.config import Model
    from onebeat.conductor.config import Provider as ProviderConfig
    from onebeat.conductor.fleet_file import load_fleet
    from onebeat.engine.strict_json import nearest

    if args.judge is None:
        if args.grader == "judge" or args.judge_url or args.fleet:
            raise ConfigError("no judge is named; give --judge MODEL with --fleet or --judge-url.")
        return None
    if (args.fleet is None) == (args.judge_url is None):
        raise ConfigError(f"--judge {args.judge} needs one of --fleet and --judge-url, to say how it is called.")
    if args.fleet is not None:
        fleet = load_fleet(args.fleet)
        if args.judge not in fleet.models:
            raise ConfigError(
                f"--judge is {args.judge!r}, which {args.fleet} lacks; {nearest(args.judge, fleet.models)}."
            )
        model = fleet.models[args.judge]
        name, provider = model.upstream or args.judge, fleet.providers[model.provider]
    else:
        kinds = ("openai_compatible", "openai", "anthropic", "gemini")
        if args.judge_kind not in kinds:
            raise ConfigError(f"--judge-kind is {args.judge_kind!r}; {nearest(args.judge_kind, kinds)}.")
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", args.judge_url):
            raise ConfigError(f"--judge-url is {args.judge_url!r}; give http(s)://HOST[:PORT][/PATH] only.")
        provider = ProviderConfig(args.judge_kind, args.judge_url, args.judge_key_env)
        name, model = args.judge, Model("judge", 100_000, 0.0, 0.0)
    if provider.api_key_env and not os.environ.get(provider.api_key_env):
        raise ConfigError(f"the environment lacks {provider.api_key_env}, the judge's key; export it.")
    return name, provider, model


@asynccontextmanager
async def _asking(name: str, config: ProviderConfig, model: Model) -> AsyncIterator[AskJudge]:
    """A judge to ask, as long as the context is open. What it says is told without the key."""
    import aiohttp

    from onebeat.conductor.learning.graders.grade import Grade
    from onebeat.conductor.learning.graders.judge import Judge, post_through
    from onebeat.conductor.runtime import make_provider
    from onebeat.conductor.security import Redactor

    redactor = Redactor([os.environ.get(config.api_key_env or "", "")])
    async with aiohttp.ClientSession() as session:
        judge = Judge(make_provider(config, model, os.environ), name, post_through(session, config.base_url))

        async def ask(prompt: str, answer: str, reference: str | None) -> Grade:
            grade = await judge.grade(prompt, answer, reference)
            return Grade(grade.score, redactor.text(grade.reason))

        yield ask
