"""`onebeat serve`: the gateway, from fleet.toml."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from importlib import import_module

from onebeat.conductor.fleet_file import load_fleet, missing_variables
from onebeat.conductor.serving import serve
from onebeat.engine.errors import ConfigError

HELP = "the gateway, from fleet.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="fleet.toml", help="the fleet's file (default: fleet.toml)")
    parser.add_argument("--host", help="listen here instead of server.host")
    parser.add_argument("--port", type=int, help="listen here instead of server.port; 0 takes any free port")
    parser.add_argument(
        "--loop",
        choices=["auto", "asyncio", "uvloop"],
        default="auto",
        help="the event loop: uvloop serves about a third more where it is installed (default: it if it is)",
    )
    parser.add_argument("--check", action="store_true", help="check the file and the environment, then stop")


def run(args: argparse.Namespace) -> int:
    fleet = load_fleet(args.config)
    missing = missing_variables(fleet, os.environ)
    if missing:
        listed = "; ".join(f"{variable} (named by {name})" for name, variable in missing.items())
        raise ConfigError(f"the environment lacks {listed}; export them, or take out what names them.")
    if args.check:
        print(f"{args.config}: {len(fleet.models)} models of {len(fleet.providers)} providers, all in order")
        return 0
    if args.port is not None and not 0 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}; ports run from 0 (any) to 65535.")
    with asyncio.Runner(loop_factory=_loop_factory(args.loop)) as runner:
        return runner.run(serve(fleet, args.config, os.environ, host=args.host, port=args.port))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, or None for asyncio's own."""
    if name == "asyncio":
        return None
    try:
        uvloop = import_module("uvloop")
    except ImportError:
        if name == "uvloop":
            raise ConfigError("uvloop is not installed; `pip install uvloop`, or leave --loop out.") from None
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
