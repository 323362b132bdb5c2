"""Who is fitted on and who is judged: splits by prompt within every source, or of whole sources.

Enters: prompts and their groups. Leaves: index arrays with a name that says how to make them again. A prompt's side
depends on the set of prompts of its source and on the seed: of that set the smallest salted hashes are held out, a
share exact to one prompt. The order of a file has no say, and white-space twins share a side. Where prompts of a source
come or go, the line moves and those next to it change sides: what a head was fitted on, `fitted` knows by hashes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebeat.conductor.learning.outcomes import Outcomes, prompt_key
from onebeat.engine.errors import InputError
from onebeat.engine.records import Prompt

Rows = NDArray[np.int64]
MAX_PROMPTS = 50_000
"""Distinct prompts that are read and learnt from unless more are asked for: each costs a forward pass (half an hour for
all of them on two cores), and 2.3 KB of memory a tap of 576 numbers."""


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers to fit on and to judge on, and the name that reproduces them."""

    fit: Rows
    test: Rows
    name: str

    def within(self, rows: Rows) -> Split:
        """The same split of a table that keeps only `rows`, numbered anew: every prompt stays on its side."""
        place = {int(row): number for number, row in enumerate(rows)}
        sides = [
            np.array([place[int(row)] for row in side if int(row) in place], np.int64) for side in (self.fit, self.test)
        ]
        return Split(sides[0], sides[1], self.name)


def sample_prompts(prompts: Sequence[Prompt], groups: Sequence[str], most: int, *, seed: int = 0) -> Rows:
    """[k] all rows where there are at most `most`, else about so many: of every source its share, by salted hash.

    White-space twins go together; which side of a split a prompt is on has no say in it.
    """
    if len(prompts) <= most:
        return np.arange(len(prompts))
    ranks = [_salted(prompt_key(prompt), seed, b"sample") for prompt in prompts]
    share = most / len(prompts)
    chosen: list[int] = []
    for _, rows in sorted(_members(groups).items()):
        ordered = sorted(rows, key=lambda row: ranks[row])
        chosen += ordered[: max(1, int(share * len(ordered)))]
    return np.sort(np.asarray(chosen, np.int64))


def sampled(kept: int, read: int, seed: int) -> str:
    """What is said of a sample."""
    return (
        f"{kept:,} of {read:,} distinct prompts, drawn by seed {seed} from every source in proportion, are used; "
        "--max-prompts takes more"
    )


def split_prompts(prompts: Sequence[Prompt], groups: Sequence[str], *, test_share: float = 0.3, seed: int = 0) -> Split:
    """Within every group, the `test_share` of prompts with the smallest salted hashes are held out.

    A group of one prompt is fitted on. Raises `InputError` for a share outside 0..1.
    """
    if not 0.0 <= test_share < 1.0:
        raise InputError(f"test share is {test_share}; it is a share from 0 to below 1.")
    ranks = [_salted(prompt_key(prompt), seed) for prompt in prompts]
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    test: list[int] = []
    for group in sorted(members):
        distinct = sorted({ranks[row] for row in members[group]})
        held = set(distinct[: round(test_share * len(distinct))])
        test += [row for row in members[group] if ranks[row] in held]
    chosen = np.zeros(len(prompts), bool)
    chosen[test] = True
    name = f"prompt hash within source, {100 * test_share:g} % held out, seed {seed}"
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen), name)


def hold_out_groups(groups: Sequence[str], held_out: Sequence[str]) -> Split:
    """Whole sources held out. Raises `InputError` for one that no prompt has, or when nothing is left to fit on."""
    known = sorted(set(groups))
    for name in held_out:
        if name not in known:
            raise InputError(f"no prompt is of group {name!r}; the groups are {', '.join(known)}.")
    split = _by_group(groups, held_out)
    if not len(split.fit):
        raise InputError(f"holding out {', '.join(held_out)} leaves nothing to fit on.")
    return split


def _by_group(groups: Sequence[str], held_out: Sequence[str]) -> Split:
    chosen = np.array([group in held_out for group in groups])
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen), f"sources held out: {', '.join(sorted(held_out))}")


def hold_out_newest(time_s: NDArray[np.float64], share: float) -> Split:
    """The newest `share` of the prompts held out: what a head fitted until then would meet next.

    Prompts without a time are fitted on. Raises `InputError` where too few have one.
    """
    known = np.flatnonzero(np.isfinite(time_s))
    count = round(share * len(time_s))
    if not 0.0 < share < 1.0 or not 0 < count <= len(known):
        raise InputError(
            f"the newest {share:g} of {len(time_s)} prompts cannot be held out: {len(known)} have a time, and the "
            "share must be above 0 and below 1."
        )
    newest = known[np.argsort(-time_s[known], kind="stable")[:count]]
    chosen = np.zeros(len(time_s), bool)
    chosen[newest] = True
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen), f"newest {100 * share:g} % held out")


def newer_than(time_s: NDArray[np.float64], moment_s: float) -> Split:
    """The prompts after a moment, seconds since 1970, held out; those without a time are not."""
    chosen = np.nan_to_num(time_s, nan=-np.inf) > moment_s
    moment = datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="seconds")
    return Split(np.flatnonzero(~chosen), np.flatnonzero(chosen), f"newer than {moment}, the newest fitted on")


def recorded(held: Mapping[str, Any], outcomes: Outcomes) -> Split:
    """The split that a fit kept in router.json, `fitted.split`, made again on these outcomes; a side may be empty.

    Raises `InputError` where prompts have no times and the split was by time.
    """
    if held.get("newest_fitted_s") is not None:
        return newer_than(outcomes.time_s, held["newest_fitted_s"])
    if held.get("newest_share") is not None:
        return hold_out_newest(outcomes.time_s, held["newest_share"])
    if held["held_out_groups"]:
        return _by_group(outcomes.groups, held["held_out_groups"])
    return split_prompts(outcomes.prompts, outcomes.groups, test_share=held["test_share"], seed=held["seed"])


def folds(
    prompts: Sequence[Prompt], groups: Sequence[str], count: int, *, seed: int = 0, whole_groups: bool = False
) -> list[Rows]:
    """`count` disjoint test folds that cover every row: of prompts within sources, or of whole sources."""
    keys = [
        group.encode() if whole_groups else prompt_key(prompt) for prompt, group in zip(prompts, groups, strict=True)
    ]
    ranks = [_salted(key, seed) for key in keys]
    fold = np.zeros(len(prompts), np.int64)
    strata = {"": range(len(prompts))} if whole_groups else _members(groups)
    start = 0
    for name in sorted(strata):
        distinct = sorted({ranks[row] for row in strata[name]})
        place = {rank: (start + index) % count for index, rank in enumerate(distinct)}
        start += len(distinct)
        for row in strata[name]:
            fold[row] = place[ranks[row]]
    return [np.flatnonzero(fold == index) for index in range(count)]


def _members(groups: Sequence[str]) -> dict[str, Sequence[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    return dict(members)


def _salted(key: bytes, seed: int, purpose: bytes = b"") -> bytes:
    return hashlib.blake2b(key, digest_size=16, salt=seed.to_bytes(8, "little"), person=purpose).digest()
