"""The router: prompts in, predicted quality and answer length per model out, and the decision that follows.

Enters: a router's folder, the default router, or one on the hub; then prompts. Leaves: `Scores` and `Decision`s. Knows
no provider. Thread-safe: nothing changes after loading.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from onebeat.engine.arguments import check_dial, check_models, flag, whole
from onebeat.engine.as_served import served_backbone, served_weights
from onebeat.engine.config import BackboneConfig
from onebeat.engine.decision import Decision, Offer, choose, weigh
from onebeat.engine.errors import CheckpointError, ConfigError, InputError
from onebeat.engine.foreign_heads import ForeignHead
from onebeat.engine.head import Head
from onebeat.engine.head_file import load_head
from onebeat.engine.hub import router_folder
from onebeat.engine.int8_file import FORMAT as INT8_FORMAT
from onebeat.engine.int8_file import Int8File
from onebeat.engine.loading import Precision
from onebeat.engine.records import Column, Prompt, Scores, Timing
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.router_files import HEAD_FILES, TEXT_FILES
from onebeat.engine.runner import Runner
from onebeat.engine.strict_json import nearest, shown
from onebeat.engine.targets import MIDDLE, Setting, Target, parse_target, setting, tradeoff_of
from onebeat.engine.tokens import Prepared, PromptTokenizer
from onebeat.engine.weights import Weights

if TYPE_CHECKING:
    from onebeat.engine.live import LiveRouter

PRECISIONS = ("auto", "int8", "bfloat16", "float32")


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """A loaded router; build it with `from_pretrained`."""

    config: RouterConfig
    tokenizer: PromptTokenizer
    runner: Runner
    head: Head | ForeignHead
    fingerprint: str
    """Hash of the backbone, the head, the tokenizer and the precision: scores with the same fingerprint are equal."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "default",
        *,
        precision: Literal["auto", "int8", "bfloat16", "float32"] = "auto",
        device: str = "auto",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Router:
        """Loads the router in a folder, the default one, or `hf:org/name` (optionally `@revision`).

        `precision` "auto" is int8; `device` "auto" is a GPU where there is one. `cache_dir` is where files from the hub
        are kept. Raises `ConfigError` for arguments, `FetchError` for what cannot be fetched, `CheckpointError` for
        what is on disk: each in one sentence that says how to mend it.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {shown(precision)}; {nearest(str(precision), PRECISIONS)}.")
        where = _device(device)
        folder = router_folder(source, revision=revision, cache_folder=cache_dir)
        config = RouterConfig.load(folder)
        backbone = BackboneConfig.load(folder)
        config.check_backbone(backbone, str(folder / "router.json"))
        tokenizer = PromptTokenizer(
            folder,
            template=config.template,
            max_prompt_tokens=config.max_prompt_tokens,
            vocab_size=backbone.vocab_size,
        )
        actual: Precision = "int8" if precision == "auto" else precision
        weights = served_weights(folder, backbone, config.last_layer, actual)
        head = load_head(folder, config, backbone, weights, tokenizer.token_id)
        layers = served_backbone(
            backbone,
            weights,
            tokenizer,
            [tap.layer for tap in config.taps],
            actual,
            max_prompt_tokens=config.max_prompt_tokens,
            device=where,
        )
        runner = Runner(layers, [tap.pooling for tap in config.taps])
        return cls(config, tokenizer, runner, head, _fingerprint(folder, weights, actual, where.type))

    @property
    def columns(self) -> tuple[Column, ...]:
        """[M] the models that are scored."""
        return self.config.columns

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are cut to this many tokens."""
        return self.config.max_prompt_tokens

    def prepare(self, prompt: Prompt) -> Prepared:
        """Template, tokens and cut of one prompt; uses no tensors. Raises `InputError`."""
        prepared = self.tokenizer.prepare(prompt)
        if isinstance(self.head, ForeignHead):
            ids = self.head.trimmed(prepared.token_ids)
            return Prepared(ids, prepared.prompt_tokens, prepared.cut_tokens, prepared.estimated)
        return prepared

    def score(self, prompts: Sequence[Prompt], *, features: bool = False) -> Scores:
        """Predicted quality and answer length of every model for `n` prompts: strings, or lists of messages.

        `features` keeps the pooled states, too. Raises `InputError` for a prompt that cannot be read, saying which.
        """
        flag("features", features)
        prepared, tokenize_ms = self._prepare_all(prompts)
        start = time.perf_counter()
        pooled = self.runner.features([prompt.token_ids for prompt in prepared]).numpy()  # [n, taps*H]
        self._refuse_not_finite(pooled, "hidden states")
        with np.errstate(all="ignore"):  # What overflows is refused on the next line.
            quality, output_tokens = self.head.score(pooled)
        self._refuse_not_finite(quality + output_tokens, "scores")
        compute_ms = (time.perf_counter() - start) * 1e3
        return Scores(
            self._names,
            quality,
            output_tokens,
            np.array([prompt.prompt_tokens for prompt in prepared], np.int64),
            np.array([prompt.cut_tokens for prompt in prepared], np.int64),
            tuple(
                Timing(
                    tokenize_ms=spent_ms,
                    compute_ms=compute_ms,
                    total_ms=spent_ms + compute_ms,
                    computed_tokens=len(prompt.token_ids),
                )
                for prompt, spent_ms in zip(prepared, tokenize_ms, strict=True)
            ),
            tuple(prompt.estimated for prompt in prepared),
            pooled if features else None,
        )

    def route(
        self,
        prompt: Prompt,
        *,
        tradeoff: float | None = None,
        target: str | None = None,
        min_quality: float | None = None,
        max_cost_usd: float | None = None,
        models: Sequence[str] | None = None,
    ) -> Decision:
        """Scores one prompt and decides.

        `tradeoff` runs from 0 (cheapest that is not hopeless) to 1 (best, whatever it costs), 0.5 where neither it nor
        `target` is given; `target` is what `setting_for` takes; `models` restricts the choice. Raises `InputError`, and
        `ConstraintError` where the target is out of reach or no model satisfies `min_quality` and `max_cost_usd`,
        saying which failed.
        """
        # What is wrong with an argument is said before the prompt is computed.
        position = tradeoff_of(tradeoff, target, models, self.setting_for)
        check_dial(position, min_quality, max_cost_usd)
        check_models(models, self._names)
        scores = self.score([prompt])
        return self.decide(scores, tradeoff=position, min_quality=min_quality, max_cost_usd=max_cost_usd, models=models)

    def setting_for(self, target: str | Target) -> Setting:
        """The dial position for "95%" of the best model's quality, or for "0.40 usd" per thousand requests, and what it
        is expected to give on prompts like those it was solved on, every column to choose from. A `Target` is one read.

        Raises `InputError` for a target that means nothing or a router without a solved dial, and `ConstraintError`
        where the target is out of reach.
        """
        wanted = target if isinstance(target, Target) else parse_target(target)
        return setting(self.config.fitted.get("dial"), wanted)

    def decide(
        self,
        scores: Scores,
        row: int = 0,
        *,
        tradeoff: float = MIDDLE,
        min_quality: float | None = None,
        max_cost_usd: float | None = None,
        models: Sequence[str] | None = None,
    ) -> Decision:
        """The decision for prompt `row` of `scores`; arithmetic only. Raises as `route` does."""
        check_models(models, self._names)
        whole("row", row, least=0, largest=len(scores.quality) - 1)
        if scores.models != self._names:
            raise InputError(
                f"the scores are of {', '.join(scores.models)} and this router scores {', '.join(self._names)}; "
                "decide with the router that scored."
            )
        tokens = int(scores.prompt_tokens[row])
        offers = [
            Offer(
                column.name,
                float(scores.quality[row, index]),
                float(scores.output_tokens[row, index]),
                cost_usd(column, tokens, float(scores.output_tokens[row, index])),
            )
            for index, column in enumerate(self.columns)
            if models is None or column.name in models
        ]
        weighed = weigh(
            offers,
            tradeoff=tradeoff,
            reference_cost_usd=self.config.reference_cost_usd,
            min_quality=min_quality,
            max_cost_usd=max_cost_usd,
        )
        return choose(
            weighed,
            tradeoff=tradeoff,
            min_quality=min_quality,
            max_cost_usd=max_cost_usd,
            prompt_tokens=tokens,
            cut_tokens=int(scores.cut_tokens[row]),
            timing=scores.timing[row] if scores.timing else None,
            estimated=bool(scores.estimated) and scores.estimated[row],
        )

    def serve(self, *, progress: Callable[[int, int, str], None] | None = None, **options: object) -> LiveRouter:
        """`async with router.serve() as live`: continuous batching for an event loop.

        `options` are those of `engine.options.EngineOptions`; `progress` is called as (done, total, what) while warming
        up. Raises `ConfigError` for an option that is unknown, or is not what it must be.
        """
        from onebeat.engine.live import LiveRouter

        return LiveRouter(self, progress=progress, **options)

    def _prepare_all(self, prompts: Sequence[Prompt]) -> tuple[list[Prepared], list[float]]:
        if not isinstance(prompts, Sequence) or isinstance(prompts, str | bytes):
            what = "one prompt" if isinstance(prompts, str) else f"a {type(prompts).__name__}"
            raise InputError(f"score takes a list of prompts and was given {what}; put it in a list.")
        if any(isinstance(prompt, dict) for prompt in prompts):
            raise InputError("score takes a list of prompts and was given one prompt's messages; put it in a list.")
        prepared, spent_ms = [], []
        for index, prompt in enumerate(prompts):
            start = time.perf_counter()
            try:
                prepared.append(self.prepare(prompt))
            except InputError as error:
                raise InputError(
                    f"prompt {index} of {len(prompts)}: {error}" if len(prompts) > 1 else str(error)
                ) from None
            spent_ms.append((time.perf_counter() - start) * 1e3)
        return prepared, spent_ms

    def _refuse_not_finite(self, rows: NDArray[np.float32], what: str) -> None:
        """A checkpoint whose numbers overflow must not decide anything. `rows` is [n, ...]."""
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            row = int(bad.argmax())
            found = rows[row][~np.isfinite(rows[row])][0]
            raise CheckpointError(
                f"the router {self.config.name!r} computed {found} among the {what} of prompt {row}, so its weights "
                'overflow; load it with precision="float32", or fetch or fit it again.'
            )


def cost_usd(column: Column, prompt_tokens: int, output_tokens: float) -> float:
    """What this prompt and its predicted answer cost at the column's list prices."""
    return (prompt_tokens * column.input_usd_per_million + output_tokens * column.output_usd_per_million) / 1e6


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # torch knows more spellings: what is written here is what the messages and --help promise.
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f'device is {shown(device)}; it must be "auto", "cpu", "cuda" or "cuda:1".')
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'device is {shown(device)} and torch finds {torch.cuda.device_count()} GPUs; use "cpu".')
    return found


def _fingerprint(folder: Path, weights: Weights | Int8File, precision: str, device: str) -> str:
    digest = hashlib.sha256(f"{weights.sha256} {precision} {INT8_FORMAT} {device}".encode())
    for name in (*HEAD_FILES, *TEXT_FILES):
        path = folder / name
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()[:32]
