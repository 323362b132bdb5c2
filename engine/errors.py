"""Every error that onebeat raises on purpose. Each message is one sentence: what is wrong, both values, the way out.

OnebeatError
├── ConfigError          a setting, a key, a flag: names the place and the nearest valid name
├── CheckpointError      a router or backbone on disk
│   ├── WeightError      a missing, extra, misshaped, NaN-holding or truncated tensor
│   └── FormatError      an unknown architecture, a newer format version, a pickle
├── FetchError           a download that failed; nothing half-written is left where it could be picked up
├── InputError           a prompt, a message list, a file of outcomes, a tensor argument
│   └── KernelError      a kernel's argument: names it, what it got, what it takes
├── ConstraintError      no model satisfies min_quality, max_cost_usd or a capability: says which failed
└── EngineError          the live engine could not answer
    ├── OverloadedError  the queue is full: told at once
    ├── DeadlineError    the deadline passed, or can no longer be met
    └── StoppedError     the engine is stopping, or its worker failed (the cause is chained)
"""

from __future__ import annotations


class OnebeatError(Exception):
    """The base of every error a user can meet and mend."""


class ConfigError(OnebeatError):
    """A setting, key or flag is wrong."""


class CheckpointError(OnebeatError):
    """A router or backbone on disk cannot be used."""


class WeightError(CheckpointError):
    """A tensor is missing, extra, misshaped, truncated or holds NaN."""


class FormatError(CheckpointError):
    """A file is of a kind or version that this onebeat does not read."""


class FetchError(OnebeatError):
    """A download failed; what was there before is untouched."""


class InputError(OnebeatError):
    """A prompt, a record or an argument cannot be used."""


class KernelError(InputError):
    """A kernel's argument has the wrong dtype, device, layout or shape."""


class ConstraintError(OnebeatError):
    """No model satisfies the constraints; the message says which one failed."""


class EngineError(OnebeatError):
    """The live engine could not answer this caller."""


class OverloadedError(EngineError):
    """The queue is full."""


class DeadlineError(EngineError):
    """The deadline passed before the prompt was computed, or can no longer be met."""


class StoppedError(EngineError):
    """The engine is stopping, or its worker failed."""
