"""`python -m tools.simulated_providers --port 9100`: serves until interrupted; prints one line when ready."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from tools.simulated_providers.server import SimulatedProviders


async def serve(port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopped.set)
    async with SimulatedProviders(port) as sim:
        print(f"simulated providers on {sim.url} (try GET {sim.url}/sim/served)", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    port = parser.parse_args().port
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(port))
