"""Measure a server's goodput and latency: texts that arrive at random, at several loads, answered in four ways.

    python benchmarks/serving.py --output serving.jsonl --model_name_or_path out --text_file texts.csv
    python benchmarks/serving.py --output load.jsonl --model_name_or_path out --text_file texts.csv --load 10000

Texts arrive as a Poisson process, whether or not those before them are answered (an open loop). The same arrivals are
answered, in turn, by

- exits: `EarlyExitEngine` at the threshold of the checkpoint,
- full depth: the same engine without exits,
- batches: dynamic batching, where texts leave early but are answered when their whole batch is done,
- one by one: one text at a time, with exits.

A load of 1 is what one text at a time at full depth can just answer. Goodput counts the answers within three times the
latency of a single text at full depth. The last lines tell how many texts a second each way answers with a 95th
percentile below that limit, interpolated between loads. Every answer is checked against `predict`. Each measurement is
a JSON line; what was already measured with the same settings on the same machine is not measured again.

With --load the HTTP server is tested instead: that many requests on loopback, many of them broken, cancelled, slow or
too large. Nothing may be lost, no answer may be another text's, and memory must not grow.
"""

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from adaexit_hf import collect_trace, predict
from adaexit_hf.benchmark.records import Record, commit, find_record, machine, read_lines
from adaexit_hf.cli.predict import PredictOptions, items_of_input
from adaexit_hf.models.padded_batches import padded_batch
from adaexit_hf.serving import EarlyExitEngine
from adaexit_hf.serving.backends import Outcome, TokenizedText, TorchBackend
from adaexit_hf.serving.engine import companions
from adaexit_hf.utils.processor import default_batch_tokens

WAYS = ("exits", "full depth", "batches", "one by one")
# An answer counts if it takes at most this many times as long as a single text at full depth.
LIMIT = 3


@dataclass
class Arguments:
    """What to measure."""

    output: str = field(metadata={"help": "JSON lines file to append to."})
    model_name_or_path: str = field(metadata={"help": "Checkpoint, with its tokenizer."})
    text_file: str = field(metadata={"help": "File with texts: .txt, .csv, .tsv, .json or .jsonl."})
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "Column of the texts, or two columns for pairs of texts."}
    )
    exit_threshold: float | None = field(default=None, metadata={"help": "Default: that of the checkpoint."})
    loads: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0],
        metadata={"help": "Loads, as multiples of what one text at a time at full depth can answer."},
    )
    requests: int = field(default=400, metadata={"help": "Texts per run."})
    rounds: int = field(default=3, metadata={"help": "Runs of each way at each load; the ways take turns."})
    single_texts: int = field(default=200, metadata={"help": "Texts that are timed alone."})
    batch_tokens: int | None = field(default=None, metadata={"help": "Tokens per batch. Default: as for predict."})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto uses a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Seed of arrivals and texts."})
    load: int | None = field(
        default=None, metadata={"help": "Send this many requests to an HTTP server instead, good ones and bad ones."}
    )
    clients: int = field(default=16, metadata={"help": "With --load: clients at a time."})


# The ways to answer ------------------------------------------------------------------------------------------------


class Batching:
    """What is compared with the engine: batches run to their end, and all texts of a batch are answered then.

    Args:
        model: the model, in eval mode.
        tokenizer: its tokenizer.
        batch_tokens: tokens per batch; with 1, one text at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        self.model, self.backend = model, TorchBackend(model, tokenizer, batch_tokens)
        self.waiting: list[Any] = []
        self.changed, self.closing = threading.Condition(), False
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def submit(self, text: Any) -> "Future[Any]":
        request = _Waiting(self.backend.read(text))
        with self.changed:
            self.waiting.append(request)
            self.changed.notify()
        return request.future

    @torch.inference_mode()
    def work(self) -> None:
        while True:
            with self.changed:
                while not self.waiting:
                    if self.closing:
                        return
                    self.changed.wait()
                tokens = self.backend.batch_tokens
                chosen = companions(self.waiting, self.waiting[0], tokens, tokens // 12)
                self.waiting = [request for request in self.waiting if request not in chosen]
            batch = padded_batch([request.text.row for request in chosen], self.model.config.encoder_config)
            answers = self.model.answers(batch)
            layers = answers.exit_layer.tolist()
            for request, logits, layer in zip(chosen, answers.logits.float().cpu(), layers, strict=True):
                request.future.set_result(_Answer(logits, layer))

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()


class Nothing:
    """A backend whose layers do nothing, so that only the engine's own work takes time."""

    batch_tokens, workers, max_tokens = 1000, 1, None

    def __init__(self, layers: int) -> None:
        self.layers = self.exit_layers = range(1, layers + 1)
        self.logits = torch.zeros(1, 2)

    def read(self, item: Any, truncation_side: Any = None) -> TokenizedText:
        return TokenizedText(item, 10, (), False)

    def thresholds_in_use(self, exit_threshold: Any, early_exit: Any) -> None:
        return None

    def embed(self, rows: Any) -> Any:
        return rows

    def joined(self, pieces: Any) -> Any:
        return pieces[0][0]

    def run(self, stage: int, batch: Any, thresholds: Any) -> Outcome:
        return Outcome(batch, [thresholds is None], self.logits, [0.0])


class _Waiting:
    def __init__(self, text: Any) -> None:
        self.text, self.future = text, Future[Any]()


@dataclass
class _Answer:
    logits: torch.Tensor
    exit_layer: int


def started(way: str, model: Any, tokenizer: Any, batch_tokens: int) -> Any:
    """Start what answers texts in one of the `WAYS`."""
    if way == "batches":
        return Batching(model, tokenizer, batch_tokens)
    if way == "one by one":
        return Batching(model, tokenizer, 1)
    early_exit = False if way == "full depth" else None
    return EarlyExitEngine(model, tokenizer, early_exit=early_exit, batch_tokens=batch_tokens, max_texts=10**6)


# What is measured --------------------------------------------------------------------------------------------------


class Work:
    """The model, the texts, and what `predict` answers to them at the threshold and at full depth."""

    def __init__(self, arguments: Arguments, device: str) -> None:
        name = arguments.model_name_or_path
        dtype = getattr(torch, arguments.dtype)
        self.model = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        if arguments.exit_threshold is not None:
            self.model.config.exit_threshold = arguments.exit_threshold
        self.batch_tokens = arguments.batch_tokens or default_batch_tokens(self.model.device, dtype)
        options = PredictOptions(file=arguments.text_file, text_columns=arguments.text_columns)
        self.texts = [text for _, text in items_of_input(options, [], None) if text is not None]
        self.expected = {
            way: predict(self.model, self.texts, self.tokenizer, early_exit=early_exit)
            for way, early_exit in (("exits", None), ("full depth", False))
        }
        self.arguments = arguments

    def of_way(self, way: str) -> Any:
        """What `predict` answers where a way answers."""
        return self.expected["full depth" if way == "full depth" else "exits"]

    def single(self) -> Record:
        """Milliseconds of a single text: in the engine, and with the engine's steps called without its threads.

        Texts are timed in turn; of each the fastest of the rounds counts, so that other programs disturb little.
        `own_milliseconds` is the median of an engine of as many layers that do nothing.
        """
        times = []
        with EarlyExitEngine(Nothing(self.model.config.exit_layers[-1])) as engine:
            for _ in range(2000):
                began = time.perf_counter()
                engine.submit("").result()
                times.append(1000 * (time.perf_counter() - began))
        found: Record = {"own_milliseconds": median(times)}
        texts = self.texts[: self.arguments.single_texts]
        for way in ("exits", "full depth"):
            with started(way, self.model, self.tokenizer, self.batch_tokens) as engine:
                runs: dict[str, Callable[[Any], Any]] = {
                    "engine": lambda text, engine=engine: engine.submit(text).result(),
                    "steps": partial(run_alone, engine),
                }
                wall: dict[str, list[list[float]]] = {name: [[] for _ in texts] for name in runs}
                cpu: dict[str, list[list[float]]] = {name: [[] for _ in texts] for name in runs}
                for _ in range(self.arguments.rounds + 1):
                    for place, text in enumerate(texts):
                        for name, run in runs.items():
                            began, used = time.perf_counter(), time.process_time()
                            run(text)
                            wall[name][place].append(time.perf_counter() - began)
                            cpu[name][place].append(time.process_time() - used)
            milliseconds, cpu_milliseconds = (
                {name: 1000 * mean(min(times[1:]) for times in values[name]) for name in runs}
                for values in (wall, cpu)
            )
            found[way] = {
                "milliseconds": milliseconds,
                "overhead": milliseconds["engine"] - milliseconds["steps"],
                "cpu_overhead": cpu_milliseconds["engine"] - cpu_milliseconds["steps"],
            }
        return found

    def at_load(self, load: float, single: float) -> Record:
        """Latencies of all ways at one load; `single` is the seconds of a single text at full depth."""
        rate, count, limit = load / single, self.arguments.requests, LIMIT * single
        runs: dict[str, list[Record]] = {way: [] for way in WAYS}
        for number in range(self.arguments.rounds):
            source = random.Random(f"{self.arguments.seed} {load} {number}")
            places = [source.randrange(len(self.texts)) for _ in range(count)]
            arrivals, now = [], 0.0
            for _ in places:
                now += source.expovariate(rate)
                arrivals.append(now)
            for way in WAYS:
                runs[way].append(self._run(way, places, arrivals, limit))
        layers = {way: mean(run.pop("layers") for run in runs[way]) for way in WAYS}
        return {
            "rate": rate,
            "limit": limit,
            "layers": layers,
            "layer_speed_up": layers["full depth"] / layers["exits"],
            "runs": runs,
        }

    def _run(self, way: str, places: Sequence[int], arrivals: Sequence[float], limit: float) -> Record:
        done = [0.0] * len(places)
        answering = started(way, self.model, self.tokenizer, self.batch_tokens)
        answering.submit(self.texts[0]).result()

        def finished(number: int, _: Any) -> None:
            done[number] = time.perf_counter()

        futures, began = [], time.perf_counter() + 0.05
        for number, (place, arrival) in enumerate(zip(places, arrivals, strict=True)):
            time.sleep(max(0.0, began + arrival - time.perf_counter()))
            futures.append(answering.submit(self.texts[place]))
            futures[-1].add_done_callback(partial(finished, number))
        wait(futures)
        answering.close()
        latencies = [end - began - arrival for end, arrival in zip(done, arrivals, strict=True)]
        answers = [future.result() for future in futures]
        expected = self.of_way(way)
        wrong = sum(
            not torch.allclose(answer.logits, expected.logits[place], atol=1e-3, rtol=1e-3)
            or answer.exit_layer != expected.exit_layer[place].item()
            for answer, place in zip(answers, places, strict=True)
        )
        if wrong > len(places) // 100:  # scores next to the threshold may fall on either side of it
            raise RuntimeError(f"{way}: {wrong} of {len(places)} answers are not those of predict")
        cuts = quantiles(latencies, n=100)
        return {
            "p50": cuts[49],
            "p95": cuts[94],
            "p99": cuts[98],
            "goodput": sum(latency <= limit for latency in latencies) / (max(done) - began),
            "layers": mean(answer.exit_layer for answer in answers),
        }


@torch.inference_mode()
def run_alone(engine: EarlyExitEngine, text: Any) -> None:
    """Do for one text what the engine does, in this thread."""
    backend, thresholds = engine.backend, engine.thresholds
    batch, last = backend.embed([backend.read(text).row]), len(backend.layers) - 1
    for stage, layer in enumerate(backend.layers):
        threshold = float("nan")
        if thresholds is not None and layer in backend.exit_layers:
            threshold = thresholds[list(backend.exit_layers).index(layer)]
        outcome = backend.run(stage, batch, None if stage == last else [threshold])
        if outcome.leaving[0]:
            return
        batch = backend.joined([(outcome.batch, [0])])


def largest_rate(records: Sequence[Record], way: str) -> float:
    """Texts a second at which the 95th percentile reaches the limit, interpolated between loads; 0 if never below it.

    Where no load was too large, the largest that was measured.
    """
    before = None
    for record in sorted(records, key=lambda record: record["rate"]):
        p95 = median(run["p95"] for run in record["runs"][way])
        if p95 > record["limit"]:
            if before is None:
                return 0.0
            rate, low = before
            return rate + (record["rate"] - rate) * (record["limit"] - low) / (p95 - low)
        before = (record["rate"], p95)
    return 0.0 if before is None else before[0]


def table(records: Sequence[Record]) -> str:
    """Markdown tables of all loads, and of the largest rate of each way."""
    lines = [["load", "texts/s", "way", "goodput, texts/s", "p50, ms", "p95, ms", "p99, ms"], ["---"] * 7]
    for record in records:
        for way in WAYS:
            middle = {
                name: median(run[name] for run in record["runs"][way]) for name in ("p50", "p95", "p99", "goodput")
            }
            times = [f"{1000 * middle[name]:.0f}" for name in ("p50", "p95", "p99")]
            lines.append([f"{record['load']:g}", f"{record['rate']:.1f}", way, f"{middle['goodput']:.1f}", *times])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    rates = {way: largest_rate(records, way) for way in WAYS}
    speed_up = mean(record["layer_speed_up"] for record in records)
    text += f"\n\np95 within {1000 * records[0]['limit']:.0f} ms ({LIMIT} times a single text at full depth) up to:\n"
    text += "\n".join(f"{way}: {rate:.1f} texts/s" for way, rate in rates.items())
    if rates["full depth"]:
        gain = rates["exits"] / rates["full depth"]
        text += f"\nexits / full depth: {gain:.2f}; layers {speed_up:.2f}x fewer; share of it {gain / speed_up:.2f}"
    return text


# The load test of the HTTP server ----------------------------------------------------------------------------------


def load_test(port: int, texts: Sequence[str], answers: Any, labels: Any, numbers: range, clients: int = 16) -> Record:
    """Send many requests to a server on loopback, good and bad ones, and check what comes back.

    Args:
        port: port of the server, which refuses bodies above 100,000 bytes and more than 32 texts.
        texts: texts to send.
        answers: what `predict` answers to them.
        labels: names of the labels.
        numbers: numbers of the requests; each decides what is sent.
        clients: requests at a time.

    Returns:
        How many requests of each kind were sent, and what went wrong, at most 20 messages.
    """
    probabilities = answers.logits.softmax(dim=-1).tolist()
    layers = answers.exit_layer.tolist()

    def right(found: Any, place: int) -> bool:
        scores = dict(zip(labels, probabilities[place], strict=True))
        return len(found) == len(labels) and all(
            abs(each["score"] - scores[each["label"]]) < 1e-3 and each["exit_layer"] == layers[place] for each in found
        )

    def one(number: int) -> tuple[str, str]:
        source = random.Random(number)
        kind = source.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
        places = [source.randrange(len(texts)) for _ in range(source.randint(1, 32))]
        single = {"inputs": texts[places[0]], "return_exit_layer": True}
        body = json.dumps(single).encode()
        try:
            if kind == "one text":
                status, found = post(port, body)
                good = status == 200 and right(found, places[0])
            elif kind == "several texts":
                sent = {"inputs": [[texts[place]] for place in places], "return_exit_layer": True}
                status, found = post(port, json.dumps(sent).encode())
                good = status == 200 and len(found) == len(places) and all(map(right, found, places))
            elif kind == "garbage":
                status, found = post(port, source.randbytes(source.randint(1, 400)))
                good = status == 422 and found["error_type"] == "Validation"
            elif kind == "wrong type":
                wrong = source.choice([3, None, {"a": 1}, [1], [["a", "b", "c"]], True])
                status, found = post(port, json.dumps({"inputs": wrong}).encode())
                good = status == 422 and found["error_type"] == "Validation"
            elif kind == "too many texts":
                status, found = post(port, json.dumps({"inputs": [["a"]] * 33}).encode())
                good = status == 413
            elif kind == "too large":
                status, found = post(port, b'{"inputs": "' + b"a" * 150_000 + b'"}')
                good = status in (413, 0)  # 0: the server has closed before all was sent
            elif kind == "slow":
                status, found = send(port, body, pieces=5, pause=0.02)
                good = status == 200 and right(found, places[0])
            else:  # the client goes away, after its request or in the middle of it
                send(port, body, cut=source.choice([None, len(body) // 2]), leave=True)
                status, found, good = 0, "", True
        except Exception as error:
            status, found, good = -1, f"{type(error).__name__}: {error}", False
        return kind, "" if good else f"{kind}: status {status}, {found!r:.300}"

    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(one, numbers))
    wrong = [message for _, message in results if message]
    return {"sent": dict(Counter(kind for kind, _ in results)), "wrong": len(wrong), "messages": wrong[:20]}


KINDS = (
    ("one text", 50),
    ("several texts", 10),
    ("garbage", 8),
    ("wrong type", 8),
    ("too many texts", 4),
    ("too large", 4),
    ("slow", 6),
    ("goes away", 10),
)


def post(port: int, body: bytes) -> tuple[int, Any]:
    """Send a request; the status is 0 if the server closed the connection while the body was being sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (BrokenPipeError, ConnectionResetError):
        return 0, None
    finally:
        connection.close()


def send(
    port: int, body: bytes, pieces: int = 1, pause: float = 0.0, cut: int | None = None, leave: bool = False
) -> tuple[int, Any]:
    """Send a request by hand: in pieces, only a part of it, or without waiting for the answer."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(head.encode())
        step = -(-len(body) // pieces)
        for start in range(0, len(body), step):
            connection.sendall(body[start : start + step][:cut])
            time.sleep(pause)
        if leave:
            return 0, None
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head_of_answer, _, rest = answer.partition(b"\r\n\r\n")
    return int(head_of_answer.split()[1]), json.loads(rest)


def clear_texts(work: Work, count: int = 400) -> tuple[list[str], Any]:
    """Texts of all lengths whose scores are not next to the threshold, and what `predict` answers to them."""
    source = random.Random(0)
    words = " ".join(text for text in work.texts if isinstance(text, str)).split()
    made = ["", "\u2603 \U0001f600 \x00 \u202e", *(text for text in work.texts if isinstance(text, str))][: count // 2]
    made += [" ".join(source.choices(words, k=int(2 ** source.uniform(0, 10)))) for _ in range(count - len(made))]
    trace = collect_trace(work.model, made, work.tokenizer)
    threshold = work.model.config.thresholds(work.model.config.exit_threshold)
    near = torch.zeros(len(made), dtype=torch.bool)
    if threshold is not None:
        near = ((trace.scores - torch.tensor(threshold)).abs() < 1e-4).any(dim=1)
    kept = [text for text, is_near in zip(made, near.tolist(), strict=True) if not is_near]
    return kept, predict(work.model, kept, work.tokenizer, progress=False)


def memory(process: int) -> float:
    """Resident memory of a process in MiB; Linux only."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve_and_load(arguments: Arguments, work: Work) -> Record:
    """Start `adaexit serve` in a process of its own, and send it requests in four equal parts."""
    texts, answers = clear_texts(work)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "adaexit_hf.cli.main", "serve", arguments.model_name_or_path]
    command += ["--port", str(port), "--max_body_bytes", "100000", "--threads", str(torch.get_num_threads())]
    labels = [work.model.config.id2label[index] for index in range(work.model.config.num_labels)]
    parts = []
    server = subprocess.Popen(command)
    try:
        wait_until_up(port)
        load_test(port, texts, answers, labels, range(-200, 0), arguments.clients)  # before memory is looked at
        sizes, quarter = [memory(server.pid)], (arguments.load or 0) // 4
        began = time.monotonic()
        for part in range(4):
            numbers = range(part * quarter, (part + 1) * quarter)
            parts.append(load_test(port, texts, answers, labels, numbers, arguments.clients))
            sizes.append(memory(server.pid))
            print(parts[-1], f"{sizes[-1]:.0f} MiB after {time.monotonic() - began:.0f} s", flush=True)
        seconds = time.monotonic() - began
    finally:
        server.terminate()
        status = server.wait(60)
    sent = sum((Counter(part["sent"]) for part in parts), Counter())
    wrong = sum(part["wrong"] for part in parts)
    return {"sent": dict(sent), "wrong": wrong, "seconds": seconds, "memory": sizes, "exit_status": status}


def wait_until_up(port: int, seconds: float = 120.0) -> None:
    """Wait until a server answers `GET /health`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise TimeoutError(f"no server answers on port {port}")


def measurements(arguments: Arguments, work: Work, device: str) -> Iterator[tuple[Record, Callable[[Record], Record]]]:
    """For every measurement: its settings, and the function that makes it, given the one of single texts."""
    config = work.model.config
    setting = machine(device) | {
        "weights": Path(arguments.model_name_or_path).name,
        "exit_threshold": config.exit_threshold,
        "exit_criterion": config.exit_criterion,
        "text_file": Path(arguments.text_file).name,
        "dtype": arguments.dtype,
        "batch_tokens": work.batch_tokens,
        "seed": arguments.seed,
    }
    if arguments.load is not None:
        sizes = {"requests": arguments.load, "clients": arguments.clients}
        yield setting | {"kind": "http"} | sizes, lambda _: serve_and_load(arguments, work)
        return
    setting |= {"rounds": arguments.rounds}
    yield setting | {"kind": "single", "texts": arguments.single_texts}, lambda _: work.single()
    for load in arguments.loads:
        yield (
            setting | {"kind": "load", "load": load, "requests": arguments.requests},
            lambda single, load=load: work.at_load(load, single["full depth"]["milliseconds"]["steps"] / 1000),
        )


def main() -> None:
    """Measure what is missing, and print all results of this call."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    work = Work(arguments, device)
    output, source = Path(arguments.output), commit()
    records, single, results = read_lines(output), Record(), list[Record]()
    for settings, run in measurements(arguments, work, device):
        record = find_record(records, settings)
        if record is None:
            record = settings | run(single) | {"commit": source}
            with output.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if record["kind"] == "load":
            results.append(record)
            print("\n".join(islice(table([record]).splitlines(), 2, 2 + len(WAYS))), flush=True)
        else:
            single = record
            print(json.dumps({name: value for name, value in record.items() if name not in settings}), flush=True)
    if results:
        print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
