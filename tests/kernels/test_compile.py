"""Every kernel in every configuration of the tuning table compiles for every GPU: no spills, right instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebeat.kernels import backend, tuning

ROOT = Path(__file__).resolve().parents[2]
SHARED_LIMITS = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
PRODUCTS = ("int8_matmul", "attention")

pytestmark = pytest.mark.skipif(backend.MISSING is not None, reason="Triton cannot be imported")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Compiled in a process of its own, for this one may have Triton's interpreter."""
    out = tmp_path_factory.mktemp("compile") / "report.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "compile_kernels.py", "--out", out],
        capture_output=True, text=True, env=environment, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())["kernels"]


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_compiles_without_spills_and_fits(report, arch):
    lines = [line for line in report if line["arch"] == arch]
    names = {line["kernel"].split()[0] for line in lines}
    wanted = {"attention", "embedding", "head", "int8_matmul", "int8_matmul_swiglu", "pool", "quantize_rows"}
    assert names >= wanted | {"rms_norm", "rms_norm_quantize", "rope", "swiglu", "swiglu_quantize"}
    for line in lines:
        assert line["shared_bytes"] <= SHARED_LIMITS[arch], line
        if "paged 16" not in line["kernel"]:
            assert line["spilled_bytes"] == 0, line


@pytest.mark.parametrize(
    ("arch", "instruction"),
    [("sm_80", "mma.sync"), ("sm_89", "mma.sync"), ("sm_90", "wgmma.mma_async"), ("sm_100", "tcgen05.mma")],
)
def test_products_use_the_matrix_instruction(report, arch, instruction):
    products = [line for line in report if line["arch"] == arch and line["kernel"].startswith(PRODUCTS)]
    if arch == "sm_100" and tuning.triton_version() == "3.6":  # which has no int8 tcgen05 yet
        products = [line for line in products if line["kernel"].startswith("attention")]
    assert {line["matrix_instruction"] for line in products} == {instruction}


def without_version(entry):
    return {key: value for key, value in entry.items() if key not in ("triton", "config", "measured")}


def test_every_tile_of_the_table_was_compiled(report):
    """Rows that share a configuration with others are compiled once, so it is tiles that are compared."""
    table = json.loads((ROOT / "kernels" / "tuning.json").read_text())["entries"]
    version = tuning.triton_version()
    special = [without_version(entry) for entry in table if entry.get("triton") == version]
    for entry in table:
        if entry.get("element_bytes") == 4:
            continue  # float32 is compiled by `bench/compile_kernels.py --full`
        if entry.get("triton", version) != version or ("triton" not in entry and without_version(entry) in special):
            continue
        tile = {key.upper(): value for key, value in entry["config"].items() if key.startswith("block")}
        found = [
            line for line in report
            if line["arch"] == entry["arch"] and tile.items() <= line["tiles"].items()
            and line["warps"] == entry["config"]["warps"] and line["kernel"].startswith(entry["op"])
        ]  # fmt: skip
        assert found, entry
