"""The limit: the model's four functions and ONNX Runtime in one process, with one thread per client.

python benchmarks/in_process.py MODEL_DIR CLIENTS SECONDS TYPE BODY... prints the same figures as benchmarks/load.lua.
If there are more clients than cores, the threads equal the cores and the other clients queue, as in a server.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]) / "code"))
import inference

SECONDS_TO_WARM_UP = 1


def run(
    model: inference.Model, clients: int, seconds: int, content_type: str, bodies: list[bytes]
) -> tuple[list[float], float]:
    """The latencies and the total duration, in seconds."""
    waiting: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    latencies: list[float] = []
    begin = time.perf_counter()
    for number in range(clients):
        waiting.put((number, time.perf_counter()))

    def work() -> None:
        while time.perf_counter() < begin + seconds:
            number, started = waiting.get()
            body = bodies[number % len(bodies)]
            inference.output_fn(inference.predict_fn(inference.input_fn(body, content_type), model), "*/*")
            now = time.perf_counter()
            latencies.append(now - started)
            waiting.put((number + clients, now))

    threads = [threading.Thread(target=work) for _ in range(min(clients, len(os.sched_getaffinity(0))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, time.perf_counter() - begin


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    latencies = sorted(latencies)
    p50, p99 = (latencies[int(len(latencies) * fraction)] * 1000 for fraction in (0.5, 0.99))
    return {"per_second": len(latencies) / seconds, "p50": p50, "p99": p99, "responses": len(latencies)}


if __name__ == "__main__":
    model_dir, clients, seconds, content_type, *paths = sys.argv[1:]
    bodies = [Path(path).read_bytes() for path in paths]
    model = inference.model_fn(model_dir)
    run(model, int(clients), SECONDS_TO_WARM_UP, content_type, bodies)
    before = time.process_time()
    figures = summary(*run(model, int(clients), int(seconds), content_type, bodies))
    print(json.dumps(figures | {"cpu": time.process_time() - before}))
