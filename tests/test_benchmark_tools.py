"""tools/compare_benchmarks and tools/gpu_table: what they say about numbers, and about the lack of them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare_benchmarks = load("compare_benchmarks")
gpu_table = load("gpu_table")


def report(tmp_path, name, **cases):
    """A pytest-benchmark report of cases given as (q1, median, q3) in seconds."""
    benchmarks = [
        {"fullname": case, "stats": {"q1": low, "median": median, "q3": high}}
        for case, (low, median, high) in cases.items()
    ]
    path = tmp_path / name
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": "one"}}, "benchmarks": benchmarks}))
    return str(path)


def test_only_differences_beyond_the_noise_count(tmp_path, capsys):
    a = report(
        tmp_path,
        "a",
        slow=(0.9, 1.0, 1.1),
        quick=(0.9, 1.0, 1.1),
        noisy=(0.8, 1.0, 1.4),
        tiny=(1, 1, 1),
        gone=(1, 1, 1),
    )
    b = report(
        tmp_path, "b", slow=(1.9, 2.0, 2.1), quick=(0.4, 0.5, 0.6), noisy=(0.9, 1.2, 1.5), tiny=(1.01, 1.01, 1.01)
    )
    assert compare_benchmarks.main([a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[-1]: line for line in lines[:4]}
    assert "slower" in verdicts["slow"] and verdicts["slow"].split()[0] == "2.000"
    assert "faster" in verdicts["quick"]
    assert "within noise" in verdicts["noisy"]
    assert "within noise" in verdicts["tiny"], "one percent is never called real"
    assert lines[0].endswith("slow"), "the worst comes first"
    assert "4 cases in both reports, 2 differ" in lines[4]
    assert "only in" in lines[5] and lines[5].endswith("gone")


def test_a_sure_slowdown_can_fail_a_build(tmp_path):
    a, b = report(tmp_path, "a", x=(0.99, 1.0, 1.01)), report(tmp_path, "b", x=(1.19, 1.2, 1.21))
    assert compare_benchmarks.main([a, b, "--fail-above", "1.1"]) == 1
    assert compare_benchmarks.main([a, b, "--fail-above", "1.3"]) == 0
    assert compare_benchmarks.main([b, a, "--fail-above", "1.1"]) == 0


def test_what_is_no_report_is_named(tmp_path):
    a = report(tmp_path, "a", x=(1, 1, 1))
    with pytest.raises(SystemExit, match=r"missing\.json is no pytest-benchmark report"):
        compare_benchmarks.main([a, str(tmp_path / "missing.json")])
    assert compare_benchmarks.main([a, report(tmp_path, "b", y=(1, 1, 1))]) == 2


MEASURED = {
    "dry_run": False,
    "about": {
        "gpu": "NVIDIA Test", "driver": "1.2", "torch": "3", "triton": "4", "when": "2026-01-02T03:04:05+00:00",
        "commit": "abcdef0123456", "kernels": "old",
    },
    "ceilings": {"copy_bytes_per_s": 4e12, "bf16_flops": 7e14, "int8_ops": 1.4e15},
    "correct": [{"name": "rope", "holds": False}],
    "kernels": [{
        "op": "rope", "name": "", "tokens": 2048, "median_us": 10.0, "low_us": 9.0, "high_us": 11.0, "roofline": 0.5,
        "baselines": {"torch": {"median_us": 30.0}},
    }],
    "model": [
        {"name": "onebeat int8", "prompts": 1, "prompt_tokens": 128, "median_us": 2000.0, "floor_us": 1400.0},
        {"name": "other", "why_not": "no time"},
    ],
}  # fmt: skip


def test_the_gpu_table_says_what_was_not_measured():
    assert "Not measured yet" in gpu_table.table(None, "today")
    text = gpu_table.table(MEASURED, "today")
    assert "Measured on older kernels than today's" in text
    assert "1 checks failed in that run:** rope" in text
    assert "| 1 x 128 | 1.40 ms | 2.00 ms |" in text
    assert "| rope | 2,048 | 10.0 us | 9.0 to 11.0 | 50 % | torch 30.0 us |" in text
    assert "older kernels" not in gpu_table.table(MEASURED, "old")


def test_the_gpu_table_is_written_between_its_markers(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- gpu-table -->\nstale\n<!-- /gpu-table -->\nafter\n")
    where = ["--results", str(tmp_path)]
    assert gpu_table.main([*where, "--check", str(readme)]) == 1
    assert gpu_table.main([*where, "--write", str(readme)]) == 0
    assert gpu_table.main([*where, "--check", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- gpu-table -->\nNot measured yet")
    assert text.endswith("<!-- /gpu-table -->\nafter\n")
    (tmp_path / "gpu-test.json").write_text(json.dumps(MEASURED))
    assert gpu_table.main([*where, "--check", str(readme)]) == 1, "a new measurement makes the old text stale"
    readme.write_text("no markers")
    assert gpu_table.main([*where, "--check", str(readme)]) == 2
    capsys.readouterr()


def test_the_gpu_bench_checks_kernels_without_a_gpu():
    command = [sys.executable, ROOT / "bench" / "gpu.py", "--dry-run", "--sections", "correct"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["checks_failed"] == 0
    counted = next(line for line in done.stdout.splitlines() if "checks hold" in line).split()
    assert counted[0] == counted[2] and int(counted[0]) > 40


def test_the_gpu_bench_starts_a_process_from_an_int8_copy_without_a_gpu():
    command = [sys.executable, ROOT / "bench" / "gpu.py", "--dry-run", "--sections", "start"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    starts = [line for line in done.stdout.splitlines() if line.startswith("start ")]
    assert len(starts) == 3 and all("ready after" in line and "load" in line for line in starts), done.stdout


def test_the_gpu_bench_says_what_was_reached(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import gpu_model

    sizes = {"prompts": 1, "prompt_tokens": 128, "floor_us": 1400.0}
    lines = [
        {"name": gpu_model.OURS, **sizes, "median_us": 2000.0, "memory_bytes": 8_500_000_000},
        {"name": gpu_model.OURS, **sizes | {"prompt_tokens": 512}, "median_us": 6000.0, "memory_bytes": None},
        {"name": "slow", **sizes, "median_us": 9000.0, "memory_bytes": 15_000_000_000},
        {"name": "quick", **sizes, "median_us": 3600.0, "memory_bytes": 15_000_000_000},
        {"name": "other", "why_not": "no time"},
    ]
    first, second = gpu_model.verdicts(lines)
    assert (first["best_baseline"], first["times_faster"], first["target_ms"]) == ("quick", 1.8, 2.4)
    assert (second["best_baseline"], second["times_faster"], second["target_ms"]) == (None, None, 6.5)
    gpu_model.show_verdicts([first, second])
    said = capsys.readouterr().out.splitlines()
    assert "2.00 ms (to reach 2.4), 1.80 times faster than quick (to reach 1.6), 8.50 GB (to reach 9)" in said[0]
    assert said[1].endswith("6.00 ms (to reach 6.5), no baseline")
