"""What the depth-adaptive transformer saves in layers per token, and what it saves on the clock.

    python benchmarks/depth_adaptive_speed.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name stanfordnlp/imdb --output speed.jsonl

Depths come from mutual information on the training set. For every encoder cut to its first N layers and every batch
size, the same texts go through the stock encoder and through the model, in turn, and the ratios of the two times are
compared with the share of layers that tokens ran (Figs. 3b and 4 of Liu et al., AAAI 2021, in shape). Costs are shares
of the stock encoder's: where tokens run a share s of their layers it should be s + (1 - s) / 6, since the others still
need keys and values of the rest; the measured cost is 1 / speed-up. Efficiency is the speed-up divided by 1 / s, which
it would be if copied tokens cost nothing. Speed does not depend on the weights, so the classifier is not trained. One
JSON line for every measurement; those that are there already, under the same circumstances, are not made again.
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
from adaexit_hf.models.batching import padded_batch


@dataclass
class Arguments:
    """What to measure."""

    model_name_or_path: str = field(metadata={"help": "Encoder, Hub name or folder."})
    output: str = field(metadata={"help": "JSON lines."})
    dataset_name: str = field(default="stanfordnlp/imdb", metadata={"help": "With columns text and label."})
    layers: list[int] = field(default_factory=lambda: [2, 4, 6], metadata={"help": "Layers that the encoder keeps."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32], metadata={"help": "Texts per call."})
    max_seq_length: int = field(default=256, metadata={"help": "Longer texts are cut."})
    texts: int = field(default=32, metadata={"help": "Test texts in each pass."})
    rounds: int = field(default=5, metadata={"help": "Passes of each kind, in turn."})
    bf16: bool = field(default=False, metadata={"help": "Weights in bfloat16."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})


def seconds(run: Callable[[dict[str, Any]], Any], batches: list[dict[str, Any]], device: str) -> float:
    started = time.perf_counter()
    for batch in batches:
        run(batch)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def measure(model: Any, rows: list[dict[str, Any]], batch_size: int, arguments: Arguments) -> dict[str, Any]:
    """Paired times of the stock encoder and of the model; depths are those of the table."""
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
    ratios = [theirs / ours for theirs, ours in pairs]
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
        "stock_seconds": statistics.median(first for first, _ in pairs),
    }


def machine_of(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def main() -> None:
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
    known = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    names = ("dataset_name", "max_seq_length", "texts", "rounds", "bf16", "device")
    where = {"model": Path(arguments.model_name_or_path).name} | {name: vars(arguments)[name] for name in names}
    where |= {"machine": machine_of(arguments.device), "threads": torch.get_num_threads()}

    def missing(layers: int) -> list[int]:
        cells = [where | {"layers": layers, "batch_size": size} for size in arguments.batch_sizes]
        return [cell["batch_size"] for cell in cells if not any(cell.items() <= each.items() for each in known)]

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
            found = measure(model, rows, size, arguments)
            with output.open("a") as file:
                file.write(json.dumps({**where, "layers": layers, "batch_size": size, **found}) + "\n")
            spread = f"({found['speed_ups'][0]:.2f} to {found['speed_ups'][-1]:.2f})"
            print(
                f"{layers:>7} {size:>6} {found['token_layers_run']:>17.2f} {found['text_layers_run']:>16.2f} "
                f"{found['expected_cost']:>14.2f} {found['measured_cost']:>14.2f} {found['efficiency']:>11.2f} "
                f"{found['speed_up']:>9.2f}  {spread}",
                flush=True,
            )


if __name__ == "__main__":
    main()
