"""A folder is there whole or not at all, whatever ends the run that writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onebeat.engine.errors import ConfigError
from onebeat.engine.whole_folder import whole_folder

KILLED = """
import sys, time
from pathlib import Path
from onebeat.engine.whole_folder import whole_folder
with whole_folder(Path(sys.argv[1])) as half:
    (half / "part").write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_was_written_appears_under_the_name(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "new"
    with whole_folder(target) as half:
        (half / "inner").mkdir()
        (half / "inner" / "file").write_text("whole")
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["new"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_replaced_and_a_full_one_never(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as half:
        (half / "file").write_text("whole")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with (
            pytest.raises(ConfigError, match="is there already and not an empty folder; name a new"),
            whole_folder(taken),
        ):
            raise AssertionError("work was begun")
    assert (tmp_path / "empty" / "file").read_text() == "whole"


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "new") as half:
        (half / "part").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_quicker_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"), whole_folder(tmp_path / "new") as slow:
        (slow / "file").write_text("slow")
        with whole_folder(tmp_path / "new") as quick:
            assert slow.is_dir(), "a half folder that somebody is writing is not a leftover"
            (quick / "file").write_text("quick")
    assert (tmp_path / "new" / "file").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_killed_run_leaves_nothing_under_the_name_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    target = tmp_path / "a[b]*c"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    [leftover] = tmp_path.iterdir()
    assert leftover.name.startswith(".a[b]*c.half-") and (leftover / "part").is_file()
    (tmp_path / ".aXbXc.half-mine").mkdir()
    with whole_folder(target) as half:
        (half / "file").write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[b]*c", ".aXbXc.half-mine"}


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for target in (tmp_path / "file" / "new", tmp_path / ("x" * 300), Path("a\0b"), Path("/proc/new")):
        told = pytest.raises(ConfigError, match=r"cannot be (written|looked at) \(.*\); name another folder")
        with told, whole_folder(target):
            raise AssertionError("work was begun")
    if os.geteuid():  # root may write everywhere
        tmp_path.chmod(0o500)
        with pytest.raises(ConfigError, match="Permission denied"), whole_folder(tmp_path / "new"):
            raise AssertionError("work was begun")
        tmp_path.chmod(0o700)
