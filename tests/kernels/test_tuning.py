"""The tuning table: every GPU finds a configuration, the most specific entry wins, and a wrong table is named."""

import json

import pytest

from onebeat.engine.errors import ConfigError
from onebeat.kernels import tuning
from onebeat.kernels.backend import Facts
from onebeat.kernels.tuning import AttentionConfig, Entry, MatmulConfig

H200 = Facts("NVIDIA H200", "sm_90", 132)
TILE = MatmulConfig(64, 64, 64, 4, 3)


@pytest.fixture
def rows(monkeypatch):
    """Replaces the committed table."""

    def replace(*entries):
        monkeypatch.setattr(tuning, "table", lambda: entries)
        for cached in (tuning.matmul_config, tuning.attention_config):
            cached.cache_clear()

    yield replace
    for cached in (tuning.matmul_config, tuning.attention_config):
        cached.cache_clear()


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx942"])
def test_every_gpu_finds_a_configuration(arch):
    gpu = Facts("some GPU", arch, 100)
    for count in (1, 16, 17, 64, 300, 5000):
        for op in ("int8_matmul", "int8_matmul_swiglu"):
            assert tuning.matmul_config(op, gpu, tuning.row_bucket(count), 4608, 3584).block_k >= 32
    for head_size in (64, 96, 128):
        assert tuning.attention_config(gpu, head_size, 2).block_m >= 64
        assert tuning.attention_config(gpu, head_size, 4).block_m >= 16


def test_an_old_gpu_is_told_so():
    with pytest.raises(ConfigError, match="sm_75, but onebeat's kernels need sm_80"):
        tuning.attention_config(Facts("T4", "sm_75", 40), 64, 2)


def test_the_most_specific_entry_wins(rows):
    def entry(block_k, **where):
        return Entry("int8_matmul", "sm_90", MatmulConfig(64, 64, block_k, 4, 3), rows_to=64, **where)

    rows(
        entry(32),
        entry(64, columns=100, depth=200),
        entry(128, gpu="NVIDIA H200"),
        entry(256, gpu="NVIDIA H200", columns=100, depth=200),
        entry(512, triton="0.1"),
    )
    chosen = {
        (gpu.name, columns): tuning.matmul_config("int8_matmul", gpu, 64, columns, 200).block_k
        for gpu in (H200, Facts("NVIDIA H100", "sm_90", 132))
        for columns in (100, 101)
    }
    assert chosen == {
        ("NVIDIA H200", 100): 256,
        ("NVIDIA H200", 101): 128,
        ("NVIDIA H100", 100): 64,
        ("NVIDIA H100", 101): 32,
    }


def test_row_buckets():
    assert [tuning.row_bucket(rows) for rows in (1, 16, 17, 2048, 2049)] == [16, 16, 32, 2048, None]


def test_a_table_survives_writing_and_reading():
    assert tuning.parse(tuning.dump(tuning.table()), "copy") == tuning.table()
    measured = Entry("attention", "sm_90", AttentionConfig(64, 32, 4, 2), head_size=64, measured={"median_us": 3.5})
    assert tuning.parse(tuning.dump((measured,)), "copy") == (measured,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "int9_matmul"}, "op 'int9_matmul', but there are only int8_matmul"),
        ({"row_to": 16}, "unknown key 'row_to'; the nearest known one is 'rows_to'"),
        ({"config": {"block": 1}}, "unknown key 'block'; the nearest known one is 'block_"),
    ],
)
def test_a_wrong_entry_is_named(change, message):
    entry = {"op": "int8_matmul", "arch": "sm_90", "config": {}}
    with pytest.raises(ConfigError, match="entry 0") as caught:
        tuning.parse(json.dumps({"format_version": 1, "entries": [entry | change]}), "table.json")
    assert message in str(caught.value)


def test_a_newer_table_is_refused():
    with pytest.raises(ConfigError, match="format_version 2, but this onebeat reads 1"):
        tuning.parse('{"format_version": 2, "entries": []}', "table.json")
