"""Programs that must pass tests, each run in a sandbox of its own.

Enters: an answer with a program in it, and tests as Python text (assertions). Leaves: a `Grade`. What is enforced, and
by whom, is told in `sandbox_child`; by default, where the kernel does not keep the network, foreign files and
foreign processes away, nothing is run and the answer cannot be graded.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onebeat.conductor.learning.graders.grade import Grade, cannot_grade, right, wrong
from onebeat.conductor.learning.graders.sandbox_child import OUT_OF_TIME, REFUSED, TESTS_BROKEN

CHILD = Path(__file__).with_name("sandbox_child.py")
PYTHON = ("python", "py", "python3")
ISOLATION = ("network", "files", "processes")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 10 * 2**20
    """Of one file."""
    disk_bytes: int = 64 * 2**20
    """Of all its files together, where the kernel grants a file system of its own."""
    required: tuple[str, ...] = ISOLATION
    """What the kernel must enforce for the program to be run at all; see `sandbox_child` for the names."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a program."""

    passed: bool
    enforced: tuple[str, ...]
    ending: str
    """passed | failed | out of time | refused (isolation is missing) | broken (the sandbox itself) | broken tests"""
    output: str
    """The end of what it printed, errors included."""


def grade_code(answer: str, tests: str, *, limits: Limits | None = None) -> Grade:
    """Right when the answer's program runs and all tests pass."""
    program = extract_program(answer)
    if program is None:
        return wrong("it holds no program")
    found = run(program, tests, limits or Limits())
    if found.ending == "passed" and (tree := _compiled(tests)) and not any(map(_does_something, tree.body)):
        return cannot_grade("the tests run nothing, whatever they define; call it in them")
    if found.ending == "passed":
        return right("all tests passed")
    if found.ending == "refused":
        missing = ", ".join(name for name in (limits or Limits()).required if name not in found.enforced)
        return cannot_grade(f"this system does not isolate {missing} (enforced: {', '.join(found.enforced)})")
    if found.ending == "broken":
        return cannot_grade(f"the sandbox did not start: {found.output[-200:]}")
    if found.ending == "broken tests":
        return cannot_grade(f"the tests themselves are broken ({found.output[:200]})")
    last = found.output.strip().rsplit("\n", 1)[-1][:200]
    return wrong(f"{found.ending}: {last}" if last else found.ending)


def extract_program(answer: str) -> str | None:
    """The Python fences of an answer, joined; else the whole answer where it compiles; else None.

    Fences of another language are left out, and so is one of none (most often output) unless it defines something,
    and one that does not compile (a session with `>>>`) unless none does.
    """
    found = list(fences_of(answer))
    if not found:
        return answer if answer.strip() and _compiled(answer) is not None else None
    labelled = [body for language, body in found if language in PYTHON]
    held = [
        body for language, body in found if language in PYTHON or (not language and (not labelled or _defines(body)))
    ]
    return "\n\n".join([body for body in held if _compiled(body) is not None] or held) if held else None


def fences_of(answer: str) -> Iterator[tuple[str, str]]:
    """(language in lower case, body without the fence's indentation) of each code fence, as CommonMark pairs them; one
    that is not closed runs to the end."""
    fence, language, indent = "", "", 0
    body: list[str] = []
    for line in re.split(r"\r\n|\r|\n", answer):
        if not fence:
            if opening := re.match(r"(\s*)(`{3,}|~{3,})\s*\{?\.?([\w+#-]*)[^`]*$", line):
                indent, fence, language, body = len(opening[1]), opening[2], opening[3].lower(), []
        elif re.fullmatch(rf"\s*{fence[0]}{{{len(fence)},}}\s*", line):
            yield language, "".join(body)
            fence = ""
        else:
            body.append(line[min(indent, len(line) - len(line.lstrip())) :] + "\n")
    if fence:
        yield language, "".join(body)


def _compiled(text: str) -> ast.Module | None:
    try:
        compile(text, "answer", "exec", dont_inherit=True)
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(text: str) -> bool:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.Import, ast.ImportFrom)
    tree = _compiled(text)
    return tree is not None and any(isinstance(statement, kinds) for statement in tree.body)


def _does_something(statement: ast.stmt) -> bool:
    """Whether it can fail: tests that only define `check(candidate)`, or `test_one()`, pass with every program."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign):
        return any(not isinstance(part, ast.Constant) for part in ast.walk(statement.value or ast.Constant(None)))
    return not isinstance(statement, ast.Pass)


def run(program: str, tests: str, limits: Limits) -> Run:
    """Runs `program`, then `tests` in the same namespace, in a process and a folder of their own."""
    nonce = secrets.token_hex(16)
    job = {
        "program": program,
        "tests": tests,
        "nonce": nonce,
        "required": list(limits.required),
        "limits": {
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "disk_bytes": limits.disk_bytes,
        },
    }
    with tempfile.TemporaryDirectory(prefix="onebeat-code-") as folder, tempfile.TemporaryFile() as output:
        reading, writing = os.pipe()
        try:
            # The child finds its report at descriptor 3, wherever the pipe was here.
            command = [sys.executable, "-I", "-B", "-c", _LAUNCH, str(writing), str(CHILD)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        timed_out = _wait(process, json.dumps(job).encode(), limits.wall_s)
        with os.fdopen(reading, "rb") as report:
            lines = report.read(65536).decode(errors="replace").splitlines()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
        printed = output.read().decode(errors="replace")
    enforced = tuple(json.loads(lines[0])) if lines else ()
    if timed_out or process.returncode == OUT_OF_TIME:
        return Run(False, enforced, "out of time", printed)
    if not lines:
        return Run(False, enforced, "broken", printed)
    if process.returncode == REFUSED and not set(limits.required).issubset(enforced):
        return Run(False, enforced, "refused", printed)
    if process.returncode == TESTS_BROKEN and lines[-1].startswith(nonce):
        return Run(False, enforced, "broken tests", lines[-1].removeprefix(nonce).strip())
    passed = len(lines) > 1 and lines[-1] == nonce
    return Run(passed, enforced, "passed" if passed else "failed", printed)


_LAUNCH = (
    "import os, runpy, sys; fd = int(sys.argv[1]); "
    "(fd == 3) or (os.dup2(fd, 3), os.close(fd)); runpy.run_path(sys.argv[2], run_name='__main__')"
)


def _wait(process: subprocess.Popen[bytes], job: bytes, wall_s: float) -> bool:
    """Whether it had to be killed. What it left running is killed in any case."""
    try:
        process.communicate(job, timeout=wall_s)
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return timed_out
