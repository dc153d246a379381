"""Compare the layers per token and the time that the depth-adaptive transformer saves.

    python benchmarks/depth_adaptive_speed.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name stanfordnlp/imdb --output speed.jsonl

Depths come from mutual information on the training set. For every encoder cut to its first N layers and every batch
size, the same texts are run by the stock encoder and by the model, in turn. The ratios of the two times are compared
with the fraction of layers that tokens ran, as in Figs. 3b and 4 of Liu et al., AAAI 2021. Costs are fractions of the
stock encoder's cost. If tokens run a fraction s of their layers, the expected cost is s + (1 - s) / 6, since copied
tokens still need keys and values in the remaining layers; the measured cost is 1 / speed-up. Efficiency is the
speed-up divided by 1 / s, the speed-up if copied tokens cost nothing. Speed does not depend on the weights, so the
classifier is not trained. Each measurement is written as one JSON line; what was already measured with the same
settings is not measured again.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, HfArgumentParser

from adaexit_hf import DepthAdaptiveForSequenceClassification
from adaexit_hf.models.padded_batches import padded_batch


@dataclass
class Arguments:
    """What to measure."""

    model_name_or_path: str = field(metadata={"help": "Hub name or folder of the encoder."})
    output: str = field(metadata={"help": "JSON lines file to append to."})
    dataset_name: str = field(default="stanfordnlp/imdb", metadata={"help": "Data set with columns text and label."})
    layers: list[int] = field(default_factory=lambda: [2, 4, 6], metadata={"help": "Numbers of layers to keep."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "Texts per call."})
    max_seq_length: int = field(default=256, metadata={"help": "Longer texts are truncated to this many tokens."})
    texts: int = field(default=32, metadata={"help": "Test texts per pass."})
    rounds: int = field(default=5, metadata={"help": "Timed passes of each of the two; they take turns."})
    bf16: bool = field(default=False, metadata={"help": "Weights in bfloat16."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})


def seconds(run: Callable[[dict[str, Any]], Any], batches: list[dict[str, Any]], device: str) -> float:
    """Seconds to run all batches."""
    started = time.perf_counter()
    for batch in batches:
        run(batch)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def measure(model: Any, rows: list[dict[str, Any]], batch_size: int, arguments: Arguments) -> dict[str, Any]:
    """Time the stock encoder and the model in turn; the depths are those of the model's table."""
    groups = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    batches = [padded_batch(group, model.config.encoder_config) for group in groups]
    batches = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]
    depth = model.config.encoder_config.num_hidden_layers

    def stock(batch: dict[str, Any]) -> Any:
        return model.encoder(**batch)

    def adaptive(batch: dict[str, Any]) -> Any:
        return model(**batch)

    for run in (stock, adaptive):  # warm up
        seconds(run, batches[:1], arguments.device)
    pairs = [
        (seconds(stock, batches, arguments.device), seconds(adaptive, batches, arguments.device))
        for _ in range(arguments.rounds)
    ]
    ratios = [stock_time / model_time for stock_time, model_time in pairs]
    speed_up = statistics.median(ratios)
    depths = torch.cat(
        [model.depth_table(batch["input_ids"])[batch["attention_mask"].bool()].float() for batch in batches]
    )
    exits = torch.cat([model(**batch).exit_layer for batch in batches]).float()
    share = depths.mean().item() / depth
    return {
        "token_layers_run": share,
        "text_layers_run": exits.mean().item() / depth,
        "expected_cost": share + (1 - share) / 6,
        "measured_cost": 1 / speed_up,
        "speed_up": speed_up,
        "efficiency": speed_up * share,
        "speed_ups": [round(ratio, 4) for ratio in sorted(ratios)],
        "stock_seconds": statistics.median(stock_time for stock_time, _ in pairs),
    }


def machine_of(device: str) -> str:
    """The name of the processor or GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure what is missing, and print it."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    splits = datasets.load_dataset(arguments.dataset_name)

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return dict(tokenizer(rows["text"], truncation=True, max_length=arguments.max_seq_length))

    train = splits["train"].map(encode, batched=True, remove_columns=["text"])
    test = splits["test"].shuffle(seed=0).select(range(arguments.texts)).map(encode, batched=True)
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in test]
    output = Path(arguments.output)
    records = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    flags = ("dataset_name", "max_seq_length", "texts", "rounds", "bf16", "device")
    setting = {"model": Path(arguments.model_name_or_path).name} | {name: vars(arguments)[name] for name in flags}
    setting |= {"machine": machine_of(arguments.device), "threads": torch.get_num_threads()}

    def missing(layers: int) -> list[int]:
        cells = [setting | {"layers": layers, "batch_size": size} for size in arguments.batch_sizes]
        return [cell["batch_size"] for cell in cells if not any(cell.items() <= record.items() for record in records)]

    print(
        f"{'layers':>7} {'batch':>6} {'token layers run':>17} {'text layers run':>16} {'expected cost':>14} "
        f"{'measured cost':>14} {'efficiency':>11} {'speed-up':>9}  (range)"
    )
    for layers in arguments.layers:
        sizes = missing(layers)
        if not sizes:
            continue
        model = DepthAdaptiveForSequenceClassification.from_encoder_pretrained(
            arguments.model_name_or_path,
            num_labels=2,
            num_hidden_layers=layers,
            dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
        )
        model.eval().to(arguments.device)
        model.prepare(train)
        for size in sizes:
            result = measure(model, rows, size, arguments)
            with output.open("a") as file:
                file.write(json.dumps({**setting, "layers": layers, "batch_size": size, **result}) + "\n")
            spread = f"({result['speed_ups'][0]:.2f} to {result['speed_ups'][-1]:.2f})"
            print(
                f"{layers:>7} {size:>6} {result['token_layers_run']:>17.2f} {result['text_layers_run']:>16.2f} "
                f"{result['expected_cost']:>14.2f} {result['measured_cost']:>14.2f} {result['efficiency']:>11.2f} "
                f"{result['speed_up']:>9.2f}  {spread}",
                flush=True,
            )


if __name__ == "__main__":
    main()
