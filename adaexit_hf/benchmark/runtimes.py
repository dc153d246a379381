"""Compare PyTorch and ONNX Runtime, each with exits and at full depth, on the CPU and in one run.

The fastest way to run a classifier at full depth depends on the machine: PyTorch, perhaps in bfloat16, or ONNX
Runtime, perhaps in int8, in batches or text by text. So all of them take turns with the ways to exit early,
A B C D A B C D, and these are compared with the fastest of them.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..data.batches_by_length import groups
from ..evaluation.collect import onnx_trace
from ..models.padded_batches import read_rows
from ..onnx_runtime.folder import PRECISIONS, TOKENIZER, download, find_folder, read_manifest
from ..utils.imports import needed
from ..utils.processor import bf16_is_slow
from .records import Record
from .runs import Expected, RunOutput, Workload, check_output, make_run, text_by_text
from .timing import milliseconds, quartiles, timed, workload

CPU = torch.device("cpu")
# Allowed difference of a logit between passes of a run that is compared with itself only.
REPEATED = 1e-4
NO_BFLOAT16 = "this CPU has no bfloat16 units (AVX-512 BF16), without which it is slower than float32"


class Run(NamedTuple):
    """One way to classify the texts.

    Attributes:
        parts: Functions that are timed one by one: one per text, or one for all texts.
        expected: What their results together must be; None if they must repeat those of the first pass.
        mean_layers: Mean number of layers that a text runs; None for full depth.
    """

    parts: Sequence[Callable[[], RunOutput]]
    expected: Expected | None
    mean_layers: float | None = None


def exported_folder(checkpoint: str, revision: str | None = None) -> Path:
    """Find the folder with the exported model of a checkpoint; one on the Hub is downloaded.

    Args:
        checkpoint: Local folder, or name on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: The checkpoint was not exported.
    """
    folder = find_folder(checkpoint)
    if folder is None and not Path(checkpoint).is_dir():
        folder = download(checkpoint, None, {"revision": revision})
        for precision in read_manifest(folder)["precisions"]:
            folder = download(checkpoint, precision, {"revision": revision})
    if folder is None:
        raise ValueError(f"onnx: '{checkpoint}' has no exported model; call adaexit export {checkpoint}")
    return folder


def compare_runtimes(
    work: Workload,
    folder: Path,
    stock: Mapping[str, Path],
    single_texts: int,
    batch_size: int = 32,
    batch_tokens: int = 1024,
    rounds: int = 5,
    exit_threshold: float | None = None,
) -> list[Record]:
    """Time all ways to classify the texts of a workload, in turn, after one pass of each to warm up.

    All use as many threads as PyTorch does, and start from texts, or from tokenized texts if these are planted. The
    fp32 graphs must give the logits and exits of PyTorch; those in int8 the exits of their own trace.

    Args:
        work: A model in float32 on the CPU, and texts.
        folder: Folder with the exported model.
        stock: Graphs of the classifier without exits, from `export_stock`.
        single_texts: Number of texts to time one at a time; all are timed together.
        batch_size: Texts per batch, for runs in batches.
        batch_tokens: Tokens per batch of `predict`.
        rounds: Timed passes of each run.
        exit_threshold: Threshold for int8. Default: None, the one that was chosen for it.

    Returns:
        Two records that can be written as JSON, of single texts ("way" is "single") and of many ("many"):

        - `runs`, of each run `milliseconds` per text (median and 95th percentile), `seconds` of each round, and
          `mean_layers`;
        - `best_static` and `best_with_exits`, the fastest runs without and with exits;
        - `speed_up` of the latter over the former, and `eta` of each run with exits in ONNX Runtime, both as
          [lower quartile, median, upper quartile] over the rounds. eta is the speed-up over the graph of the same
          precision without exits, text by text, divided by the speed-up in layers;
        - `left_out`, why a run was not measured.

    Raises:
        ValueError: The model is not in float32 on the CPU.
        AnswersDifferError: A run returned wrong logits or exit layers.
    """
    if work.model.dtype != torch.float32 or work.model.device.type != "cpu":
        raise ValueError(
            f"model: is in {work.model.dtype} on {work.model.device}, but the comparison with ONNX Runtime needs "
            "float32 on the CPU; pass --dtype float32 --device cpu"
        )
    left_out: dict[str, str] = {}
    graphs = _Graphs(work, folder, stock, torch.get_num_threads())
    singles, many = {}, {}
    first = range(min(single_texts, len(work.rows)))
    torch_works = {"": work}
    if not bf16_is_slow(CPU):
        torch_works[" bf16"] = _in_bfloat16(work)
    else:
        left_out["stock torch bf16"] = NO_BFLOAT16
    for suffix, each in torch_works.items():
        from_texts = each.texts is not None
        name = "static-texts" if from_texts else "static-sorted"
        singles[f"stock torch{suffix}"] = _single(text_by_text(each, stock=True), first, each.expected, stock=True)
        many[f"stock torch{suffix}, batches"] = Run([make_run(each, name, batch_size, 0, ready=False)], each.expected)
    for precision in PRECISIONS:
        expected = work.expected if precision == "fp32" else None
        singles[f"stock onnx {precision}"] = _single(partial(graphs.one, precision), first, expected, stock=True)
        many[f"stock onnx {precision}"] = Run([partial(graphs.text_by_text, precision)], expected)
        many[f"stock onnx {precision}, batches"] = Run([partial(graphs.batches, precision, batch_size)], expected)
    for suffix, each in torch_works.items():
        layers = each.expected.exit_layer.double()
        name = "predict-texts" if each.texts is not None else "predict"
        singles[f"exits torch{suffix}"] = _single(text_by_text(each, stock=False), first, each.expected)
        run = make_run(each, name, 0, batch_tokens, ready=False)
        many[f"exits torch{suffix}"] = Run([run], each.expected, layers.mean().item())
    items = _items(work)
    for precision in PRECISIONS:
        name = f"exits onnx {precision}"
        if precision not in read_manifest(folder)["precisions"]:
            left_out[name] = "it was not exported; call adaexit export with --int8"
            continue
        classifier = _classifier(folder, precision)
        threshold = work.model.config.exit_threshold if precision == "fp32" else exit_threshold
        if threshold is None and not classifier.calibrated:
            left_out[name] = "no threshold was chosen for it; call adaexit calibrate with --runtime onnx"
            continue
        expected = work.expected if precision == "fp32" else _expected_of_trace(classifier, work, threshold)
        one = partial(_classify, classifier, items, threshold)
        singles[name] = _single(one, first, expected)
        many[name] = Run([partial(one, None)], expected, expected.exit_layer.double().mean().item())
    depth = work.model.config.exit_layers[-1]
    return [
        {"way": way, "texts": texts, "batch_size": batch_size, "batch_tokens": batch_tokens, "left_out": left_out}
        | {"same_head": work.expected.stock is work.expected.full_depth, "depth": depth}
        | _summary(runs, measure_in_turn(runs, rounds), depth)
        for way, texts, runs in (("single", len(first), singles), ("many", len(work.rows), many))
    ]


@torch.inference_mode()
def measure_in_turn(runs: Mapping[str, Run], rounds: int) -> dict[str, list[list[float]]]:
    """Time runs in turn, A B C A B C, after one pass of each to warm up, and check the results of every pass.

    Args:
        runs: The runs by name.
        rounds: Timed passes of each run.

    Returns:
        By name and round the seconds of every part, per text.

    Raises:
        AnswersDifferError: A run returned wrong logits or exit layers.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    expected = {name: run.expected for name, run in runs.items()}
    for number in range(rounds + 1):
        for name, run in runs.items():
            elapsed, outputs = zip(*(timed(part, CPU) for part in run.parts), strict=True)
            logits = torch.cat([each for each, _ in outputs])
            layers = None if outputs[0][1] is None else torch.cat([each for _, each in outputs])
            wanted = expected[name] or _repeated(logits)
            check_output(name, (logits, layers), wanted)
            expected[name] = wanted
            if number:
                seconds[name].append([value * len(run.parts) / len(logits) for value in elapsed])
    return seconds


def _summary(runs: Mapping[str, Run], seconds: Mapping[str, list[list[float]]], depth: int) -> Record:
    totals = {name: [sum(values) for values in rounds] for name, rounds in seconds.items()}
    medians = {name: statistics.median(values) for name, values in totals.items()}
    best = {
        side: min((name for name in runs if name.startswith(side)), key=medians.__getitem__)
        for side in ("stock", "exits")
    }

    def speed_up(candidate: str, baseline: str) -> list[float]:
        pairs = zip(totals[baseline], totals[candidate], strict=True)
        return quartiles([slow / fast for slow, fast in pairs])

    eta = {}
    for name, run in runs.items():
        if name.startswith("exits onnx"):
            gains = speed_up(name, name.replace("exits", "stock"))
            eta[name] = [gain * cast(float, run.mean_layers) / depth for gain in gains]
    return {
        "runs": {
            name: {
                "milliseconds": milliseconds([value for values in seconds[name] for value in values]),
                "seconds": [round(value, 6) for value in totals[name]],
                "mean_layers": depth if run.mean_layers is None else run.mean_layers,
            }
            for name, run in runs.items()
        },
        "best_static": best["stock"],
        "best_with_exits": best["exits"],
        "speed_up": speed_up(best["exits"], best["stock"]),
        "eta": eta,
    }


class _Graphs:
    """The graphs of the classifier without exits, run as fast as ONNX Runtime can, with the tokenizer of the stages.

    Args:
        work: The texts.
        folder: Folder with the exported model.
        files: The graphs, from `export_stock`.
        threads: Number of threads: of one text or one batch, or of texts that run at a time.
    """

    def __init__(self, work: Workload, folder: Path, files: Mapping[str, Path], threads: int) -> None:
        self.items, self.threads = _items(work), threads
        self.pad = work.model.config.encoder_config.pad_token_id or 0
        self.sessions = {name: self._session(path, threads) for name, path in files.items()}
        self.own_thread = self.sessions
        if threads > 1:
            self.own_thread = {name: self._session(path, 1) for name, path in files.items()}
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.inputs = [given.name for given in self.sessions["fp32"].get_inputs()]
        self.tokenizer = needed("tokenizers", "onnx").Tokenizer.from_file(str(folder / TOKENIZER))

    @staticmethod
    def _session(path: Path, threads: int) -> Any:
        runtime = needed("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def one(self, precision: str, place: int) -> RunOutput:
        """Classify one text."""
        (row,) = self._rows(self.items[place : place + 1])
        (logits,) = self.sessions[precision].run(None, row)
        return torch.from_numpy(logits), None

    def text_by_text(self, precision: str) -> RunOutput:
        """Classify all texts, one at a time, or as many at a time as there are threads."""
        session = self.own_thread[precision]

        def run(row: dict[str, Any]) -> Any:
            return session.run(None, row)[0]

        rows = self._rows(self.items)
        outputs = map(run, rows) if self.pool is None else self.pool.map(run, rows)
        return torch.from_numpy(np.concatenate(list(outputs))), None

    def batches(self, precision: str, batch_size: int) -> RunOutput:
        """Classify all texts in batches of similar length."""
        rows = list(self._rows(self.items))
        sizes = groups([row["input_ids"].shape[1] for row in rows], batch_size, 0, by_length=True)
        session = self.sessions[f"{precision}-batches"]
        outputs = [session.run(None, self._padded([rows[place] for place in places]))[0] for places in sizes]
        order = np.argsort([place for places in sizes for place in places])
        return torch.from_numpy(np.concatenate(outputs)[order]), None

    def _rows(self, items: Sequence[Any]) -> Iterator[dict[str, Any]]:
        if isinstance(items[0], Mapping):
            columns = [{"token_type_ids": [0] * len(item["input_ids"])} | item for item in items]
        else:
            encodings = self.tokenizer.encode_batch([item if isinstance(item, str) else tuple(item) for item in items])
            columns = [{"input_ids": each.ids, "token_type_ids": each.type_ids} for each in encodings]
        for values in columns:
            yield {name: np.asarray([values[name]], dtype=np.int64) for name in self.inputs}

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(row["input_ids"].shape[1] for row in rows)
        batch = {name: np.zeros((len(rows), longest), dtype=np.int64) for name in (*self.inputs, "attention_mask")}
        batch["input_ids"] += self.pad
        for index, row in enumerate(rows):
            length = row["input_ids"].shape[1]
            batch["attention_mask"][index, :length] = 1
            for name, values in row.items():
                batch[name][index, :length] = values[0]
        return batch


def _items(work: Workload) -> list[Any]:
    return work.rows if work.texts is None else work.texts


def _single(one: Callable[[int], RunOutput], places: range, expected: Expected | None, stock: bool = False) -> Run:
    """A run that times texts one at a time."""
    parts = [partial(one, place) for place in places]
    if expected is None:
        return Run(parts, None)
    count = len(places)
    fields = ("logits", "exit_layer", "full_depth", "stock", "unambiguous")
    expected = expected._replace(**{name: getattr(expected, name)[:count] for name in fields})
    return Run(parts, expected, None if stock else expected.exit_layer.double().mean().item())


def _classifier(folder: Path, precision: str) -> Any:
    from ..onnx_runtime.classifier import OnnxEarlyExitClassifier  # needs the extra

    return OnnxEarlyExitClassifier(folder, precision, threads=torch.get_num_threads())


def _classify(classifier: Any, items: list[Any], threshold: float | None, place: int | None) -> RunOutput:
    """Classify one text, or all, with an exported model."""
    found = classifier.predict(items if place is None else items[place : place + 1], exit_threshold=threshold)
    return torch.from_numpy(found.logits), torch.from_numpy(found.exit_layer)


def _expected_of_trace(classifier: Any, work: Workload, threshold: float | None) -> Expected:
    """What an exported model must return according to its own trace at full depth."""
    trace = onnx_trace(classifier, _items(work), work.tokenizer, work.model.config)
    logits, exit_layer = trace.at(classifier.exit_threshold if threshold is None else threshold)
    certain = torch.ones(len(logits), dtype=torch.bool)
    return Expected(logits, exit_layer, trace.logits[:, -1], trace.logits[:, -1], certain, REPEATED)


def _repeated(logits: Tensor) -> Expected:
    """Let a run of the classifier without exits return what it has returned."""
    count = len(logits)
    return Expected(logits, torch.zeros(count), logits, logits, torch.ones(count, dtype=torch.bool), REPEATED)


def _in_bfloat16(work: Workload) -> Workload:
    """The same texts and model in bfloat16, which need not answer as in float32."""
    model = copy.deepcopy(work.model).bfloat16()
    fields = {"texts": work.texts, "tokenizer": work.tokenizer, "max_memory": work.max_memory}
    rows = work.rows if work.texts is None else read_rows(work.texts, work.tokenizer, model.config)
    return workload(model, rows, work.plan, **fields)
