"""The door: exit codes and help, without loading torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebeat import cli


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in printed


def test_help_does_not_import_torch() -> None:
    code = "import sys; from onebeat import cli; cli.main(['--version']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("onebeat ")


def test_no_command_prints_help_and_exits_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


STREAMS: dict[str, tuple[str, int, str, str]] = {
    "closed standard input": ("route <&-", 2, "", "onebeat: there is no prompt and standard input is closed; give it"),
    "closed standard output": ("doctor >&-", 2, "", "onebeat: standard output is closed, so nothing could be told"),
    "closed standard error": ("route '' 2>&-", 2, "", ""),
    "everything closed": ("route '' <&- >&- 2>&-", 2, "", ""),
    "a full disk": ("--help >/dev/full", 2, "", "onebeat: the system refused: No space left on device"),
    "a bad letter on a poor terminal": ("route --tradeoff 2 h\u00e9", 2, "", "onebeat: tradeoff is 2.0; it runs"),
}


def without_unbuffered() -> dict[str, str]:
    """Output that waits in a buffer is what fails late."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return environment | {"PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_are_closed_full_or_gone_end_in_a_sentence_at_most(name: str) -> None:
    line, code, out, error = STREAMS[name]
    command = ["bash", "-c", f'exec_() {{ {sys.executable} -m onebeat "$@"; }}; exec_ {line}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=without_unbuffered(), check=False)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.startswith(error) and done.stderr.count("\n") == bool(error), done.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 141), (["route", ""], 2)])
def test_readers_that_have_gone_are_told_nothing_and_leave_an_exit_code(arguments: list[str], code: int) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "onebeat", *arguments]
    done = subprocess.run(
        command,
        stdout=write,
        stderr=write,
        timeout=120,
        env=without_unbuffered(),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    os.close(write)
    assert done.returncode == code


def test_a_closed_descriptor_never_becomes_the_first_file(tmp_path: Path) -> None:
    """With standard output closed, what a library prints would otherwise land in a file that we write."""
    code = (
        "import os, sys; from onebeat import cli; cli.main(['--version']); "
        f"held = os.open({str(tmp_path / 'precious')!r}, os.O_CREAT | os.O_WRONLY); os.write(1, b'stray'); "
        "sys.exit(held < 3)"
    )
    command = ["bash", "-c", f'{sys.executable} -c "$0" <&- >&- 2>&-', code]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert (tmp_path / "precious").read_bytes() == b""
