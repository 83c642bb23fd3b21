"""The limit: the model's four functions and ONNX Runtime in one process, on as many threads as there are clients.

python benchmarks/in_process.py MODEL_DIR CLIENTS SECONDS TYPE BODY... prints what benchmarks/load.lua does; more
clients than cores wait for each other, as in a server.
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


def run(model, clients, seconds, content_type, bodies):
    """Latencies in seconds, and the seconds that all took."""
    waiting, latencies = queue.SimpleQueue(), []
    begin = time.perf_counter()
    for number in range(clients):
        waiting.put((number, time.perf_counter()))

    def work():
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


def summary(latencies, seconds):
    latencies = sorted(latencies)
    p50, p99 = (latencies[int(len(latencies) * part)] * 1000 for part in (0.5, 0.99))
    return {"per_second": len(latencies) / seconds, "p50": p50, "p99": p99, "answered": len(latencies)}


if __name__ == "__main__":
    model_dir, clients, seconds, content_type, *paths = sys.argv[1:]
    bodies = [Path(path).read_bytes() for path in paths]
    model = inference.model_fn(model_dir)
    run(model, int(clients), SECONDS_TO_WARM_UP, content_type, bodies)
    before = time.process_time()
    figures = summary(*run(model, int(clients), int(seconds), content_type, bodies))
    print(json.dumps(figures | {"cpu": time.process_time() - before}))
