"""How an engine is used, after MLPerf Inference: one picture at a time, as many as possible, and
requests that come when they like. https://arxiv.org/abs/1911.02549
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from arcompile.bench import suites
from arcompile.bench.spread import figure, summary
from arcompile.errors import ArcError
from arcompile.runtime.engine import Engine

SETTINGS = {
    "SingleStream": "pictures one after the other; latency from the call to the uint8 picture",
    "Offline": "batches of one size; pictures a second at the best size",
    "Server": "arrivals drawn from a Poisson process at `load` of the best offline rate; the "
              "engine takes all that wait, up to the best batch. The clock of arrivals is "
              "simulated, each batch is really drawn, so that waiting costs no time here",
}
LOAD, SEED = 0.6, 0


def scenarios(e: Engine, guidance: float, pictures: int = 12,
              batches: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
    """Figures of all three, each on the engine's own sampling settings. Raises ArcError."""
    if pictures < 2:
        raise ArcError(f"scenarios take two pictures or more, got {pictures}")
    draw(e, guidance, 1)
    single = [draw(e, guidance, 1) for _ in range(pictures)]
    rates = {}
    for b in batches:
        spent = min(draw(e, guidance, b) for _ in range(2 if b * 2 <= pictures else 1))
        rates[b] = figure(b / spent)
    best = max(rates, key=lambda b: rates[b])
    return {"single_stream_ms": summary(single), "offline": {
        "images_per_s": rates[best], "batch": best, "by_batch": rates},
        "server": server(e, guidance, pictures, LOAD * rates[best], best), "settings": SETTINGS}


def draw(e: Engine, guidance: float, batch: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    e.generate(suites.condition(e.manifest["info"], batch), guidance=guidance, seed=SEED)
    return time.perf_counter() - start


def server(e: Engine, guidance: float, pictures: int, rate: float, most: int) -> dict[str, Any]:
    """Latency of requests, waiting included, at `rate` a second."""
    arrivals = list(np.cumsum(np.random.default_rng(SEED).exponential(1 / rate, pictures)))
    clock, latencies, sizes = 0.0, [], []
    while arrivals:
        clock = max(clock, arrivals[0])
        taken = [a for a in arrivals if a <= clock][:most]
        arrivals = arrivals[len(taken):]
        clock += draw(e, guidance, len(taken))
        latencies += [clock - a for a in taken]
        sizes.append(len(taken))
    found = summary(latencies)
    return {"rate": figure(rate), "load": LOAD, "latency_ms": {
        **found, "p99": figure(float(np.percentile(latencies, 99)) * 1e3)},
        "mean_batch": figure(float(np.mean(sizes)))}
