"""The head's arithmetic, its bit-stability in any batch, and what it says of a broken one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.engine.errors import FormatError, InputError, WeightError
from onebeat.engine.head import Head, gelu, logistic

FEATURES, MODELS, WIDTH, LANDMARKS = 37, 3, 5, 6
COLUMNS = ["small", "middle", "large"]


def tensors(kind: str, *, skip: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    width = {"linear": FEATURES, "kernel": LANDMARKS}.get(kind, WIDTH)
    read = LANDMARKS if kind == "kernel" else FEATURES
    held = {
        "norm.mean": random.normal(size=FEATURES),
        "norm.scale": random.uniform(0.5, 2, FEATURES),
        "quality.weight": random.normal(size=(MODELS, width)) / 3,
        "quality.bias": random.normal(size=MODELS),
        "length.weight": random.normal(size=(MODELS, read)) / 10,
        "length.bias": random.normal(size=MODELS) + 5,
    }
    if kind != "linear":
        held |= {"hidden.weight": random.normal(size=(WIDTH, FEATURES)) / 6, "hidden.bias": random.normal(size=WIDTH)}
    if kind == "kernel":
        held |= {"kernel.landmarks": random.normal(size=(LANDMARKS, WIDTH)), "kernel.width": np.array([2.5])}
    if skip:
        held["quality.skip"] = random.normal(size=(MODELS, FEATURES)) / 6
    return {name: value.astype(np.float32) for name, value in held.items()}


def head(kind: str, calibration: dict[str, object] | None = None, *, skip: bool = False) -> Head:
    return Head.from_tensors(
        tensors(kind, skip=skip), kind=kind, columns=COLUMNS, features=FEATURES, calibration=calibration
    )


@pytest.mark.parametrize(
    ("kind", "skip"), [("linear", False), ("low_rank", False), ("mlp", False), ("mlp", True), ("kernel", False)]
)
def test_score_is_the_formula_of_the_docstring(kind: str, skip: bool) -> None:
    held = tensors(kind, skip=skip)
    states = np.random.default_rng(1).normal(size=(11, FEATURES)).astype(np.float32)
    normed = (states - held["norm.mean"]) / held["norm.scale"]
    inner = normed
    if kind != "linear":
        inner = normed @ held["hidden.weight"].T + held["hidden.bias"]
        inner = gelu(inner) if kind == "mlp" else inner
    if kind == "kernel":
        distances = np.linalg.norm(inner[:, None] - held["kernel.landmarks"][None], axis=2)
        inner = np.exp(-distances / held["kernel.width"])
    logits = inner @ held["quality.weight"].T + held["quality.bias"]
    if skip:
        logits = logits + normed @ held["quality.skip"].T
    quality, lengths = head(kind, skip=skip).score(states)
    np.testing.assert_allclose(quality, 1 / (1 + np.exp(-logits)), atol=1e-5)
    read = inner if kind == "kernel" else normed
    np.testing.assert_allclose(lengths, np.exp(read @ held["length.weight"].T + held["length.bias"]), rtol=1e-4)
    bulk_quality, bulk_lengths = head(kind, skip=skip).score_in_bulk(states)
    np.testing.assert_allclose(bulk_quality, quality, atol=1e-5)
    np.testing.assert_allclose(bulk_lengths, lengths, rtol=1e-4)


@given(st.integers(1, 40), st.integers(0, 39), st.sampled_from(["linear", "low_rank", "mlp", "kernel"]))
def test_a_row_has_the_same_bits_in_any_batch(count: int, position: int, kind: str) -> None:
    position %= count
    states = np.random.default_rng(count).normal(size=(count, FEATURES)).astype(np.float32)
    together, alone = head(kind).score(states), head(kind).score(states[position : position + 1])
    assert together[0][position].tobytes() == alone[0][0].tobytes()
    assert together[1][position].tobytes() == alone[1][0].tobytes()


def test_calibration_is_per_column() -> None:
    calibration = {
        "columns": {
            "small": {"kind": "platt", "slope": 0.5, "offset": -1.0},
            "large": {"kind": "isotonic", "logits": [-1.0, 0.0, 2.0], "quality": [0.2, 0.4, 0.9]},
        }
    }
    states = np.random.default_rng(2).normal(size=(9, FEATURES)).astype(np.float32)
    plain, _ = head("linear").score(states)
    calibrated, _ = head("linear", calibration).score(states)
    logits = np.log(plain / (1 - plain))
    np.testing.assert_allclose(calibrated[:, 0], logistic(0.5 * logits[:, 0] - 1), atol=1e-5)
    np.testing.assert_array_equal(calibrated[:, 1], plain[:, 1])
    np.testing.assert_allclose(calibrated[:, 2], np.interp(logits[:, 2], [-1, 0, 2], [0.2, 0.4, 0.9]), atol=1e-4)


def test_extreme_states_stay_finite() -> None:
    quality, lengths = head("mlp").score(np.full((1, FEATURES), 1e6, np.float32))
    assert np.isfinite(quality).all()
    assert np.isfinite(lengths).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality.weight": np.zeros((MODELS, FEATURES + 1))}, r"quality.weight .*\[3, 38\].*\[3, 37\]"),
        ({"quality.bias": np.full(MODELS, np.nan)}, "quality.bias .* not finite"),
        ({"norm.scale": np.zeros(FEATURES)}, "norm.scale"),
        ({"quality.wieght": np.zeros(3)}, "unknown tensor quality.wieght; did you mean quality.weight"),
        ({"length.bias": None}, "lacks length.bias"),
    ],
)
def test_a_broken_tensor_is_named(change: dict[str, np.ndarray | None], message: str) -> None:
    held = tensors("linear") | {name: value for name, value in change.items() if value is not None}
    held = {name: value for name, value in held.items() if change.get(name, 0) is not None}
    with pytest.raises(WeightError, match=message):
        Head.from_tensors(held, kind="linear", columns=COLUMNS, features=FEATURES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel.width": np.zeros(1)}, "kernel.width .* not positive"),
        ({"kernel.landmarks": np.zeros((LANDMARKS, WIDTH + 1))}, r"kernel.landmarks .*\[6, 6\].*\[6, 5\]"),
        ({"quality.weight": np.zeros((MODELS, LANDMARKS + 1))}, r"quality.weight .*\[3, 7\].*\[3, 6\]"),
    ],
)
def test_a_broken_kernel_is_named(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        Head.from_tensors(tensors("kernel") | change, kind="kernel", columns=COLUMNS, features=FEATURES)


def test_a_kernel_without_landmarks_is_refused() -> None:
    held = {name: value for name, value in tensors("kernel").items() if name != "kernel.landmarks"}
    with pytest.raises(WeightError, match=r"lacks kernel\.landmarks"):
        Head.from_tensors(held, kind="kernel", columns=COLUMNS, features=FEATURES)


def test_unknown_kinds_and_calibrations_are_refused() -> None:
    with pytest.raises(FormatError, match="'forest'"):
        Head.from_tensors(tensors("linear"), kind="forest", columns=COLUMNS, features=FEATURES)
    with pytest.raises(FormatError, match="'huge'"):
        head("linear", {"columns": {"huge": {"kind": "platt", "slope": 1, "offset": 0}}})
    with pytest.raises(FormatError, match="ascending"):
        head("linear", {"columns": {"small": {"kind": "isotonic", "logits": [1, 0], "quality": [0, 1]}}})
    with pytest.raises(FormatError, match="slope"):
        head("linear", {"columns": {"small": {"kind": "platt"}}})
    with pytest.raises(FormatError, match="'beta'"):
        head("linear", {"columns": {"small": {"kind": "beta"}}})
    with pytest.raises(InputError, match=r"\[2, 3\]"):
        head("linear").score(np.zeros((2, 3), np.float32))
