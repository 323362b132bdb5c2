"""What the wire costs: a request read and sent on, a streamed chunk decoded and rendered, for each pair of formats.

    python -m bench.wire        # prints the table and writes bench/results/wire.json

Single-threaded, no sockets: the share of the gateway's time that the faces and the providers take.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from onebeat.conductor.faces.anthropic import AnthropicFace
from onebeat.conductor.faces.base import Face
from onebeat.conductor.faces.openai import OpenAIFace
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.openai import OpenAIProvider
from tools.simulated_providers import anthropic_format, gemini_format, openai_format
from tools.simulated_providers.script import Behaviour
from tools.simulated_providers.speech import Asked, speak

QUESTION = "What is 17 * 23, and what would a patient teacher say about it? " * 8
TURNS = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "391."},
    {"role": "user", "content": "Why?"},
]
PROVIDERS: dict[str, tuple[Provider, ModuleType]] = {
    "openai": (OpenAIProvider("k"), openai_format),
    "anthropic": (AnthropicProvider("k"), anthropic_format),
    "gemini": (GeminiProvider("k"), gemini_format),
}
FACES: dict[str, Face] = {"openai": OpenAIFace(), "anthropic": AnthropicFace()}
ROUNDS = 7


def median_us(work: Callable[[], int]) -> float:
    """Median over the rounds of the microseconds for each of the things that `work` says it did."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        count = work()
        times.append((time.perf_counter() - began) / count * 1e6)
    return round(statistics.median(times), 2)


def pair(face: Face, provider: Provider, frames: list[bytes], body: bytes) -> dict[str, float]:
    """One face before one provider."""
    request = face.parse(body, {})

    def stream() -> int:
        decoder, renderer = provider.decoder(), face.renderer(request, "m", created_s=1)
        for frame in frames:
            for event in decoder.feed(frame):
                renderer.render(event)
        return len(frames)

    return {
        "parse_us": median_us(lambda: sum(bool(face.parse(body, {})) for _ in range(500))),
        "build_us": median_us(lambda: sum(bool(provider.build_request(request, "m", stream=True)) for _ in range(500))),
        "chunk_us": median_us(stream),
    }


def main() -> None:
    asked = Asked("m", True, QUESTION, 600, include_usage=True)
    speech = speak(asked, Behaviour(words=400))
    body = json.dumps({"model": "auto", "max_tokens": 500, "stream": True, "messages": TURNS}).encode()
    rows = []
    print("ceiling: 50 us for a streamed chunk, all of the gateway included")
    print(f"{'face':10} {'provider':10} {'parse us':>9} {'build us':>9} {'chunk us':>9}")
    for face_name, face in FACES.items():
        for name, (provider, form) in PROVIDERS.items():
            begin, content, ending = form.frames(speech, asked)
            took = pair(face, provider, [*begin, *(frame for frame, _ in content), *ending], body)
            rows.append({"face": face_name, "provider": name, **took})
            print(f"{face_name:10} {name:10}" + "".join(f"{value:10}" for value in took.values()))
    path = Path(__file__).parent / "results" / "wire.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
