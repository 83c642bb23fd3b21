"""The limit: the model's four functions and ONNX Runtime in one process, on as many threads as there are clients.

python benchmarks/in_process.py MODEL_DIR CLIENTS SECONDS TYPE BODY... prints what benchmarks/load.py does; more clients
than cores wait for each other, as in a server.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

from load import WARM_UP, summary

sys.path.insert(0, str(Path(sys.argv[1]) / "code"))
import inference


def run(model, clients, seconds, content_type, bodies):
    waiting, all_latencies, latencies = queue.SimpleQueue(), [], []
    begin = time.perf_counter() + WARM_UP
    for number in range(clients):
        waiting.put((number, time.perf_counter()))

    def work():
        while time.perf_counter() < begin + seconds:
            number, started = waiting.get()
            body = bodies[number % len(bodies)]
            inference.output_fn(inference.predict_fn(inference.input_fn(body, content_type), model), "*/*")
            now = time.perf_counter()
            all_latencies.append(now - started)
            if now >= begin:
                latencies.append(now - started)
            waiting.put((number + clients, now))

    threads = [threading.Thread(target=work) for _ in range(min(clients, len(os.sched_getaffinity(0))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(all_latencies), latencies, time.perf_counter() - begin


if __name__ == "__main__":
    model_dir, clients, seconds, content_type, *paths = sys.argv[1:]
    bodies = [Path(path).read_bytes() for path in paths]
    model = inference.model_fn(model_dir)
    before = time.process_time()
    figures = summary(*run(model, int(clients), float(seconds), content_type, bodies))
    print(json.dumps(figures | {"cpu": time.process_time() - before}))
