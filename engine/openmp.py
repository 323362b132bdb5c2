"""Lets go of the workers that OpenMP keeps for a thread which has computed.

Enters: nothing. Leaves: fewer threads. Knows nothing of what was computed.

GNU OpenMP, which torch's CPU builds use, keeps a team of workers for every thread that has ever run a parallel loop.
Once all teams together count more threads than the machine has cores, a worker no longer spins between two loops but
sleeps. A forward is some five hundred short loops, and waking a sleeper takes tens of microseconds: with a second team
in the process, a prompt of 80 tokens took 89 ms where its forward alone takes about 25.
"""

from __future__ import annotations

import ctypes

_SOFT = 1
"""omp_pause_soft of OpenMP 5.0, section 3.2.44: what is needed again is made again."""


def rest() -> bool:
    """Ends the calling thread's idle workers; its next parallel loop makes new ones. False where there is no such
    OpenMP in this process."""
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, AttributeError, TypeError):
        return False
    return bool(pause(_SOFT) == 0)
