"""Programs in the sandbox: tests decide, and what is forbidden does not happen."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from onebeat.conductor.learning.graders.code import Limits, extract_program, grade_code, run

QUICK = Limits(wall_s=8.0, cpu_s=2)
ENFORCED = run("", "", Limits(required=())).enforced
isolated = pytest.mark.skipif(
    not set(Limits().required) <= set(ENFORCED), reason=f"this kernel enforces only {', '.join(ENFORCED)}"
)


@isolated
def test_a_program_that_passes_and_one_that_does_not() -> None:
    answer = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles."
    assert grade_code(answer, "assert double(4) == 8").score == 1.0
    failed = grade_code(answer, "assert double(4) == 9, 'nine expected'")
    assert failed.score == 0.0
    assert "nine expected" in failed.reason
    assert grade_code("I would rather not.", "assert True").score == 0.0
    assert grade_code("```python\ndef broken(:\n```", "assert True").score == 0.0


@isolated
def test_tests_that_run_nothing_pass_no_program() -> None:
    checked = "def check(candidate):\n    assert candidate(4) == 9\n"
    for nothing in ("", "# none", "pass", '"""Tests."""', "import math", "LIMIT = 3", "x: int", checked):
        grade = grade_code("def double(x):\n    return 2 * x", nothing)
        assert grade.score is None and "the tests run nothing" in grade.reason


@isolated
def test_tests_that_call_what_they_define_do() -> None:
    checked = "def check(candidate):\n    assert candidate(4) == 9\n\ncheck(double)"
    assert grade_code("def double(x):\n    return 2 * x", checked).score == 0.0
    assert grade_code("def double(x):\n    return 2 * x", "answer = double(4)\nassert answer == 8").score == 1.0


@isolated
def test_leaving_early_is_not_passing() -> None:
    for program in ("import os; os._exit(0)", "raise SystemExit(0)", "import sys; sys.exit()"):
        assert grade_code(program, "assert False").score == 0.0


@isolated
def test_time_is_limited() -> None:
    started = time.monotonic()
    assert run("while True: pass", "", QUICK).ending == "out of time"
    assert run("import time; time.sleep(60)", "", Limits(wall_s=1.0)).ending == "out of time"
    assert time.monotonic() - started < 20


@isolated
def test_memory_is_limited() -> None:
    found = run("x = bytearray(2 * 2**30)", "", QUICK)
    assert found.ending == "failed"
    assert "MemoryError" in found.output


@isolated
def test_the_network_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert run(program, "", QUICK).ending == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


@isolated
def test_files_elsewhere_are_neither_read_nor_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    for program in (
        f"print(open({str(secret)!r}).read())",
        f"open({str(tmp_path / 'new.txt')!r}, 'w').write('x')",
        f"import os; os.remove({str(secret)!r})",
        "open('/etc/passwd').read()",
    ):
        found = run(program, "", QUICK)
        assert found.ending == "failed", program
        assert "a secret" not in found.output
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert run("open('mine.txt', 'w').write('x'); assert open('mine.txt').read() == 'x'", "", QUICK).passed


@isolated
def test_a_file_may_not_grow_without_end() -> None:
    found = run("open('big', 'wb').write(b'x' * 2**26)", "", QUICK)
    assert not found.passed


@isolated
@pytest.mark.skipif("disk" not in ENFORCED, reason="the working folder is no file system of its own here")
def test_many_files_may_not_fill_the_disk() -> None:
    found = run("for i in range(1000): open(f'{i}', 'wb').write(b'x' * 2**20)", "", QUICK)
    assert not found.passed
    assert "No space left" in found.output


@isolated
@pytest.mark.skipif("modes" not in ENFORCED, reason="this kernel cannot mount everything read-only")
def test_the_modes_and_times_of_foreign_files_stay(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("mine")
    before = foreign.stat()
    for program in (f"import os; os.chmod({str(foreign)!r}, 0)", f"import os; os.utime({str(foreign)!r}, (1, 1))"):
        assert run(program, "", QUICK).ending == "failed"
    assert (foreign.stat().st_mode, foreign.stat().st_mtime) == (before.st_mode, before.st_mtime)


@isolated
def test_a_program_cannot_signal_its_grader() -> None:
    """Without a process namespace and the hook these end the process that grades: this test would not come back."""
    assert "os.kill is not allowed here" in run("import os; os.kill(os.getppid(), 9)", "", QUICK).output
    alone = run("import os; assert os.getpid() == 1 and os.getppid() == 0", "", QUICK)
    assert alone.passed, alone.output


@isolated
def test_no_process_outlives_its_program() -> None:
    for program in (
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import ctypes; ctypes.CDLL(None)",
    ):
        found = run(program, "", QUICK)
        assert found.ending == "failed"
        assert "not allowed here" in found.output


@isolated
def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBEAT_TEST_KEY", "do not leak")
    found = run("import os; print(dict(os.environ))", "", QUICK)
    assert found.passed
    assert "do not leak" not in found.output
    assert os.environ["ONEBEAT_TEST_KEY"] == "do not leak"


def test_where_the_kernel_does_not_isolate_nothing_is_run() -> None:
    grade = grade_code("print(1)", "", limits=Limits(required=("teleportation",)))
    assert grade.score is None
    assert "teleportation" in grade.reason


DOUBLE = "def double(x):\n    return 2 * x\n"
FENCED = [
    f"```bash\npip install x\n```\n```python\n{DOUBLE}```",
    f"```python\n{DOUBLE}```\nOutput:\n```\nhello world\n```",
    f"```python\n{DOUBLE}```\nOutput:\n```\nhello\n```",
    f"```Python\n{DOUBLE}```",
    f"~~~~python\n{DOUBLE}~~~~",
    f"```python\n{DOUBLE}```".replace("\n", "\r\n"),
    "1. Do:\n\n   ```python\n   def double(x):\n       return 2 * x\n   ```\n",
    f'```python title="a.py"\n{DOUBLE}```\n```python\n>>> double(2)\n4\n```',
    f"```\n{DOUBLE}```\n```json\n{{}}\n```",
    f"```python\n{DOUBLE}",
]


@pytest.mark.parametrize("answer", FENCED)
def test_a_program_is_found_in_every_fence(answer: str) -> None:
    program = extract_program(answer)
    assert program is not None
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["double"](4) == 8


@isolated
def test_what_a_program_does_as_a_script_is_not_run() -> None:
    for script in ("print(double(int(input())))", "import sys; sys.exit(0)"):
        program = f"{DOUBLE}\nif __name__ == '__main__':\n    {script}\n"
        assert grade_code(program, "assert double(4) == 8").score == 1.0
        assert grade_code(program, "assert double(4) == 9").score == 0.0


@isolated
@pytest.mark.parametrize("tests", ["assert double(4 ==", "import a_module_that_is_not_there\nassert double(4) == 8"])
def test_broken_tests_say_nothing_of_the_program(tests: str) -> None:
    grade = grade_code(DOUBLE, tests)
    assert grade.score is None
    assert "the tests themselves are broken" in grade.reason


@isolated
def test_a_module_that_the_program_lacks_is_its_own_fault() -> None:
    program = "def double(x):\n    import a_module_that_is_not_there\n"
    assert grade_code(program, "double(4)").score == 0.0
    assert grade_code("import a_module_that_is_not_there", "").score == 0.0


def test_finding_the_program() -> None:
    assert extract_program("```py\na = 1\n```\nand\n```\nb = 2\n```") == "a = 1\n\n\nb = 2\n"
    assert extract_program("x = 1") == "x = 1"
    assert extract_program("This is prose; no code here.") is None
    assert extract_program("") is None
