"""onebeat: learned LLM routing at kernel speed.

The public names load on first use, so that `import onebeat` and `onebeat --help` never wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onebeat.engine.decision import Decision
    from onebeat.engine.errors import OnebeatError
    from onebeat.engine.records import Scores

__version__ = "0.1.0"
__all__ = ["Decision", "OnebeatError", "Router", "Scores", "__version__"]

_HOMES = {
    "Decision": "onebeat.engine.decision",
    "OnebeatError": "onebeat.engine.errors",
    "Router": "onebeat.engine.router",
    "Scores": "onebeat.engine.records",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'onebeat' has no attribute {name!r}")
