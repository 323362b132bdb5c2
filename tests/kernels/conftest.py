"""What the kernel tests share: the device (a GPU, or the CPU under Triton's interpreter), poison, and tolerances."""

import numpy as np
import pytest
import torch

from onebeat.kernels import backend, tuning

ALLOWED = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Rounding of the result's type, twice over; float32 also covers the length of the sums here."""


def why_not_interpret():
    """Why kernels cannot run here, or None."""
    if backend.MISSING is not None:
        return f"Triton cannot be imported: {backend.MISSING}"
    old = tuning.triton_version() == "3.6" and not torch.cuda.is_available()
    if old and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        return "the interpreter of Triton 3.6 turns arrays into integers, which numpy 2.4 refuses"
    return None


def pytest_collection_modifyitems(items):
    reason = why_not_interpret()
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"))
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def gpu(device):
    return backend.facts(device)


@pytest.fixture
def dtypes():
    """The interpreter multiplies bf16 matrices wrongly; a GPU does not."""
    return (torch.float16, torch.bfloat16) if torch.cuda.is_available() else (torch.float16,)


@pytest.fixture
def poisoned(device):
    """Makes outputs that no kernel may leave as they are: NaN, or 77."""

    def make(*shape, dtype=torch.float32):
        return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype, device=device)

    return make


@pytest.fixture
def agree():
    """Asserts agreement with a float64 reference, to the rounding of the result's type times the result's own size."""

    def check(actual, expected, times=1.0):
        assert actual.shape == expected.shape
        assert not actual.isnan().any(), "poison was left in the output"
        if not expected.numel():
            return
        size = expected.abs().clamp(min=expected.abs().mean().item() or 1e-30)
        error = ((actual.double() - expected.double()).abs() / size).max().item()
        allowed = ALLOWED[actual.dtype] * times
        assert error <= allowed, f"off by {error:.2e}, {allowed:.2e} is allowed"

    return check


@pytest.fixture
def packed(device):
    """The bounds of sequences packed one after the other: int32 [S+1]."""

    def make(lengths):
        return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)

    return make


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20)
