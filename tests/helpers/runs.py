"""Short training runs of every method with a tiny BERT on made-up texts."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from helpers.copies import copy_of
from helpers.tiny import CLASSES, with_depths
from torch import Tensor
from transformers import BertConfig, TrainerCallback, set_seed

from adaexit_hf import EarlyExitTrainer, EarlyExitTrainingArguments, ExitTrace
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.modeling_early_exit import Stage
from adaexit_hf.models.padded_batches import padded_batch

# Trainer collects garbage before every stage, which takes longer than the stage with all imported modules in the way.
gc.freeze()

METHODS = sorted(CLASSES)
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 37}
Row = dict[str, Any]
Run = tuple[EarlyExitForSequenceClassification, list[dict[str, Any]]]


def encoder_config(dropout: float = 0.0) -> BertConfig:
    """With large weights: the usual ones make a tiny random model say nearly the same about every text."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertConfig(vocab_size=64, max_position_embeddings=16, initializer_range=0.3, **SMALL, **rates)


CONFIG = encoder_config()


def new_model(method: str, dropout: float = 0.0, seed: int = 0, **kwargs: Any) -> EarlyExitForSequenceClassification:
    set_seed(seed)
    return copy_of(made, method, dropout, seed, **kwargs)


def made(method: str, dropout: float, seed: int, **kwargs: Any) -> EarlyExitForSequenceClassification:
    set_seed(seed)
    model = CLASSES[method]
    return with_depths(model(model.config_class(encoder_config=encoder_config(dropout), **{"num_labels": 3} | kwargs)))


def texts(count: int = 24, labels: bool = True) -> list[Row]:
    """Ragged rows; the label is the first word's class."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for index in range(count):
        words = torch.randint(5, 64, (2 + index % 5,), generator=generator).tolist()
        rows.append({"input_ids": [1, *words, 2]} | ({"label": words[0] % 3} if labels else {}))
    return rows


def collate(rows: list[Row]) -> dict[str, Tensor]:
    batch = padded_batch(rows, CONFIG)
    return batch | ({"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {})


def new_trainer(
    model: EarlyExitForSequenceClassification,
    folder: Path,
    callbacks: Iterable[TrainerCallback] = (),
    rows: list[Row] | None = None,
    trainer_options: dict[str, Any] | None = None,
    **arguments: Any,
) -> EarlyExitTrainer:
    """Six steps a stage, logged step by step, nothing saved, unless `arguments` say otherwise."""
    defaults = {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    args = EarlyExitTrainingArguments(output_dir=str(folder), **defaults | arguments)
    return EarlyExitTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=rows or texts(),
        callbacks=list(callbacks),
        **trainer_options or {},
    )


def run(
    method: str, folder: Path, dropout: float = 0.0, exit_layers: list[int] | None = None, **arguments: Any
) -> Run:
    """The model after all stages, and what was logged."""
    history = History()
    model = new_model(method, dropout, exit_layers=exit_layers)
    new_trainer(model, folder, [history], **arguments).train()
    return model, history.logs


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((value - other[name]).abs().max().item() for name, value in one.items())


def clear_thresholds(trace: ExitTrace, count: int = 8) -> list[float]:
    """Spread over the scores, in the middle of wide gaps: rounding in batches of another size moves none across.

    Where the scores count something, whole numbers.
    """
    if torch.equal(trace.scores, trace.scores.round()):
        return [1.0, 2.0, 3.0]
    thresholds = []
    for scores in trace.scores[:, :-1].flatten().sort().values.chunk(count):
        widest = int(scores.diff().argmax())
        thresholds.append((scores[widest] + scores[widest + 1]).item() / 2)
    return thresholds


def frozen_in(stage: Stage, name: str) -> bool:
    """Written anew, for the test of the trainer's own."""
    parts = name.split(".")
    return any(parts[: prefix.count(".") + 1] == prefix.split(".") for prefix in stage.frozen)


class History(TrainerCallback):
    """Every log of every stage; Transformers forgets those of the stage before."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.logs.append(dict(logs))


class At(TrainerCallback):
    """Call `action` when `event` happens in stage number `stage` (1-based) after `step` steps, or after any."""

    def __init__(
        self, event: str, action: Callable[..., Any], stage: int | None = None, step: int | None = None
    ) -> None:
        def called(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            here = stage is None or f"stage-{stage}-" in args.output_dir
            if here and step in (None, state.global_step):
                action(args=args, state=state, control=control, **kwargs)

        setattr(self, event, called)


def interrupted(**kwargs: Any) -> None:
    raise KeyboardInterrupt


def stopped(control: Any, **kwargs: Any) -> None:
    control.should_training_stop = True


@contextmanager
def recorded_objectives(model: EarlyExitForSequenceClassification) -> Iterator[list[str]]:
    """The objective of every forward pass."""
    seen: list[str] = []

    def recording(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recorded(*arguments: Any) -> Tensor:
            seen.append(arguments[-1])
            return loss(*arguments)

        return recorded

    model.exit_loss = recording(model.exit_loss)  # type: ignore[method-assign]
    model.unlabelled_loss = recording(model.unlabelled_loss)  # type: ignore[method-assign]
    yield seen
    del model.exit_loss, model.unlabelled_loss
