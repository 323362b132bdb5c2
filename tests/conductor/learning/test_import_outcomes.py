"""The published sets become outcomes; their shapes are as the tool documents them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from onebeat.conductor.learning.sources import read_outcomes

TOOL = Path(__file__).parents[3] / "tools" / "import_outcomes.py"


def test_small_copies_of_every_shape(tmp_path: Path) -> None:
    data = tmp_path / "data"
    zero, kor, route = data / "zeroeval-2024", data / "korbench-2024", data / "routellm-evals"
    for folder in (zero, kor, route / "mmlu" / "responses", route / "gsm8k", route / "mt_bench"):
        folder.mkdir(parents=True)
    (zero / "prompts.jsonl").write_text('{"task": "gsm", "id": 7, "prompt": "one plus one"}\n')
    (zero / "outcomes.csv").write_text("task,id,model,correct,output_chars\ngsm,7,m,1,80\ngsm,7,n,0,\n")
    (kor / "prompts.jsonl").write_text('{"task": "cipher", "idx": "1", "prompt": "decode"}\n')
    (kor / "outcomes.csv").write_text("task,idx,model,correct\ncipher,1,m,0\n")
    (route / "mmlu" / "responses" / "mmlu_law.csv").write_text("prompt,weak,strong\nq1,True,False\nq2,False,True\n")
    (route / "mmlu" / "contaminated_prompts.jsonl").write_text('{"eval_prompt": "q2"}\n')
    (route / "gsm8k" / "gsm8k_responses.csv").write_text(
        "prompt,weak,strong,weak_response,strong_response\nq3,True,True,eightchr,\n"
    )
    (route / "mt_bench" / "question.jsonl").write_text('{"question_id": 1, "category": "art", "turns": ["a", "b"]}\n')
    votes = [{"question_id": 1, "model": "m", "score": score, "turn": turn} for turn, score in ((1, 10), (2, 1))]
    (route / "mt_bench" / "judgements.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    bench = tmp_path / "bench.csv"
    bench.write_text("sample_id,prompt,eval_name,m,m|model_response,m|total_cost\n1,q9,hellaswag,0.5,text,0.002\n")
    out = tmp_path / "out"
    command = [sys.executable, str(TOOL), "--data", str(data), "--routerbench", str(bench), "--output", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    zeroeval = read_outcomes([out / "zeroeval.jsonl"])
    assert zeroeval.models == ("m", "n")
    assert zeroeval.output_tokens[0, 0] == 20
    assert zeroeval.score.tolist() == [[1.0, 0.0]]
    assert read_outcomes([out / "korbench.jsonl"]).groups == ("kor-cipher",)
    mmlu = read_outcomes([out / "routellm-mmlu.jsonl"])
    assert mmlu.prompts == ("q1",)
    assert mmlu.groups == ("mmlu_law",)
    gsm8k = read_outcomes([out / "routellm-gsm8k.jsonl"])
    assert gsm8k.output_tokens[0, gsm8k.models.index("weak")] == 2
    assert read_outcomes([out / "routellm-mt-bench.jsonl"]).score[0, 0] == 0.5
    routerbench = read_outcomes([out / "routerbench.jsonl"])
    assert routerbench.cost_usd[0, 0] > 0.0019
    assert json.loads((out / "prices.json").read_text())["gemini-1.5-flash"]["output_usd_per_million"] == 0.3


def test_a_pickle_is_not_opened_and_an_empty_folder_is_said(tmp_path: Path) -> None:
    bench = tmp_path / "routerbench_0shot.pkl"
    bench.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    command = [sys.executable, str(TOOL), "--output", str(tmp_path / "out")]
    found = subprocess.run([*command, "--routerbench", str(bench)], capture_output=True, text=True)
    assert found.returncode != 0
    assert "is a pickle" in found.stderr
    found = subprocess.run([*command, "--data", str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 2
    assert "nothing to import" in found.stderr
