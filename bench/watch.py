"""False alarms of the watch on good answers, and its price per chunk: `python bench/watch.py --data FILE.csv`.

The file is RouteLLM's GSM8K responses (columns `<model>` with True or False, `<model>_response`): the answers that were
graded right are good answers, whatever else they are. Each is streamed through the watch in pieces of four characters.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from onebeat.conductor.answers import Finished, FinishReason, TextDelta
from onebeat.conductor.config import WatchSection
from onebeat.conductor.watch import Detector, Watch

RESULT = Path(__file__).parents[1] / "bench" / "results" / "watch.json"
PIECE = 4
ALL = WatchSection(**{name.value: "act" for name in Detector})


def answers_of(path: Path, model: str) -> list[str]:
    csv.field_size_limit(10**7)
    with path.open(newline="", encoding="utf-8") as file:
        return [row[f"{model}_response"] for row in csv.DictReader(file) if row[model] == "True"]


def alarms(answers: list[str]) -> tuple[Counter[str], list[str], float]:
    found: Counter[str] = Counter()
    examples: list[str] = []
    chunks = 0
    spent = 0.0
    for answer in answers:
        events = [TextDelta(answer[at : at + PIECE]) for at in range(0, len(answer), PIECE)]
        watch = Watch(ALL)
        started = time.perf_counter()
        findings = [finding for event in events if (finding := watch.feed(event)) is not None]
        spent += time.perf_counter() - started
        watch.feed(Finished(FinishReason.STOP, "stop"))
        findings += watch.finish()
        chunks += len(events)
        for finding in findings:
            found[finding.detector.value] += 1
            examples.append(f"{finding.note} | ...{answer[-50:]!r}")
    return found, examples, 1e6 * spent / max(1, chunks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="gsm8k_responses.csv")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = {"piece_characters": PIECE, "models": {}}
    print("ceiling: 0 alarms; whatever is listed here is a good answer that would have been replaced")
    for model in ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1"):
        answers = answers_of(options.data, model)
        found, examples, chunk_us = alarms(answers)
        row = {"answers": len(answers), "alarms": dict(found), "share": round(sum(found.values()) / len(answers), 5)}
        result["models"][model] = row | {"chunk_us": round(chunk_us, 2)}
        print(f"{model:<40}{row}  {chunk_us:.2f} us a chunk")
        for example in examples[:6]:
            print("   ", example)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
