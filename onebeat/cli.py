"""The `onebeat` command: picks a subcommand, runs it, turns our errors into one sentence and an exit code.

Each subcommand is a module of `onebeat.commands` with `HELP`, `add_arguments(parser)` and `run(args) -> int`; only the
one that was asked for is imported, so `onebeat --help` never waits for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from onebeat.engine.errors import OnebeatError

COMMANDS = {
    "pull": "fetch the default router (once)",
    "route": "one decision, explained",
    "serve": "the gateway, from fleet.toml",
    "train": "fit a head on graded outcomes",
    "eval": "judge a head on held-out outcomes",
    "onboard": "add a model from a few graded prompts",
    "promote": "put a candidate head in service, keeping the previous one",
    "quantize": "write an int8 copy of a checkpoint, with the error it costs",
    "report": "spend, savings and failures from the ledger",
    "doctor": "what this machine can run, what the config says, what is wrong",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns 0 on success, 2 for what the user can mend, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        return int(import_module(f"onebeat.commands.{args.command}").run(args))
    except OnebeatError as error:
        print(f"onebeat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onebeat: interrupted", file=sys.stderr)
        return 130
    except RecursionError:
        print("onebeat: the input is nested too deeply to be read; flatten it.", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our standard output went away (`onebeat route ... | head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"onebeat: the system refused: {error.strerror or error}{where}; mend that and try again.", file=sys.stderr
        )
        return 2
