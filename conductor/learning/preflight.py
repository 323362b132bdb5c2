"""What can be known to be wrong with a training job before anything long starts.

Enters: a `Job`, then the outcomes that it names. Leaves: nothing, or one sentence. `check_arguments` reads headers and
JSON only; `check_outcomes` sees the table that the fit will see, minutes before the fit does. Knows no features.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onebeat.conductor.learning import fit
from onebeat.conductor.learning.costs import check_prices
from onebeat.conductor.learning.features import check_taps
from onebeat.conductor.learning.outcomes import Outcomes
from onebeat.conductor.learning.sources import records
from onebeat.engine.arguments import number, whole
from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import InputError
from onebeat.engine.router_config import LEAST_PROMPT_TOKENS, template_problem
from onebeat.engine.strict_json import shown
from onebeat.engine.tokens import PromptTokenizer
from onebeat.engine.weights import Weights

if TYPE_CHECKING:
    from onebeat.conductor.learning.splits import Split
    from onebeat.conductor.learning.train import Job

MOST_PROMPTS = 10_000_000
LARGEST_SEED = 2**32 - 1
BELOW_ONE = float(np.nextafter(1.0, 0.0))


def check_arguments(job: Job, tap_sets: Sequence[Sequence[fit.TapName]], backbone: BackboneConfig) -> None:
    """Raises `InputError` for an argument, and the engine's errors for a backbone that cannot be used."""
    whole("--seed", job.seed, least=0, largest=LARGEST_SEED)
    whole("--max-prompts", job.max_prompts, least=fit.MIN_PROMPTS, largest=MOST_PROMPTS)
    number("--test-share", job.test_share, "it must be a share of 0 to below 1", least=0.0, largest=BELOW_ONE)
    if job.newest_share is not None:
        meaning = "it must be a share above 0 and below 1"
        number("--hold-out-newest", job.newest_share, meaning, least=5e-324, largest=BELOW_ONE)
        if job.held_out_groups:
            raise InputError(
                f"both --hold-out {job.held_out_groups[0]} and --hold-out-newest {job.newest_share:g} are given; "
                "hold out one or the other."
            )
    for path in job.files:
        records(path)
    check_columns(job.models)
    if not job.recipes:
        raise InputError("there are 0 kinds of head to try; name at least one with --recipe, or leave it out.")
    for taps in tap_sets:
        check_taps(taps, backbone)
    check_name(job.name or job.output.absolute().name)
    check_reading(job, backbone)
    Weights(job.backbone, backbone, max(layer for taps in tap_sets for layer, _ in taps))
    check_cache(job.cache_folder)


def check_columns(models: Sequence[str]) -> None:
    """Raises `InputError` for a column without a name, or one that is named twice."""
    for name in models:
        if not name.strip() or models.count(name) > 1:
            raise InputError(f"--models names {shown(name)} {models.count(name)} times; name every column once.")


def check_name(name: str) -> None:
    """Raises `InputError` for a router without a name."""
    if not name.strip():
        raise InputError(f"the router's name would be {shown(name)}; give one with --name.")


def check_reading(job: Job, backbone: BackboneConfig) -> None:
    """Raises `InputError` for a template or a budget that a router could not have; loads the tokenizer to see."""
    if (problem := template_problem(job.template)) is not None:
        raise InputError(f"--template {problem}.")
    whole("--max-prompt-tokens", job.max_prompt_tokens, least=LEAST_PROMPT_TOKENS, largest=backbone.max_positions)
    PromptTokenizer(
        job.backbone,
        template=job.template,
        max_prompt_tokens=job.max_prompt_tokens,
        vocab_size=backbone.vocab_size,
    )


def check_cache(folder: Path | None) -> None:
    """Raises `InputError` where features could not be kept."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"the folder for features, {folder}, cannot be made ({why}); name another: --cache.") from None


def check_output_file(flag: str, path: Path | None) -> None:
    """Raises `InputError` where a file could not be written when all is computed."""
    if path is None:
        return
    folder = path.absolute().parent
    try:
        problem = "it is a folder" if path.is_dir() else None if folder.is_dir() else f"{folder} is not a folder"
    except (OSError, ValueError) as error:
        problem = str(error.strerror if isinstance(error, OSError) else error)
    if problem is None and not os.access(path if path.exists() else folder, os.W_OK):
        problem = "it is not yours to write"
    if problem is not None:
        raise InputError(f"{flag} is {shown(str(path))} and cannot be written ({problem}); name another file.")


def check_outcomes(job: Job, outcomes: Outcomes, split: Split) -> None:
    """Raises `InputError` where the outcomes cannot be split, fitted or priced."""
    fit.check(outcomes.select(split.fit))
    known = np.isfinite(outcomes.score[split.fit]).any(0)
    if not known.all():
        first = outcomes.models[int(known.argmin())]
        raise InputError(
            f"none of the {len(split.fit)} prompts to fit on has a score for {shown(first)}; "
            "give more outcomes of it, hold out less, or leave it out of --models."
        )
    check_prices(outcomes, job.prices)
