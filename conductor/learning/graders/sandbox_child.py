"""The inside of the sandbox: takes away what a program must not have, runs it, then its tests. Run as a script.

Enters: on standard input, JSON with `program`, `tests`, `limits` and `nonce`. Leaves: on file descriptor 3, a line that
names what is enforced, then the nonce: alone if every test passed, or with what is wrong with the tests themselves.
Imports nothing of onebeat: it runs isolated (`python -I`).

What is enforced, and by whom:

    CPU time, memory, file size, open files      the kernel, by resource limits (any POSIX system)
    wall time                                    the parent, by killing the process group
    network                                      the kernel, by an empty network namespace (Linux, if users may)
    processes                                    the kernel, by a process namespace: the program sees and signals
                                                 nobody else, and what it starts dies with it
    files outside the working folder             the kernel, by Landlock (Linux 5.13 and newer): reading Python's own
                                                 libraries and writing in the working folder is all that is left
    modes and times of files outside it          the kernel, by mounting all of them read-only (Linux 5.12 and newer)
    disk                                         the kernel: the working folder is a file system of its own, in memory
    new processes, sockets, foreign functions    this interpreter's audit hook: a second line, not a wall

It keeps careless programs from doing harm. It is not meant for an adversary with a kernel exploit; and a program that
sets out to forge its verdict can, since the tests run beside it, in the same interpreter.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn, TextIO

NEW_MOUNT, NEW_USER, NEW_PROCESSES, NEW_NET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
NO_SUID, NO_DEVICES, DIE_WITH_PARENT = 2, 4, 1
REFUSED, OUT_OF_TIME, TESTS_BROKEN = 64, 65, 66
"""Exit codes: isolation is missing; the CPU time is used up; the tests are no Python, or import what is not there."""
MOUNT_SETATTR, HERE, RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, NO_NEW_PRIVILEGES = 444, 445, 446, 38
READ = 1 << 0 | 1 << 2 | 1 << 3
READ_FILE = 1 << 0 | 1 << 2
WRITE_FILE = 1 << 1 | 1 << 2
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "ctypes.",
    "pty.",
)


def limit_resources(limits: dict[str, int]) -> list[str]:
    """Each limit that the system took."""
    held = []
    wanted = {
        "cpu time": (resource.RLIMIT_CPU, limits["cpu_s"]),
        "memory": (resource.RLIMIT_AS, limits["memory_bytes"]),
        "file size": (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        "open files": (resource.RLIMIT_NOFILE, 32),
        "core dumps": (resource.RLIMIT_CORE, 0),
    }
    for name, (kind, value) in wanted.items():
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            continue
        held.append(name)
    return held


def leave(library: ctypes.CDLL, folder: str, disk_bytes: int) -> list[str]:
    """Moves into namespaces of its own: no network, not even a loopback that is up; no foreign processes; nothing to
    write to but a working folder in memory. Says what of that the system granted. The process namespace holds for
    children only."""
    if not hasattr(library, "unshare"):
        return []
    user, group = os.getuid(), os.getgid()
    if library.unshare(NEW_USER | NEW_NET | NEW_PROCESSES | NEW_MOUNT):
        return ["network"] if library.unshare(NEW_USER | NEW_NET) == 0 else []
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", name).write_text(text)
    except OSError:
        return ["network", "processes"]
    held = ["network", "processes"]
    read_only = struct.pack("=QQQQ", READ_ONLY, 0, 0, 0)
    if library.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, read_only, ctypes.c_size_t(len(read_only))) == 0:
        held.append("modes")
    size = f"size={disk_bytes},mode=700".encode()
    if library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(NO_SUID | NO_DEVICES), size):
        return held
    os.chdir(folder)
    return [*held, "disk"]


def confine_files(library: ctypes.CDLL, folder: str) -> bool:
    """Landlock: reads of Python's libraries, anything in `folder`, nothing else."""
    library.syscall.restype = ctypes.c_long
    version = library.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        return False
    everything = (1 << 13) - 1 | (1 << 14 if version >= 3 else 0)
    attributes = struct.pack("=Q", everything)
    rules = library.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    if rules < 0:
        return False
    places = dict.fromkeys((sys.prefix, sys.base_prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64"), READ)
    places |= {"/dev/null": WRITE_FILE, "/dev/urandom": READ_FILE, "/usr/share/zoneinfo": READ, folder: everything}
    for path, access in places.items():
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        beneath = struct.pack("=Qi", access, opened)
        failed = library.syscall(ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), beneath, ctypes.c_uint(0))
        os.close(opened)
        if failed:
            return False
    if library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return bool(library.syscall(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint(0)) == 0)


def forbid(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook."""
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"{event} is not allowed here")


def supervise(child: int) -> None:
    """Waits for the program and ends as it ended; where its CPU time is used up, says so."""
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        limit, _ = resource.getrlimit(resource.RLIMIT_CPU)
        out_of_time = limit != resource.RLIM_INFINITY and used.ru_utime + used.ru_stime >= 0.95 * limit
        os._exit(OUT_OF_TIME if out_of_time else 128 + os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def main() -> None:
    """Never returns normally without having said what became of the tests."""
    job = json.load(sys.stdin)
    report = os.fdopen(3, "w")
    library = ctypes.CDLL(None, use_errno=True)
    folder = os.path.realpath(os.curdir)
    enforced = leave(library, folder, job["limits"]["disk_bytes"])
    if confine_files(library, folder):
        enforced.append("files")
    enforced += limit_resources(job["limits"])
    report.write(json.dumps(enforced) + "\n")
    report.flush()
    if not set(job["required"]).issubset(enforced):
        os._exit(REFUSED)
    child = os.fork()
    if child:
        supervise(child)
    library.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    # What it may do inside its own namespaces is not needed any more: version 3 of the header, this thread, nothing.
    library.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    sys.addaudithook(forbid)
    _judge(job, report)


def _judge(job: dict[str, str], report: TextIO) -> None:
    """Runs both, in one namespace. The program is a module like any other: what it does as a script is not run."""
    try:
        tests = compile(job["tests"], "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        _tests_are_broken(job, report, error)
    module = sys.modules["program"] = ModuleType("program")
    exec(compile(job["program"], "program.py", "exec", dont_inherit=True), module.__dict__)
    module.__dict__["__name__"] = "tests"
    try:
        exec(tests, module.__dict__)
    except ModuleNotFoundError as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if [name for name in frames if not name.startswith("<frozen importlib")][-1] == "tests.py":
            _tests_are_broken(job, report, error)
        raise
    report.write(job["nonce"] + "\n")
    report.flush()


def _tests_are_broken(job: dict[str, str], report: TextIO, error: Exception) -> NoReturn:
    report.write(f"{job['nonce']} {type(error).__name__}: {error}".replace("\n", " ") + "\n")
    report.flush()
    os._exit(TESTS_BROKEN)


if __name__ == "__main__":
    main()
