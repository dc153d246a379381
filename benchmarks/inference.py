"""What early exit gains on the clock: `predict`, batches and single texts against Transformers' own classifier.

    python benchmarks/inference.py --output speed.jsonl --plot speed.png
    python benchmarks/inference.py --output speed.jsonl --model_name_or_path out --text_file dev.tsv \
        --text_columns sentence
    python benchmarks/inference.py --output speed.jsonl --grow 1000 10000 100000 --layers 4 --hidden_size 128

The first times random weights of BERT-base's shape, whose texts leave where a plan says; the second a trained
checkpoint with its threshold on real texts (.txt, .csv, .tsv, .json or .jsonl); the third how time per text and peak
memory grow. Both runs of a pair take turns after a pass of each that warms up; printed are medians of their ratios,
with quartiles over the rounds. eta is the speed-up on the clock divided by the speed-up in layers. All answers are
checked. One JSON line for every measurement; those that are there already, under the same circumstances (except the
commit), are not made again. Needs no `datasets`.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, HfArgumentParser

from adaexit_hf.benchmark.planted import planted_model
from adaexit_hf.benchmark.records import Record, commit, known, machine, read_lines
from adaexit_hf.benchmark.runs import EXITS, RUNS, Workload
from adaexit_hf.benchmark.timing import cells, grow, measure, planted_workload, trained_workload
from adaexit_hf.inference.text_files import read_texts

PAIRS = ["in-model/static", "in-model-sorted/static-sorted", "predict/static-tokens", "predict/static"]
PLANTED_PAIRS = [*PAIRS, "authors/static", "predict/authors"]
TRAINED_PAIRS = [*PAIRS, "predict-texts/pipeline", "predict-texts/pipeline-full-depth"]


@dataclass
class Arguments:
    """What to measure."""

    output: str = field(metadata={"help": "JSON lines."})
    plot: str | None = field(default=None, metadata={"help": "Picture of all cells of this call; needs matplotlib."})
    pairs: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"candidate/baseline, two of {', '.join(RUNS)}. Default: {' '.join(PLANTED_PAIRS)}; with a "
            f"checkpoint {' '.join(TRAINED_PAIRS)}."
        },
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32, 128, 256], metadata={"help": "Texts per batch."})
    batch_tokens: list[int] = field(
        default_factory=list, metadata={"help": "Tokens per batch of predict; default 1024 on a CPU, else 16384."}
    )
    savings: list[float] = field(
        default_factory=lambda: [1.0, 1.5, 2.0, 3.0], metadata={"help": "Planned depth / mean exit layer."}
    )
    texts: int = field(default=1000, metadata={"help": "Texts in each pass; of a file, the first ones."})
    lengths: str = field(
        default="short", metadata={"help": "short: about 53 +- 16 tokens; mixed: 1 to 512, log-uniform."}
    )
    rounds: int = field(default=5, metadata={"help": "Timed passes of each run, in turn."})
    dtypes: list[str] = field(default_factory=lambda: ["float32"], metadata={"help": "float32, bfloat16, float16."})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    compile_static: bool = field(default=False, metadata={"help": "The classifier without exits under torch.compile."})
    max_memory: int = field(default=2**30, metadata={"help": "Of predict: bytes of a window."})
    seed: int = field(default=0, metadata={"help": "Of weights, texts and plan."})
    layers: int = field(default=12, metadata={"help": "Shape of the random BERT."})
    hidden_size: int = 768
    heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    grow: list[int] = field(
        default_factory=list, metadata={"help": "Numbers of texts: measure growth, at the first of savings, alone."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint with its tokenizer."})
    exit_threshold: float | None = field(default=None, metadata={"help": "Default: the checkpoint's."})
    text_file: str | None = field(default=None, metadata={"help": "Texts for the checkpoint."})
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One, or two for pairs."})


class Workloads:
    """Models and texts of one dtype, made when they are needed; the last one is kept."""

    def __init__(self, arguments: Arguments, dtype: str, device: str) -> None:
        self.arguments, self.dtype, self.device = arguments, getattr(torch, dtype), device
        self.model: Any = None
        self.last: tuple[float | None, Workload] | None = None

    def measure(self, saving: float | None, cell: tuple[str, str, int, int]) -> Record:
        """Time a pair of runs; without a saving on the checkpoint and its texts."""
        if self.last is None or self.last[0] != saving:
            self.last = (saving, self.trained() if saving is None else self.planted(saving))
        return measure(self.last[1], *cell, self.arguments.rounds)

    def planted(self, saving: float) -> Workload:
        asked = self.arguments
        if self.model is None:
            self.model = planted_model(BertConfig(**shape(asked)), self.dtype, self.device, asked.seed)
        more = {"compile_static": asked.compile_static, "max_memory": asked.max_memory}
        return planted_workload(self.model, asked.texts, saving, asked.lengths, asked.seed, **more)

    def trained(self) -> Workload:
        asked = self.arguments
        name = asked.model_name_or_path
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=self.dtype).eval().to(self.device)
        if asked.exit_threshold is not None:
            model.config.exit_threshold = asked.exit_threshold
        more = {"compile_static": asked.compile_static, "max_memory": asked.max_memory}
        return trained_workload(model, AutoTokenizer.from_pretrained(name), texts_of(asked), **more)


def texts_of(arguments: Arguments) -> list[Any]:
    if arguments.text_file is None:
        raise ValueError("text_file: got None; pass the texts that the checkpoint is to classify")
    return list(islice(read_texts(Path(arguments.text_file), arguments.text_columns), arguments.texts))


def shape(arguments: Arguments) -> Record:
    return {
        "num_hidden_layers": arguments.layers,
        "hidden_size": arguments.hidden_size,
        "num_attention_heads": arguments.heads,
        "intermediate_size": arguments.intermediate_size,
        "vocab_size": arguments.vocab_size,
    }


def work_to_do(arguments: Arguments, device: str) -> Iterator[tuple[Record, Callable[[], Record]]]:
    """Every cell: its circumstances, and what measures it."""
    where = machine(device) | {"max_memory": arguments.max_memory}
    random = {"weights": "random", "lengths": arguments.lengths} | shape(arguments)
    for dtype, count in itertools.product(arguments.dtypes, arguments.grow):
        parts = (arguments.savings[0], arguments.lengths, dtype, device, torch.get_num_threads(), arguments.max_memory)
        cell = where | random | {"grow": True, "texts": count, "saving": arguments.savings[0], "dtype": dtype}
        yield cell, partial(grow, count, shape(arguments), *parts)
    if arguments.grow:
        return
    where |= {"rounds": arguments.rounds, "seed": arguments.seed, "compile_static": arguments.compile_static}
    name, savings = arguments.model_name_or_path, list[Any](arguments.savings)
    if name is None:
        where |= random | {"texts": arguments.texts}
    else:
        savings, config, count = [None], AutoConfig.from_pretrained(name), len(texts_of(arguments))
        threshold = config.exit_threshold if arguments.exit_threshold is None else arguments.exit_threshold
        where |= {"weights": Path(name).name, "exit_criterion": config.exit_criterion, "exit_threshold": threshold}
        where |= {
            "text_file": Path(str(arguments.text_file)).name,
            "text_columns": arguments.text_columns,
            "texts": count,
        }
    pairs = arguments.pairs or (PLANTED_PAIRS if name is None else TRAINED_PAIRS)
    todo = cells(pairs, arguments.batch_sizes, arguments.batch_tokens or [1024 if device == "cpu" else 16384])
    for dtype in arguments.dtypes:
        workloads = Workloads(arguments, dtype, device)
        for saving, pair in itertools.product(savings, todo):
            key = dict(zip(("candidate", "baseline", "batch_size", "batch_tokens"), pair, strict=True))
            yield where | {"dtype": dtype, "saving": saving} | key, partial(workloads.measure, saving, pair)


def table(records: list[Record]) -> str:
    """Markdown, one row a cell."""
    lines: list[list[str]] = []
    if records and records[0].get("grow"):
        lines = [["texts", "dtype", "ms per text", "peak memory, MiB", "of it before the first text"]]
        for each in records:
            memory = [f"{each[name] / 2**20:.0f}" for name in ("peak_memory", "memory_before")]
            lines.append([str(each["texts"]), each["dtype"], f"{1000 * each['seconds_per_text']:.3f}", *memory])
    else:
        lines = [["run", "against", "batch", "dtype", "layers", "speed-up (quartiles)", "eta (quartiles)", "overhead"]]
        for each in records:
            batch = [f"{each['batch_size']}"] * bool(each["batch_size"])
            batch += [f"{each['batch_tokens']} tokens"] * bool(each["batch_tokens"])
            speed_up, eta = (f"{m:.2f} ({q:.2f} to {r:.2f})" for q, m, r in (each["speed_up"], each["eta"]))
            layers, overhead = f"{each['layer_speed_up']:.2f}x", ""
            if each["baseline"] in EXITS:  # runs as many layers
                layers, eta = "same", ""
            elif each["layer_speed_up"] == 1:
                overhead = f"{100 / each['speed_up'][1] - 100:.1f} %"
            names = [each["candidate"], each["baseline"], " / ".join(batch), each["dtype"]]
            lines.append([*names, layers, speed_up, eta, overhead])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(records: list[Record], path: str) -> None:
    """Speed-up and eta over the layers saved, one line for every pair of runs and batch."""
    from matplotlib import pyplot  # an extra: pip install adaexit_hf[plot]

    curves: dict[str, list[Record]] = {}
    for each in sorted(records, key=lambda each: each["layer_speed_up"]):
        batch = each["batch_size"] or f"{each['batch_tokens']} tokens"
        curves.setdefault(f"{each['candidate']} / {each['baseline']}, {batch}, {each['dtype']}", []).append(each)
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharex=True, layout="constrained")
    for axis, what, title in zip(axes, ("speed_up", "eta"), ("speed-up on the clock", "eta"), strict=True):
        for name, curve in curves.items():
            places = [each["layer_speed_up"] for each in curve]
            middle = [each[what][1] for each in curve]
            reach = [[abs(each[what][side] - each[what][1]) for each in curve] for side in (0, 2)]
            axis.errorbar(places, middle, yerr=reach, marker="o", markersize=3, capsize=2, label=name)
        axis.set(xlabel="layer speed-up", title=title)
    most = max(each["layer_speed_up"] for each in records)
    axes[0].plot([1, most], [1, most], color="grey", linestyle=":", label="what layers promise")
    axes[1].axhline(1, color="grey", linestyle=":")
    axes[0].legend(fontsize=6)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    for dtype in arguments.dtypes:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtypes: got '{dtype}'; choose from float32, bfloat16 and float16")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    output, source, found = Path(arguments.output), commit(), []
    records = read_lines(output)
    for cell, run in work_to_do(arguments, device):
        record = known(records, cell)
        if record is None:
            record = cell | run() | {"commit": source}
            with output.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(table([record]).splitlines()[-1], flush=True)
        found.append(record)
    print(f"\n{table(found)}")
    if arguments.plot and not arguments.grow:
        # Two runs that exit run the same layers: they have no place on an axis of layers saved.
        draw([each for each in found if each["baseline"] not in EXITS], arguments.plot)


if __name__ == "__main__":
    main()
