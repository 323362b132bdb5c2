"""A router's head, read from disk: onebeat's own from router_head.safetensors, or a foreign one.

Enters: a folder, its router.json, its backbone's config and weights. Leaves: a head whose width, columns and numbers
have been checked. Knows nothing of how a head computes: `head` and `foreign_heads` do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onebeat.engine.config import BackboneConfig
from onebeat.engine.errors import FormatError, WeightError
from onebeat.engine.foreign_heads import FOREIGN_KINDS, FinalNorm, ForeignHead, foreign_head
from onebeat.engine.head import KINDS, Head
from onebeat.engine.int8_file import Int8File
from onebeat.engine.router_config import RouterConfig
from onebeat.engine.safetensors_file import SafetensorsFile
from onebeat.engine.strict_json import nearest, read_object, shown
from onebeat.engine.weights import CLASSIFIER, Weights

HEAD_FILE = "router_head.safetensors"
ACTIVATIONS = {None: "softmax", "single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
"""What `problem_type` of a `*ForSequenceClassification` config.json says about its logits."""


def load_head(
    folder: Path,
    router: RouterConfig,
    backbone: BackboneConfig,
    weights: Weights | Int8File,
    token_id: Callable[[str], int | None],
) -> Head | ForeignHead:
    """The head that router.json describes. `token_id` finds a token by its name.

    Raises `FormatError` or `WeightError` in one sentence.
    """
    kind = router.head.kind
    if kind not in (*KINDS, *FOREIGN_KINDS):
        raise FormatError(
            f"{folder / 'router.json'}: the head is of kind {shown(kind)}; {nearest(kind, (*KINDS, *FOREIGN_KINDS))}."
        )
    if kind in KINDS:
        return Head.from_tensors(
            {name: tensor.numpy() for name, tensor in _head_tensors(folder).items()},
            kind=kind,
            columns=[column.name for column in router.columns],
            features=len(router.taps) * backbone.hidden_size,
            calibration=router.calibration,
        )
    _check_foreign_taps(folder, router, backbone)
    name, weight = _foreign_weight(folder, router, weights, token_id)
    final = router.last_layer == backbone.layers
    settings = read_object(folder / "config.json")
    return foreign_head(
        router.head,
        router.columns,
        weight.to(torch.float32).numpy(),
        name=name,
        hidden_size=backbone.hidden_size,
        norm=FinalNorm(weights.tensor("final_norm").to(torch.float32).numpy(), backbone.norm_eps) if final else None,
        padding_id=_padding_id(settings),
        activation=_activation(folder, router, settings),
    )


def _head_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / HEAD_FILE
    if not path.is_file():
        raise WeightError(
            f"{folder} has no {HEAD_FILE}, which its router.json calls for; fit a head with `onebeat train`."
        )
    file = SafetensorsFile(path)
    return {name: file.read(name).to(torch.float32) for name in file.entries}


def _foreign_weight(
    folder: Path, router: RouterConfig, weights: Weights | Int8File, token_id: Callable[[str], int | None]
) -> tuple[str, torch.Tensor]:
    """The head's matrix, and what to call it in errors."""
    if router.head.kind == "sequence_classification":
        found = weights.raw(CLASSIFIER)
        if found is None:
            raise WeightError(f"{folder} has no tensor {CLASSIFIER!r}; it is no *ForSequenceClassification checkpoint.")
        return CLASSIFIER, found
    if router.head.kind == "causal_classifier":
        rows = []
        for label in router.head.label_tokens:
            row = token_id(label)
            if row is None:
                raise FormatError(
                    f"{folder / 'tokenizer.json'} has no token {label!r}; a causal classifier's label tokens are "
                    "appended to the vocabulary (label_tokens in router.json names them)."
                )
            rows.append(row)
        return "the output matrix's rows of the label tokens", weights.rows("output", rows)
    tensors = _head_tensors(folder)
    name = router.head.tensor
    if name is None:
        if len(tensors) != 1:
            raise FormatError(
                f"{folder / HEAD_FILE} holds {len(tensors)} tensors ({', '.join(sorted(tensors)) or 'none'}); "
                "name the head's with head.tensor in router.json."
            )
        (name,) = tensors
    if name not in tensors:
        raise WeightError(f"{folder / HEAD_FILE} has no tensor {name!r}; {nearest(name, tensors)}.")
    return name, tensors[name]


def _check_foreign_taps(folder: Path, router: RouterConfig, backbone: BackboneConfig) -> None:
    place, kind = folder / "router.json", router.head.kind
    if len(router.taps) != 1 or router.taps[0].pooling != "last":
        found = ", ".join(f"{tap.pooling} of layer {tap.layer}" for tap in router.taps)
        raise FormatError(f'{place} taps {found}; a {kind} head reads one token: give one tap with pooling "last".')
    if kind != "bare" and router.last_layer != backbone.layers:
        raise FormatError(
            f"{place} taps layer {router.last_layer}; a {kind} head reads the last of the backbone's "
            f"{backbone.layers} layers: tap {backbone.layers}."
        )
    if router.calibration is not None:
        raise FormatError(f"{place} has a calibration, which a {kind} head does not take; remove it.")


def _padding_id(settings: dict[str, Any]) -> int | None:
    padding = settings.get("pad_token_id")
    return padding if isinstance(padding, int) and not isinstance(padding, bool) else None


def _activation(folder: Path, router: RouterConfig, settings: dict[str, Any]) -> str:
    """Softmax or sigmoid, as the checkpoint's config.json says where router.json does not."""
    if router.head.activation is not None:
        return router.head.activation
    kind = settings.get("problem_type")
    if router.head.kind == "sequence_classification" and (not isinstance(kind, str | None) or kind not in ACTIVATIONS):
        raise FormatError(
            f"{folder / 'config.json'}: problem_type is {shown(kind)}, whose values are no qualities from 0 to 1; "
            'set head.activation in router.json to "softmax" or "sigmoid".'
        )
    return ACTIVATIONS.get(kind, "softmax")
