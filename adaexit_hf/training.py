"""One Trainer for every method: runs the stages that the model prescribes, one after the other, in one call."""

import copy
import dataclasses
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput, get_last_checkpoint, set_seed

from .models.modeling_early_exit import EarlyExitForSequenceClassification, Stage

LEDGER = "stages.json"


@dataclass
class EarlyExitTrainingArguments(TrainingArguments):
    """Transformers' arguments, which hold for every stage, and what is different in single stages.

    Args:
        stage_overrides: stage name -> argument -> value, e.g. `{"exits": {"learning_rate": 1e-3, "num_train_epochs": 1}}`.
    """

    stage_overrides: dict[str, dict[str, Any]] | str = field(
        default_factory=dict,
        metadata={"help": 'JSON: training arguments of single stages, e.g. \'{"exits": {"num_train_epochs": 1}}\'.'},
    )

    def __post_init__(self) -> None:
        if isinstance(self.stage_overrides, str):
            self.stage_overrides = json.loads(self.stage_overrides)
        # An objective may leave exits unused; without this DDP waits for their gradients, and checkpointing turns it off.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True
        super().__post_init__()


class EarlyExitTrainer(Trainer):
    """Trains a model through its `stages`, each with its own trainable parameters, objectives, optimizer and schedule.

    Every stage starts from the same seed and writes to `output_dir/stage-<k>-<name>`; `output_dir/stages.json` says which are
    done. Objectives are cycled per optimizer step, so accumulation and several processes change nothing. The logs carry the
    stage's name and the loss of every exit (`exit_<layer>_loss`, the task loss whatever the objective).

    Raises:
        TypeError: `args` is not `EarlyExitTrainingArguments`.
        ValueError: label smoothing, `compute_loss_func` or `model_init`, which would bypass the model's objectives.
    """

    loss_is_scaled_for_ga = False  # the model's loss is a mean over the micro-batch

    def __init__(
        self, model: EarlyExitForSequenceClassification, args: EarlyExitTrainingArguments, *rest: Any, **kwargs: Any
    ) -> None:
        if not isinstance(args, EarlyExitTrainingArguments):
            raise TypeError(f"args: got {type(args).__name__}; pass EarlyExitTrainingArguments(output_dir=...)")
        if not isinstance(getattr(model, "stages", None), tuple):
            raise TypeError(
                f"model: {type(model).__name__} has no stages; pass an early-exit model, e.g. "
                "DeeBertForSequenceClassification.from_encoder_pretrained(...)"
            )
        if args.label_smoothing_factor or kwargs.get("compute_loss_func") or kwargs.get("model_init"):
            raise ValueError(
                "label_smoothing_factor, compute_loss_func and model_init bypass the objectives of the model's stages; "
                "leave them out, or override exit_loss in a subclass of the model"
            )
        self.stage: Stage | None = None
        self._exit_losses: list[Tensor] = []
        super().__init__(model, args, *rest, **kwargs)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        stage: str | None = None,
    ) -> TrainOutput:
        """Run all stages, or one.

        Args:
            resume_from_checkpoint: True continues the run in `output_dir` where it was interrupted, in whatever stage; a
                path names one of its checkpoints, and the stages before it count as done.
            trial, ignore_keys_for_eval: as in Transformers.
            stage: name of the only stage to run; the model is taken as it is.

        Returns:
            steps of all stages together, loss of the last one, and the metrics of the last one; and per stage
            `<stage>_train_loss` and `<stage>_train_runtime`.

        Raises:
            ValueError: an unknown stage or override; a frozen name that matches nothing; nothing to resume, or a run with
                another stage plan; or, when starting anew, checkpoints of an earlier run that would be mixed up.
        """
        base, plan = self.args, self.model.stages
        names = [each.name for each in plan]
        overrides = _checked_overrides(base, names)
        if stage is not None and stage not in names:
            raise ValueError(f"stage: got {stage!r}; {type(self.model).__name__} has {', '.join(names)}")
        for each in plan:
            _trainable(self.model, each)
        if self.optimizer is not None and stage is None and len(plan) > 1:
            raise ValueError("optimizers: one optimizer cannot serve several stages; leave it out, or call train(stage=...)")
        ledger = _Ledger(Path(base.output_dir), plan, overrides)
        chosen = names if stage is None else [stage]
        done, checkpoint = ledger.resume(resume_from_checkpoint, chosen) if resume_from_checkpoint else ([], None)
        if not resume_from_checkpoint:
            ledger.refuse_leftovers(chosen)
            done = [name for name in ledger.done() if name not in chosen]
        self.accelerator.wait_for_everyone()  # nobody may write before all have looked
        if resume_from_checkpoint and stage is None and done and checkpoint is None:
            self._load_from_checkpoint(str(ledger.folder(done[-1]) / "final"))

        flags = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        outputs: dict[str, TrainOutput] = {}
        try:
            for name in chosen:
                if name in done:
                    continue
                current = plan[names.index(name)]
                with self._entered(current, base, ledger.folder(name), overrides.get(name, {})):
                    if self.is_world_process_zero():
                        ledger.write(done)
                    outputs[name] = super().train(checkpoint, trial, ignore_keys_for_eval)
                    checkpoint = None
                    if self.args.save_strategy != "no":
                        self.save_model(str(ledger.folder(name) / "final"), _internal_call=True)
                done = [*done, name]
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    ledger.write(done)
        finally:
            self.args = base
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(flags[name])
        if not outputs:
            return TrainOutput(0, 0.0, {})
        last = list(outputs.values())[-1]
        metrics = dict(last.metrics)
        for name, output in outputs.items():
            metrics |= {f"{name}_{key}": output.metrics[key] for key in ("train_loss", "train_runtime")}
        return TrainOutput(sum(output.global_step for output in outputs.values()), last.training_loss, metrics)

    @contextmanager
    def _entered(self, stage: Stage, base: Any, folder: Path, overrides: dict[str, Any]) -> Iterator[None]:
        """Everything that Transformers keeps from one training run to the next is set for this stage."""
        args = dataclasses.replace(copy.copy(base), **overrides)
        # What is pushed is the finished model, when the user saves it; not the folders of stages.
        args.output_dir, args.push_to_hub = str(folder), False
        if args.mixed_precision != self.args.mixed_precision:
            AcceleratorState._reset_state()
        self.stage, self.args, self._exit_losses = stage, args, []
        self._train_batch_size = args.train_batch_size
        self.create_accelerator_and_postprocess()
        # An old DDP wrapper would not synchronise parameters that were frozen when it was made.
        self.model_wrapped = self.model
        if len(self.model.stages) > 1:
            self.optimizer = self.lr_scheduler = None
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0
        flags = _trainable(self.model, stage)
        before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(flags[name] and before[name])
        set_seed(args.seed)
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(before[name])
            self.stage = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of this optimizer step's objective; in evaluation the task loss of the answer."""
        if self.stage is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        objective = self.stage.objectives[self.state.global_step % len(self.stage.objectives)]
        loss, outputs = super().compute_loss(model, {**inputs, "objective": objective}, True, num_items_in_batch)
        with torch.no_grad():
            losses = [self.model.task_loss(logits, inputs["labels"]) for logits in outputs["exit_logits"].unbind(dim=1)]
            self._exit_losses.append(torch.stack(losses))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add the stage's name, and the mean loss of every exit since the last log."""
        if self.stage is not None:
            logs["stage"] = self.stage.name
            if "loss" in logs and self._exit_losses:
                means = self.accelerator.reduce(torch.stack(self._exit_losses).mean(dim=0), "mean").tolist()
                layers = self.model.config.exit_layers
                logs |= {f"exit_{layer}_loss": round(mean, 4) for layer, mean in zip(layers, means, strict=True)}
                self._exit_losses = []
        super().log(logs, *args, **kwargs)


def _trainable(model: nn.Module, stage: Stage) -> dict[str, bool]:
    """Which parameters a stage trains; a frozen name stands for the parameter or module of exactly that name."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.frozen:
        if not any(_belongs(name, prefix) for name in names):
            raise ValueError(f"stage '{stage.name}' freezes '{prefix}', which matches no parameter of {type(model).__name__}")
    return {name: not any(_belongs(name, prefix) for prefix in stage.frozen) for name in names}


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")  # 'exits.1' is not 'exits.10'


def _checked_overrides(args: EarlyExitTrainingArguments, stages: list[str]) -> dict[str, dict[str, Any]]:
    overrides = args.stage_overrides
    if not isinstance(overrides, dict):
        raise TypeError(f"stage_overrides: got {overrides!r}; pass a dict, e.g. {{'{stages[-1]}': {{'learning_rate': 1e-3}}}}")
    known = {each.name for each in dataclasses.fields(args)} - {"output_dir", "stage_overrides"}
    for stage, changes in overrides.items():
        if stage not in stages:
            raise ValueError(f"stage_overrides: got stage {stage!r}; this model has {', '.join(stages)}")
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else "; see EarlyExitTrainingArguments"
                raise ValueError(f"stage_overrides: stage '{stage}' sets '{name}', which stages do not have{hint}")
    return overrides


class _Ledger:
    """Which stages of a run are done, and where their checkpoints lie."""

    def __init__(self, root: Path, plan: tuple[Stage, ...], overrides: dict[str, dict[str, Any]]) -> None:
        self.root = root
        self.names = [stage.name for stage in plan]
        rows = [stage._asdict() | {"overrides": overrides.get(stage.name, {})} for stage in plan]
        self.plan = json.loads(json.dumps(rows))

    def folder(self, name: str) -> Path:
        return self.root / f"stage-{self.names.index(name) + 1}-{name}"

    def done(self) -> list[str]:
        path = self.root / LEDGER
        return json.loads(path.read_text())["done"] if path.exists() else []

    def write(self, done: list[str]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f"{LEDGER}.new"
        scratch.write_text(json.dumps({"plan": self.plan, "done": done}, indent=2))
        scratch.replace(self.root / LEDGER)  # atomic: an interrupted write leaves the old ledger

    def refuse_leftovers(self, chosen: list[str]) -> None:
        """Checkpoints of an earlier run in the same place could later be resumed by mistake."""
        for name in chosen:
            if self.folder(name).exists() and get_last_checkpoint(self.folder(name)):
                raise ValueError(
                    f"output_dir: '{self.folder(name)}' holds checkpoints of an earlier run; call "
                    "train(resume_from_checkpoint=True) to continue it, or pass another output_dir"
                )

    def resume(self, source: str | bool, chosen: list[str]) -> tuple[list[str], str | None]:
        """The stages that are done, and the checkpoint to continue from in the next one (None: from its start)."""
        path = self.root / LEDGER
        if not path.exists():
            raise ValueError(f"resume_from_checkpoint: '{self.root}' has no {LEDGER}, so no run to continue; call train()")
        ledger = json.loads(path.read_text())
        if ledger["plan"] != self.plan:
            raise ValueError(
                f"resume_from_checkpoint: '{path}' was made with another stage plan, {ledger['plan']}; now it is {self.plan}. "
                "Use the same model config and stage_overrides, or another output_dir"
            )
        if isinstance(source, str):
            names = [name for name in self.names if self.folder(name).resolve() == Path(source).resolve().parent]
            if not names or not Path(source).is_dir():
                raise ValueError(
                    f"resume_from_checkpoint: got '{source}'; pass True, or a checkpoint of this run, e.g. "
                    f"'{self.folder(self.names[0])}/checkpoint-500'"
                )
            return self.names[: self.names.index(names[0])], source
        running = next((name for name in chosen if name not in ledger["done"]), None)
        if running is None or not self.folder(running).exists():
            return ledger["done"], None
        return ledger["done"], get_last_checkpoint(self.folder(running))
