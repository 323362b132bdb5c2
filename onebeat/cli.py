"""The `onebeat` command: picks a subcommand, runs it, turns our errors into one sentence and an exit code.

Each subcommand is a module of `onebeat.commands` with `HELP`, `add_arguments(parser)` and `run(args) -> int`; only the
one that was asked for is imported, so `onebeat --help` never waits for torch.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TextIO

from onebeat.engine.errors import ConfigError, OnebeatError

COMMANDS = {
    "pull": "fetch the default router (once)",
    "route": "one decision, explained",
    "serve": "the gateway, from fleet.toml",
    "grade": "raw answers to graded outcomes",
    "train": "fit a head on graded outcomes",
    "eval": "judge a head on held-out outcomes",
    "onboard": "add a model from a few graded prompts",
    "promote": "put a candidate head in service, keeping the previous one",
    "quantize": "write an int8 copy of a checkpoint, with the error it costs",
    "report": "spend, savings and failures from the ledger",
    "doctor": "what this machine can run, what the config says, what is wrong",
}


WITHOUT_OUTPUT = ("serve",)
"""Commands that print nothing anybody waits for: these alone run with standard output closed."""

READER_GONE = 141
"""As a shell reports a command that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns 0 on success, 2 for what the user can mend, 130 when interrupted, 141 when whoever
    read what is printed has gone."""
    _open_what_is_closed()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # Here, where its failing can still be told, not when the interpreter ends.
    except OnebeatError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        _refused("interrupted")
        return 130
    except RecursionError:
        return _refused("the input is nested too deeply to be read; flatten it.")
    except BrokenPipeError:
        # Whoever read went away (`onebeat route ... | head`): nothing is left to say, and not all of it was done.
        _drop_what_is_stuck(sys.stdout)
        _drop_what_is_stuck(sys.stderr)
        return READER_GONE
    except OSError as error:
        from onebeat.engine.strict_json import shown  # Not at the top: `--version` needs no dependency.

        where = f" ({shown(error.filename)})" if error.filename else ""
        _drop_what_is_stuck(sys.stdout)
        return _refused(f"the system refused: {error.strerror or error}{where}; mend that and try again.")


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="onebeat", description="Learned LLM routing at kernel speed.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == asked:
            import_module(f"onebeat.commands.{name}").add_arguments(subparser)
    args = parser.parse_args(arguments)
    if args.version:
        from onebeat import __version__

        print(f"onebeat {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    if sys.stdout is None and args.command not in WITHOUT_OUTPUT:
        raise ConfigError(
            "standard output is closed, so nothing could be told; leave it open, or send it to /dev/null."
        )
    return int(import_module(f"onebeat.commands.{args.command}").run(args))


def _refused(sentence: str) -> int:
    try:
        print(f"onebeat: {sentence}", file=sys.stderr, flush=True)
    except OSError:  # Whoever read standard error has gone: the exit code still tells.
        _drop_what_is_stuck(sys.stderr)
    return 2


def _open_what_is_closed() -> None:
    """Standard streams that came closed (`<&-`, `>&-`, `2>&-`) must not become the first file that is opened.

    `sys.stdout` and `sys.stdin` stay None where they are, for whoever needs them to see; a message for a closed
    standard error goes nowhere, where print would send it to standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open for as long as the process runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a letter gets its number instead of ending the run.
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_what_is_stuck(stream: TextIO | None) -> None:
    """What a stream cannot take is not tried again when the interpreter ends."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # A stream without a descriptor of its own has nobody who left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
