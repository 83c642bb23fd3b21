"""make bench-endpoint: compares the endpoint's server with AWS's serving stacks and with ONNX Runtime in process.

All use the same model, inference.py and images, and all cores of this machine, with one worker per core. The clients
(wrk with load.lua) run on the same cores. Servers alternate in each round; figures are medians over the rounds. A
server is measured only if its predictions are correct. Results: README.md in this folder.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
PEERS, SKLEARN = LOCAL / "venvs/bench-serving/bin", LOCAL / "venvs/sklearn-serving/bin"
CORES = len(os.sched_getaffinity(0))
SECONDS_TO_START, SECONDS_TO_RESPOND, SECONDS_TO_WARM_UP = 60, 30, 1
IMAGES, IMAGE_BYTES, LINES = 16, 50_000, 64
SIZES = {"small": (32, 32), "large": (800, 600)}  # typical of CIFAR, and of a web page
KINDS = {
    "small": "one 32 x 32 image per request",
    "large": "one 800 x 600 image per request",
    "batch": f"{LINES} images of 800 x 600 per request",
}
CLIENTS = (1, 8)
OURS, LIMIT = "this project", "ONNX Runtime in process"
ports = iter(range(20_000, 32_000))  # multi-model-server rejects ports above 32,767
Bodies = dict[str, tuple[str, list[Path]]]  # {kind: (content type, files with request bodies)}
Figures = dict[Any, Any]  # {kind, clients: {figure: value}}, and {figure: value} of the server


@dataclass
class Server:
    """How to start a serving stack on a model: the commands that prepare and run it, and their environment."""

    port: int
    serve: list[Any]
    variables: dict[str, Any]
    prepare: Sequence[list[Any]] = ()


def photograph(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of at most IMAGE_BYTES, with coarse and fine structure as in a photograph."""
    pixels = np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(1, 8):
        coarse = random.integers(0, 256, (3 * 2**octave // 4 + 1, 2**octave + 1, 3), dtype=np.uint8)
        enlarged = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        pixels += np.asarray(enlarged, np.float32) * 0.55**octave
    pixels = (pixels - pixels.min()) / np.ptp(pixels) * 255
    for quality in range(95, 30, -1):
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=quality)
        if file.tell() <= IMAGE_BYTES:
            break
    return file.getvalue()


def write_bodies(folder: Path) -> Bodies:
    random = np.random.default_rng(0)
    folder.mkdir()
    images = {kind: [photograph(random, size) for _ in range(IMAGES)] for kind, size in SIZES.items()}
    lines = [json.dumps({"image": base64.b64encode(image).decode()}) for image in images["large"]]
    batches = [[lines[(start + line) % IMAGES] for line in range(LINES)] for start in range(4)]
    bodies = {
        "small": ("image/jpeg", images["small"]),
        "large": ("image/jpeg", images["large"]),
        "batch": ("application/jsonlines", ["".join(f"{line}\n" for line in batch).encode() for batch in batches]),
    }
    written = {}
    for kind, (content_type, contents) in bodies.items():
        paths = [folder / f"{kind}{number:02}" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        written[kind] = content_type, paths
    return written


def free_port() -> int:
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


def ours(model: Path, work: Path) -> Server:
    port = free_port()
    variables = {"SM_MODEL_DIR": model, "SAGEMAKER_BIND_TO_PORT": port}
    return Server(port, [sys.executable, ROOT / "endpoint/server.py"], variables)


def multi_model_server(model: Path, work: Path) -> Server:
    port, store = free_port(), work / "mms"
    store.mkdir()
    (store / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{free_port()}\n"
        f"default_workers_per_model={CORES}\ndecode_input_request=false\nload_models=ALL\n"
    )
    archive = [PEERS / "model-archiver", "--model-name", "model", "--archive-format", "no-archive"]
    archive += ["--handler", "sagemaker_inference.default_handler_service", "--model-path", model]
    serve = [PEERS / "multi-model-server", "--start", "--foreground", "--model-store", store / "models"]
    variables = {"SAGEMAKER_PROGRAM": "inference.py", "PYTHONPATH": model / "code", "TEMP": work, "TMPDIR": work}
    (store / "models").mkdir()
    prepare = [[*archive, "--export-path", store / "models"]]
    return Server(port, [*serve, "--mms-config", store / "config.properties"], variables, prepare)


def sklearn_image(model: Path, work: Path) -> Server:
    """gunicorn behind nginx, started as sagemaker-containers does in the image, but on localhost and without pip."""
    if not shutil.which("nginx"):
        raise RuntimeError("nginx is missing: on Debian, apt-get install nginx-light")
    server = gunicorn(model, f"unix:{work}/gunicorn.sock", free_port())
    config = next(SKLEARN.parent.glob("lib/*/site-packages/sagemaker_containers/etc/nginx.conf.template")).read_text()
    config = config.replace("%NGINX_HTTP_PORT%", f"127.0.0.1:{server.port}").replace("%NGINX_PROXY_READ_TIMEOUT%", "60")
    (work / "nginx.conf").write_text(config.replace("/tmp/", f"{work}/"))
    serve = shlex.join(map(str, server.serve))
    server.serve = ["sh", "-c", f"nginx -c {work}/nginx.conf & exec {serve}"]
    return server


def sklearn_image_without_nginx(model: Path, work: Path) -> Server:
    """The image with SAGEMAKER_USE_NGINX=false."""
    port = free_port()
    return gunicorn(model, f"127.0.0.1:{port}", port)


def gunicorn(model: Path, address: str, port: int) -> Server:
    (model.parent / "code").mkdir(exist_ok=True)  # exists in the image; otherwise the workers race to create it
    serve = [SKLEARN / "gunicorn", "--timeout", 60, "-k", "gevent", "-b", address]
    serve += ["--worker-connections", 1000 * CORES, "-w", CORES, "--log-level", "info", "sklearn_image:application"]
    variables = {
        "SAGEMAKER_BASE_DIR": model.parent,
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": model / "code",
        "PYTHONPATH": f"{model / 'lib'}:{model / 'code'}:{ROOT / 'tests/containers'}",
    }
    return Server(port, serve, variables)


def torchserve(model: Path, work: Path) -> Server:
    port, store = free_port(), work / "torchserve"
    store.mkdir()
    (store / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:{free_port()}\n"
        f"metrics_address=http://127.0.0.1:{free_port()}\ngrpc_inference_port={free_port()}\n"
        f"grpc_management_port={free_port()}\ndefault_workers_per_model={CORES}\n"
    )
    manifest = {"modelName": "model", "modelVersion": "1.0", "handler": "torchserve_handler.py"}
    # An archive as torch-model-archiver writes it.
    with zipfile.ZipFile(store / "model.mar", "w", strict_timestamps=False) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": manifest}))
        handler = ROOT / "benchmarks/torchserve_handler.py"
        for path in (handler, model / "model.onnx", model / "metadata.json", *(model / "code").glob("*.py")):
            archive.write(path, path.name)
    serve = [PEERS / "torchserve", "--start", "--foreground", "--model-store", store, "--models", "model=model.mar"]
    serve += ["--ts-config", store / "config.properties", "--disable-token-auth", "--no-config-snapshots"]
    variables = {"TEMP": work, "TMPDIR": work, "LOG_LOCATION": store, "METRICS_LOCATION": store}
    return Server(port, serve, variables)


SERVERS = {
    OURS: ours,
    "multi-model-server + sagemaker-inference": multi_model_server,
    "scikit-learn image's stack": sklearn_image,
    "scikit-learn image's stack, no nginx": sklearn_image_without_nginx,
    "TorchServe": torchserve,
}


def tree(pid: int) -> list[int]:
    """The process ids of a process and its descendants."""
    pids = [pid]
    for each in pids:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, task.read_text().split())
    return pids


def memory_mb(pid: int) -> float:
    """Memory of the whole tree, with shared pages counted once."""
    lines = [line for each in tree(pid) for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_seconds(pid: int) -> float:
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in tree(pid)]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def invoke(port: int, content_type: str, body: bytes) -> list[Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=30) as response:
        return [json.loads(line) for line in response.read().splitlines()]


def wait_for_response(
    server: Server, process: subprocess.Popen, log: Path, content_type: str, body: bytes
) -> list[Any]:
    """Repeat a request until the server has started and responds. Raises RuntimeError with the end of its log."""
    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return invoke(server.port, content_type, body)
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"no response: {log.read_text(errors='replace')[-2000:]}")


def last_line(command: list[Any], seconds: int) -> dict[str, float]:
    """The last line that a command prints, parsed as JSON. `seconds` is its expected duration."""
    output = subprocess.check_output([str(part) for part in command], timeout=seconds + 120)
    return json.loads(output.splitlines()[-1])


def load(port: int, clients: int, seconds: int, content_type: str, paths: list[Path]) -> dict[str, float]:
    """Figures for clients that each send the next request as soon as they have the last response."""
    command = ["wrk", "--threads", 1, "--connections", clients, "--duration", f"{seconds}s"]
    command += ["--timeout", f"{SECONDS_TO_RESPOND}s", "--script", ROOT / "benchmarks/load.lua"]
    figures = last_line([*command, f"http://127.0.0.1:{port}", "--", content_type, *paths], seconds)
    errors = figures.pop("errors")
    if errors or not figures["responses"]:
        raise RuntimeError(f"{figures['responses']} responses, {errors} errors (status, timeout or connection)")
    return figures


def measure_server(
    make: Callable[[Path, Path], Server], model: Path, work: Path, bodies: Bodies, seconds: int, expected: list[Any]
) -> Figures:
    """Start a server, measure it and stop it."""
    server = make(model, work)
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment["PATH"] = f"{Path(server.serve[0]).parent}:{environment['PATH']}"  # Java runs python from PATH
    environment |= {name: str(value) for name, value in server.variables.items()}
    for command in server.prepare:
        subprocess.run([str(part) for part in command], env=environment, check=True, capture_output=True, cwd=work)
    log = work / "log"
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in server.serve], env=environment, cwd=work, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        content_type, paths = bodies["large"]
        results = wait_for_response(server, process, log, content_type, paths[0].read_bytes())
        figures: Figures = {"ready": time.perf_counter() - started}
        compare(results, expected[:1])
        compare(invoke(server.port, bodies["batch"][0], bodies["batch"][1][0].read_bytes()), expected)
        for kind, (content_type, paths) in bodies.items():
            for clients in CLIENTS:
                load(server.port, clients, SECONDS_TO_WARM_UP, content_type, paths)
                before = cpu_seconds(process.pid)
                result = load(server.port, clients, seconds, content_type, paths)
                figures[kind, clients] = result | {"cpu": cpu_seconds(process.pid) - before}
        figures["memory"] = memory_mb(process.pid)
        return figures
    finally:
        pids = tree(process.pid)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid in pids:  # Java's launchers exit without stopping it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def measure_in_process(model: Path, bodies: Bodies, seconds: int) -> Figures:
    figures: Figures = {}
    for kind, (content_type, paths) in bodies.items():
        for clients in CLIENTS:
            program = [sys.executable, ROOT / "benchmarks/in_process.py", model]
            figures[kind, clients] = last_line([*program, clients, seconds, content_type, *paths], seconds)
    return figures


def compare(results: list[Any], expected: list[Any]) -> None:
    """Raise AssertionError unless the probabilities are equal."""

    def by_label(result: dict[str, Any]) -> list[float]:
        return [each["probability"] for each in sorted(result["predictions"], key=lambda each: each["label"])]

    np.testing.assert_allclose([*map(by_label, results)], [*map(by_label, expected)], atol=1e-5, rtol=0)


def expected_results(model: Path, bodies: Bodies) -> Any:
    """The results for the lines of the first batch. Its first line is the first large image."""
    sys.path.insert(0, str(model / "code"))
    import inference

    content_type, paths = bodies["batch"]
    loaded = inference.model_fn(str(model))
    return inference.predict_fn(inference.input_fn(paths[0].read_bytes(), content_type), loaded)


def measure(rounds: int, seconds: int) -> dict[str, list[Figures | str]]:
    """{name: [the figures of each round, or the error message if it failed]}"""
    results: dict[str, list[Figures | str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # nginx reads it as another user
        model = folder / "opt_ml/model"
        with tarfile.open(ROOT / (LOCAL / "package/archive.txt").read_text().strip()) as archive:
            archive.extractall(model, filter="data")
        bodies = write_bodies(folder / "bodies")
        expected = expected_results(model, bodies)
        for number in range(rounds):
            for name, make in SERVERS.items():
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                work = folder / "work"
                work.mkdir()
                try:
                    figures: Figures | str = measure_server(make, model, work, bodies, seconds, expected)
                except (OSError, subprocess.SubprocessError, RuntimeError, AssertionError) as error:
                    print(error, file=sys.stderr)
                    figures = str(error)
                results.setdefault(name, []).append(figures)
                shutil.rmtree(work)
            results.setdefault(LIMIT, []).append(measure_in_process(model, bodies, seconds))
    return results


def medians(results: dict[str, list[Figures | str]]) -> dict[str, Figures | str]:
    """{name: {figure: median over the rounds}}, or {name: error message} if a round failed."""
    table: dict[str, Figures | str] = {}
    for name, rounds in results.items():
        if failures := [each for each in rounds if isinstance(each, str)]:
            table[name] = failures[0]
            continue
        table[name] = {
            key: {part: statistics.median(each[key][part] for each in rounds) for part in value}
            if isinstance(value, dict)
            else statistics.median(each[key] for each in rounds)
            for key, value in rounds[0].items()
        }
    return table


def markdown(table: dict[str, Figures | str]) -> str:
    loads = [(kind, clients) for kind in KINDS for clients in CLIENTS]
    heads = ["server", *(f"{kind}, {clients}" for kind, clients in loads), "CPU", "ready", "memory"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, figures in table.items():
        if isinstance(figures, str):
            lines.append(f"| {name} | not measured: {' '.join(figures.split())[:200]} |" + " |" * (len(heads) - 2))
            continue
        cells = [
            f"**{cell['per_second'] * (LINES if kind == 'batch' else 1):.0f}** {cell['p50']:.1f} {cell['p99']:.1f}"
            for kind, cell in ((kind, figures[kind, clients]) for kind, clients in loads)
        ]
        busiest = figures["large", CLIENTS[-1]]
        cells.append(f"{busiest['cpu'] * 1000 / busiest['responses']:.2f} ms")
        cells.append(f"{figures['ready']:.2f} s" if "ready" in figures else "")
        cells.append(f"{figures['memory']:.0f} MB" if "memory" in figures else "")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def ratios(table: dict[str, Figures | str]) -> str:
    """This project's throughput relative to the best AWS stack and to ONNX Runtime in process."""
    measured = {name: figures for name, figures in table.items() if not isinstance(figures, str)}
    if OURS not in measured:
        return "nothing to compare: this project was not measured"
    own, limit = measured[OURS], measured[LIMIT]
    peers = [figures for name, figures in measured.items() if name not in (OURS, LIMIT)]
    lines = []
    for kind in KINDS:
        for clients in CLIENTS:
            mine = own[kind, clients]
            best = max((peer[kind, clients]["per_second"] for peer in peers), default=float("nan"))
            lines.append(
                f"{kind}, {clients} clients: {mine['per_second'] / best:.2f} of the best AWS stack, "
                f"{mine['per_second'] / limit[kind, clients]['per_second']:.0%} of the limit, "
                f"p99 / p50 {mine['p99'] / mine['p50']:.1f}"
            )
    return "\n".join(lines)


def chart(table: dict[str, Figures | str]) -> str:
    """A bar chart of images per second with 8 clients, as SVG, in light and dark mode; readable on a phone."""
    measured = {name: figures for name, figures in table.items() if not isinstance(figures, str)}
    width, left, bar, line = 480, 12, 16, 42
    parts, y = [f'<text x="{left}" y="28" class="title">Images per second, {CLIENTS[-1]} clients</text>'], 28
    for kind, title in KINDS.items():
        images = LINES if kind == "batch" else 1
        values = {name: figures[kind, CLIENTS[-1]]["per_second"] * images for name, figures in measured.items()}
        y += 30
        parts.append(f'<text x="{left}" y="{y}" class="title">{title}</text>')
        y += 10
        for name, value in values.items():
            length = (width - 2 * left - 62) * value / max(values.values())
            kind_of_bar = {OURS: "own", LIMIT: "limit"}.get(name, "peer")
            parts.append(f'<text x="{left}" y="{y + 15}">{name}</text>')
            parts.append(f'<rect x="{left}" y="{y + 20}" width="{length:.0f}" height="{bar}" class="{kind_of_bar}"/>')
            parts.append(f'<text x="{left + length + 6:.0f}" y="{y + 33}">{value:,.0f}</text>')
            y += line
    y += 12
    style = (
        "svg{--page:#fff;--text:#24292f;--own:#2563eb;--peer:#9ca3af}"
        "@media(prefers-color-scheme:dark){svg{--page:#0d1117;--text:#e6edf3;--own:#6cb0ff;--peer:#6e7681}}"
        "text{font:14px system-ui,sans-serif;fill:var(--text)}.title{font-weight:600}.page{fill:var(--page)}"
        ".own{fill:var(--own)}.peer{fill:var(--peer)}.limit{fill:none;stroke:var(--peer);stroke-dasharray:4 3}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
        f'<style>{style}</style><rect width="{width}" height="{y}" class="page"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="duration of each measurement")
    parser.add_argument("--chart", type=Path, help="write the chart to this SVG file")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk, which sends the requests, is missing: on Debian, apt-get install wrk")
    before = os.getloadavg()
    table = medians(measure(args.rounds, args.seconds))
    print(f"{CORES} cores, load {before[0]:.1f} before. Images per second in bold, then p50 and p99 of requests in ms.")
    print(f"CPU: the server's time on all cores for one large image, with {CLIENTS[-1]} clients\n")
    print(f"{markdown(table)}\n\n{ratios(table)}")
    if args.chart:
        args.chart.write_text(chart(table))


if __name__ == "__main__":
    main()
