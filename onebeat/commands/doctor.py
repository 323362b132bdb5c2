"""`onebeat doctor`: what this machine can run, what the router and the config say, what is wrong and how to mend it.

Every check returns findings instead of raising: one broken part must not hide the next.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onebeat.engine.errors import OnebeatError

if TYPE_CHECKING:
    from onebeat.engine.router_config import RouterConfig

Level = Literal["ok", "note", "problem"]
GEMM_ROWS, GEMM_COLUMNS, GEMM_DEPTH = 512, 2048, 2048


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `mend` says what to do about a note or a problem."""

    part: str
    level: Level
    text: str
    mend: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`, `--router` and `--json`."""
    parser.add_argument("--config", type=Path, help="fleet.toml to check (default: ./fleet.toml if it is there)")
    parser.add_argument("--router", default="default", help='router to check: "default" or a folder')
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 0 when nothing is wrong, 1 when there is a problem."""
    config = args.config if args.config is not None else Path("fleet.toml")
    router, of_router = check_router(args.router)
    findings = [*check_packages(), *check_machine(), *of_router]
    if args.config is not None or config.exists():
        findings += check_config(config, router)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.level:8} {finding.part:9} {finding.text}")
            if finding.mend:
                print(f"{'':18} -> {finding.mend}")
    problems = sum(finding.level == "problem" for finding in findings)
    if not args.json:
        print(f"{problems} problem{'s' if problems != 1 else ''} found." if problems else "Nothing is wrong.")
    return 1 if problems else 0


def check_packages() -> Iterator[Finding]:
    """Interpreter and the packages whose versions matter."""
    yield Finding("python", "ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, needed_for in (("torch", None), ("triton", "GPU kernels"), ("gguf", "onebeat pull")):
        try:
            yield Finding("python", "ok", f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if needed_for is None:
                yield Finding("python", "problem", f"{name} is not installed", f"pip install {name}")
            else:
                mend = f"pip install {'onebeat[demo]' if name == 'gguf' else name}, if you want {needed_for}"
                yield Finding("python", "note", f"{name} is not installed: no {needed_for}", mend)


def check_machine() -> Iterator[Finding]:
    """What the forward pass will run on, with the int8 rate that it reaches here."""
    import torch

    from onebeat.engine.default_router import CACHE_FOLDER
    from onebeat.kernels.cpu.native import native_kernels

    flags = _processor_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("machine", "ok", f"{cores} cores, {torch.get_num_threads()} threads, {capability}")
    if flags and not flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        yield Finding("machine", "note", "no VNNI: int8 runs on the slow path", "use precision='bfloat16' or a GPU")
    native = native_kernels(CACHE_FOLDER / "kernels")
    if native.library is not None:
        yield Finding("machine", "ok", native.reason)
    else:
        yield Finding("machine", "note", "int8 layers run through torch, at about half the speed", native.reason)
    tops = int8_tops()
    yield Finding("machine", "ok", f"int8 matrix rate {tops:.2f} TOPS (measured just now, {GEMM_DEPTH} deep)")
    if not torch.cuda.is_available():
        yield Finding("machine", "note", "no CUDA device: the router runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        where = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        if properties.major < 8:
            yield Finding("machine", "problem", f"{where} is older than Ampere (sm_80)", "use device='cpu'")
        else:
            yield Finding("machine", "ok", where)


def int8_tops(seconds: float = 0.25) -> float:
    """Tera-operations a second of one int8 matrix product, the best of what fits in `seconds`."""
    import torch

    a = torch.randint(-127, 128, (GEMM_ROWS, GEMM_DEPTH), dtype=torch.int8)
    weight = torch.randint(-127, 128, (GEMM_COLUMNS, GEMM_DEPTH), dtype=torch.int8)
    best_s, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        torch._int_mm(a, weight.t())
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * GEMM_ROWS * GEMM_COLUMNS * GEMM_DEPTH / best_s / 1e12


def check_router(source: str) -> tuple[RouterConfig | None, list[Finding]]:
    """Loads the router and scores one prompt. Returns its description (None when it cannot be used) and findings."""
    from onebeat.engine.router import Router

    try:
        start = time.perf_counter()
        router = Router.from_pretrained(source)
        loaded = time.perf_counter()
        router.score(["What is 17 * 23?"])
        scored = time.perf_counter()
    except OnebeatError as error:
        return None, [Finding("router", "problem", str(error))]
    text = (
        f"{source}: {len(router.columns)} columns; loaded in {loaded - start:.2f} s, "
        f"first prompt scored in {(scored - loaded) * 1e3:.0f} ms"
    )
    silent = [column.name for column in router.columns if column.fitted_on is None]
    findings = [Finding("router", "ok", text)]
    if silent:
        findings.append(
            Finding("router", "note", f"{', '.join(silent)}: the router does not say on what it was fitted")
        )
    return router.config, findings


def check_config(path: Path, router: RouterConfig | None) -> Iterator[Finding]:
    """fleet.toml: every mistake, keys that are not set, models near their shutdown, models that nothing scores, and
    whether its target can be promised."""
    from onebeat.conductor.fleet_file import load_fleet, missing_variables, retirements, unscored
    from onebeat.conductor.routes import RouteTable
    from onebeat.conductor.targets import promise, setting_of

    try:
        fleet = load_fleet(path)
    except OnebeatError as error:
        for line in str(error).splitlines():
            yield Finding("config", "problem", line)
        return
    yield Finding("config", "ok", f"{path}: {len(fleet.models)} models from {len(fleet.providers)} providers")
    for provider, variable in missing_variables(fleet, os.environ).items():
        yield Finding("config", "problem", f"{provider} needs ${variable}, which is not set", f"export {variable}=...")
    for warning in retirements(fleet, datetime.date.today()):
        yield Finding("config", "note", warning)
    if router is None:
        return
    for warning in unscored(fleet, [column.name for column in router.columns]):
        yield Finding("config", "note", warning)
    try:
        found = setting_of(fleet, RouteTable(fleet, {}, datetime.date.today()), router)
    except OnebeatError as error:
        yield Finding("config", "problem", str(error))
        return
    if found is not None:
        yield Finding("config", "ok", promise(fleet, found))


def _processor_flags() -> set[str]:
    """Instruction sets that Linux reports; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if not (sys.platform == "linux" and cpuinfo.exists()):
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()
