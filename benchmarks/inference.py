"""Measure the speed-up of early exit: `predict`, batches and single texts against Transformers' own classifier.

    python benchmarks/inference.py --output speed.jsonl --plot speed.png
    python benchmarks/inference.py --output speed.jsonl --model_name_or_path out --text_file dev.tsv \
        --text_columns sentence
    python benchmarks/inference.py --output speed.jsonl --grow 1000 10000 100000 --layers 4 --hidden_size 128
    python benchmarks/inference.py --output speed.jsonl --onnx --threads 1 --texts 100 --lengths long

The first command times a model of BERT-base's shape with random weights and planned exit layers. The second times a
trained checkpoint with its threshold on real texts (.txt, .csv, .tsv, .json or .jsonl). The third measures how time
per text and peak memory grow with the number of texts. The fourth compares PyTorch and ONNX Runtime on the CPU, each
with exits and without, in fp32 and int8, of the random model or of a checkpoint that was exported; it needs the extra
`onnx`. The two runs of a pair take turns, after one pass of each to warm up; the table shows medians of their time
ratios, with quartiles over the rounds. eta is the measured speed-up divided by the speed-up in layers. Every
prediction is checked. Each measurement is written as one JSON line; what was already measured with the same settings
on the same machine (at any commit) is not measured again. The package `datasets` is not needed.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    HfArgumentParser,
    PreTrainedTokenizerFast,
)

from adaexit_hf.benchmark.planted import planted_model
from adaexit_hf.benchmark.records import Record, commit, find_record, machine, read_lines
from adaexit_hf.benchmark.runs import EXITS, RUNS, Workload
from adaexit_hf.benchmark.runtimes import compare_runtimes, exported_folder
from adaexit_hf.benchmark.timing import cells, grow, measure, planted_workload, trained_workload
from adaexit_hf.cli.predict import PredictOptions, items_of_input
from adaexit_hf.onnx_runtime.folder import read_manifest
from adaexit_hf.utils.processor import default_batch_tokens

PAIRS = ["in-model/static", "in-model-sorted/static-sorted", "predict/static-tokens", "predict/static"]
PLANTED_PAIRS = [*PAIRS, "authors/static", "predict/authors"]
TRAINED_PAIRS = [*PAIRS, "predict-texts/pipeline", "predict-texts/pipeline-full-depth"]


@dataclass
class Arguments:
    """What to measure."""

    output: str = field(metadata={"help": "JSON lines file to append to."})
    plot: str | None = field(
        default=None, metadata={"help": "Picture file for all measurements of this call; needs matplotlib."}
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"candidate/baseline, two of {', '.join(RUNS)}. Default: {' '.join(PLANTED_PAIRS)}; with a "
            f"checkpoint {' '.join(TRAINED_PAIRS)}."
        },
    )
    batch_sizes: list[int] = field(
        default_factory=list, metadata={"help": "Texts per batch. Default: 1 8 32 128 256; with --onnx only 32."}
    )
    batch_tokens: list[int] = field(
        default_factory=list, metadata={"help": "Tokens per batch of predict. Default: that of predict."}
    )
    savings: list[float] = field(
        default_factory=lambda: [1.0, 1.5, 2.0, 3.0], metadata={"help": "Planned savings: depth / mean exit layer."}
    )
    texts: int = field(default=1000, metadata={"help": "Texts per pass; the first ones of a file."})
    lengths: str = field(
        default="short",
        metadata={"help": "short: about 53 +- 16 tokens; long: about 400 +- 50; mixed: 1 to 512, log-uniform."},
    )
    rounds: int = field(default=5, metadata={"help": "Timed passes of each run; both runs take turns."})
    dtypes: list[str] = field(default_factory=lambda: ["float32"], metadata={"help": "float32, bfloat16, float16."})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto uses a GPU if there is one."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    compile_static: bool = field(default=False, metadata={"help": "Compile the classifier without exits."})
    max_memory: int = field(default=2**30, metadata={"help": "Bytes that a window of predict may use."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, texts and plan."})
    layers: int = field(
        default=12, metadata={"help": "Layers of the random BERT; the next four flags are its shape, too."}
    )
    hidden_size: int = 768
    heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    grow: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of texts: measure only growth, with the first of the savings."},
    )
    onnx: bool = field(
        default=False,
        metadata={"help": "Compare PyTorch and ONNX Runtime instead, all in turn."},
    )
    single_texts: int = field(default=50, metadata={"help": "With --onnx: time this many texts one at a time."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to time, with its tokenizer."})
    exit_threshold: float | None = field(
        default=None, metadata={"help": "Exit threshold. Default: that of the checkpoint."}
    )
    text_file: str | None = field(default=None, metadata={"help": "File with texts for the checkpoint."})
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "Column of the texts, or two columns for pairs of texts."}
    )


class Workloads:
    """Models and texts of one dtype, built on first use; only the latest is kept in memory."""

    def __init__(self, arguments: Arguments, dtype: str, device: str) -> None:
        self.arguments, self.dtype, self.device = arguments, getattr(torch, dtype), device
        self.model: Any = None
        self.last: tuple[float | None, Workload] | None = None

    def measure(self, saving: float | None, cell: tuple[str, str, int, int]) -> Record:
        """Time a pair of runs, on planted texts with this saving or, if it is None, on the checkpoint."""
        if self.last is None or self.last[0] != saving:
            self.last = (saving, self.trained() if saving is None else self.planted(saving))
        return measure(self.last[1], *cell, self.arguments.rounds)

    def measure_runtimes(self, saving: float | None) -> Record:
        """Compare the runtimes on planted texts with this saving or, if it is None, on the exported checkpoint."""
        from adaexit_hf.export.onnx import export_onnx, export_stock  # needs the extra `onnx`

        options = self.arguments
        work = self.trained() if saving is None else self.planted(saving)
        tokens = (options.batch_tokens or [1024])[0]
        with tempfile.TemporaryDirectory() as temporary:
            if saving is None:
                folder = exported_folder(str(options.model_name_or_path))
            else:
                folder = Path(temporary, "exits")
                export_onnx(work.model, no_words(work.model), folder, int8=True)
            manifest = read_manifest(folder)
            (first, *_), longest = manifest["precisions"]["fp32"]["stages"], manifest["max_tokens"]
            stock = export_stock(work.stock, Path(temporary), first["inputs"], longest)
            sizes = (options.single_texts, (options.batch_sizes or [32])[0], tokens, options.rounds)
            # The plan decides where planted texts exit, in int8, too.
            ways = compare_runtimes(work, folder, stock, *sizes, work.model.config.exit_threshold if saving else None)
        return {"layer_speed_up": work.layer_speed_up, "ways": ways}

    def planted(self, saving: float) -> Workload:
        options = self.arguments
        if self.model is None:
            self.model = planted_model(BertConfig(**shape(options)), self.dtype, self.device, options.seed)
        fields = {"compile_static": options.compile_static, "max_memory": options.max_memory}
        return planted_workload(self.model, options.texts, saving, options.lengths, options.seed, **fields)

    def trained(self) -> Workload:
        options = self.arguments
        name = options.model_name_or_path
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=self.dtype).eval().to(self.device)
        if options.exit_threshold is not None:
            model.config.exit_threshold = options.exit_threshold
        fields = {"compile_static": options.compile_static, "max_memory": options.max_memory}
        return trained_workload(model, AutoTokenizer.from_pretrained(name), texts_of(options), **fields)


def no_words(model: Any) -> Any:
    """A tokenizer to export with a model of planted texts, which have none: every word is unknown."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    longest = model.config.encoder_config.max_position_embeddings
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, pad_token="[PAD]")


def texts_of(arguments: Arguments) -> list[Any]:
    """The texts for the checkpoint."""
    if arguments.text_file is None:
        raise ValueError("text_file: got None; with --model_name_or_path pass a file with texts to classify")
    items = items_of_input(PredictOptions(file=arguments.text_file, text_columns=arguments.text_columns), [], None)
    return list(islice((text for _, text in items if text is not None), arguments.texts))


def shape(arguments: Arguments) -> Record:
    """Arguments of the `BertConfig` of the random model."""
    return {
        "num_hidden_layers": arguments.layers,
        "hidden_size": arguments.hidden_size,
        "num_attention_heads": arguments.heads,
        "intermediate_size": arguments.intermediate_size,
        "vocab_size": arguments.vocab_size,
    }


def measurements(arguments: Arguments, device: str) -> Iterator[tuple[Record, Callable[[], Record]]]:
    """For every measurement: its settings, and the function that makes it."""
    setting = machine(device) | {"max_memory": arguments.max_memory}
    random = {"weights": "random", "lengths": arguments.lengths} | shape(arguments)
    for dtype, count in itertools.product(arguments.dtypes, arguments.grow):
        parts = (arguments.savings[0], arguments.lengths, dtype, device, torch.get_num_threads(), arguments.max_memory)
        growth = setting | random | {"grow": True, "texts": count, "saving": arguments.savings[0], "dtype": dtype}
        yield growth, partial(grow, count, shape(arguments), *parts)
    if arguments.grow:
        return
    setting |= {"rounds": arguments.rounds, "seed": arguments.seed, "compile_static": arguments.compile_static}
    name, savings = arguments.model_name_or_path, list[Any](arguments.savings)
    if name is None:
        setting |= random | {"texts": arguments.texts}
    else:
        savings, config, count = [None], AutoConfig.from_pretrained(name), len(texts_of(arguments))
        threshold = config.exit_threshold if arguments.exit_threshold is None else arguments.exit_threshold
        setting |= {"weights": Path(name).name, "exit_criterion": config.exit_criterion, "exit_threshold": threshold}
        setting |= {
            "text_file": Path(str(arguments.text_file)).name,
            "text_columns": arguments.text_columns,
            "texts": count,
        }
    if arguments.onnx:
        setting |= {
            "onnxruntime": version("onnxruntime"),
            "dtype": "float32",
            "single_texts": arguments.single_texts,
            "batch_size": (arguments.batch_sizes or [32])[0],
            "batch_tokens": (arguments.batch_tokens or [1024])[0],
        }
        workloads = Workloads(arguments, "float32", device)
        for saving in savings:
            yield setting | {"runtimes": True, "saving": saving}, partial(workloads.measure_runtimes, saving)
        return
    pairs = arguments.pairs or (PLANTED_PAIRS if name is None else TRAINED_PAIRS)
    for dtype in arguments.dtypes:
        tokens = arguments.batch_tokens or [default_batch_tokens(torch.device(device), getattr(torch, dtype))]
        all_cells = cells(pairs, arguments.batch_sizes or [1, 8, 32, 128, 256], tokens)
        workloads = Workloads(arguments, dtype, device)
        for saving, cell in itertools.product(savings, all_cells):
            cell_fields = dict(zip(("candidate", "baseline", "batch_size", "batch_tokens"), cell, strict=True))
            yield setting | {"dtype": dtype, "saving": saving} | cell_fields, partial(workloads.measure, saving, cell)


def table(records: list[Record]) -> str:
    """A Markdown table with one row per record."""
    lines: list[list[str]] = []
    if records and "ways" in records[0]:
        lines = [["texts", "run", "mean layers", "median, ms", "p95, ms", "against the best static", "eta"]]
        for way in itertools.chain.from_iterable(record["ways"] for record in records):
            times = {name: run["milliseconds"] for name, run in way["runs"].items()}
            best = times[way["best_static"]]["median"]
            for name, run in way["runs"].items():
                layers, eta = f"{run['mean_layers']:.2f} of {way['depth']}", way["eta"].get(name)
                row = [f"{way['texts']}, {way['way']}", name, layers]
                row += [f"{times[name][key]:.2f}" for key in ("median", "p95")]
                lines.append([*row, f"{best / times[name]['median']:.2f}x", f"{eta[1]:.2f}" if eta else ""])
    elif records and records[0].get("grow"):
        lines = [["texts", "dtype", "ms per text", "peak memory, MiB", "before the first text, MiB"]]
        for record in records:
            memory = [f"{record[name] / 2**20:.0f}" for name in ("peak_memory", "memory_before")]
            lines.append([str(record["texts"]), record["dtype"], f"{1000 * record['seconds_per_text']:.3f}", *memory])
    else:
        lines = [["run", "against", "batch", "dtype", "layers", "speed-up (quartiles)", "eta (quartiles)", "overhead"]]
        for record in records:
            batch = [f"{record['batch_size']}"] * bool(record["batch_size"])
            batch += [f"{record['batch_tokens']} tokens"] * bool(record["batch_tokens"])
            quartiles = record["speed_up"], record["eta"]
            speed_up, eta = (f"{median:.2f} ({low:.2f} to {high:.2f})" for low, median, high in quartiles)
            layers, overhead = f"{record['layer_speed_up']:.2f}x", ""
            if record["baseline"] in EXITS:  # both runs exit early, so they run the same layers
                layers, eta = "same", ""
            elif record["layer_speed_up"] == 1:
                overhead = f"{100 / record['speed_up'][1] - 100:.1f} %"
            names = [record["candidate"], record["baseline"], " / ".join(batch), record["dtype"]]
            lines.append([*names, layers, speed_up, eta, overhead])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(records: list[Record], path: str) -> None:
    """Draw speed-up and eta over the layers saved, with one line for every pair of runs, batch and dtype."""
    from matplotlib import pyplot  # optional: pip install adaexit_hf[plot]

    curves: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record["layer_speed_up"]):
        batch = record["batch_size"] or f"{record['batch_tokens']} tokens"
        name = f"{record['candidate']} / {record['baseline']}, {batch}, {record['dtype']}"
        curves.setdefault(name, []).append(record)
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharex=True, layout="constrained")
    for axis, key, title in zip(axes, ("speed_up", "eta"), ("measured speed-up", "eta"), strict=True):
        for name, curve in curves.items():
            layer_speed_ups = [record["layer_speed_up"] for record in curve]
            medians = [record[key][1] for record in curve]
            errors = [[abs(record[key][side] - record[key][1]) for record in curve] for side in (0, 2)]
            axis.errorbar(layer_speed_ups, medians, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
        axis.set(xlabel="layer speed-up", title=title)
    largest = max(record["layer_speed_up"] for record in records)
    axes[0].plot([1, largest], [1, largest], color="grey", linestyle=":", label="speed-up in layers")
    axes[1].axhline(1, color="grey", linestyle=":")
    axes[0].legend(fontsize=6)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, and print all results of this call."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    for dtype in arguments.dtypes:
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtypes: got '{dtype}'; choose from float32, bfloat16 and float16")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cpu" if arguments.onnx and arguments.device == "auto" else arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    output, source, results = Path(arguments.output), commit(), []
    records = read_lines(output)
    for settings, run in measurements(arguments, device):
        record = find_record(records, settings)
        if record is None:
            record = settings | run() | {"commit": source}
            with output.open("a") as file:
                file.write(json.dumps(record) + "\n")
            rows = table([record]).splitlines()
            print("\n".join(rows[2:]), flush=True)
        results.append(record)
    print(f"\n{table(results)}")
    if arguments.plot and not arguments.grow and not arguments.onnx:
        # Pairs in which both runs exit early save no layers against each other, so they are not drawn.
        draw([record for record in results if record["baseline"] not in EXITS], arguments.plot)


if __name__ == "__main__":
    main()
