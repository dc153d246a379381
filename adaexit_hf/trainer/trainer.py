"""One Trainer for every method: runs the stages that the model prescribes, one after the other, in one call."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorWithPadding, EarlyStoppingCallback
from transformers.trainer_utils import HubStrategy, TrainOutput, has_length, set_seed
from transformers.utils import logging

from ..data.collators import DataCollatorWithTokenDepths
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, Stage
from .frozen_states import CollatorWithPlaces, FrozenStates, NoRoomError, RowsWithPlaces, frozen_states
from .hub_mixin import PushesFinishedModel
from .ledger import Ledger
from .model_card_mixin import WritesModelCard
from .training_args import CHECKPOINTING, EarlyExitTrainingArguments, checked_overrides

logger = logging.get_logger(__name__)


class EarlyExitTrainer(WritesModelCard, PushesFinishedModel):
    """Trains a model through its `stages`, each with its own trainable parameters, objectives, optimizer and schedule.

    Every stage starts from the same seed and writes to `output_dir/stage-<k>-<name>`; `output_dir/stages.json` says
    which are done. Objectives are cycled per optimizer step, so accumulation and more processes change nothing. Logs
    carry the stage's name and the loss of every exit (`exit_<layer>_loss`, the task loss whatever the objective). A
    stage whose objectives need no labels also trains and evaluates on rows without, or with -1 as GLUE's test sets.

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
                "label_smoothing_factor, compute_loss_func and model_init bypass the objectives of the model's stages;"
                " leave them out, or override exit_loss in a subclass of the model"
            )
        self.stage: Stage | None = None
        # Since the last log: sum of each exit's losses, and number of micro-batches that have labels, (exits + 1,).
        self._exit_losses: Tensor | None = None
        self._states: FrozenStates | None = None
        super().__init__(model, args, *rest, **kwargs)
        if type(self.data_collator) is DataCollatorWithPadding:  # it cannot pad a column `token_depths`
            self.data_collator = DataCollatorWithTokenDepths(self.data_collator.tokenizer)
        self._given: tuple[Any, Any] = (self.optimizer, self.lr_scheduler)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        stage: str | None = None,
    ) -> TrainOutput:
        """Run all stages, or one.

        Args:
            resume_from_checkpoint: True continues the run in `output_dir` where it was interrupted, in any stage; a
                path names one of its checkpoints, and the stages before it count as done.
            trial, ignore_keys_for_eval: as in Transformers.
            stage: name of the only stage to run; the model is taken as it is.

        Temperatures of a calibration before are dropped, with a warning.

        A callback that stops the training stops the whole run, to be resumed; only early stopping ends just its stage.

        Returns:
            steps of all stages together, loss of the last one, and the metrics of the last one; and per stage
            `<stage>_train_loss` and `<stage>_train_runtime`.

        Raises:
            ValueError: an unknown stage or override; a frozen name that matches nothing; nothing to resume, or a run
                with another stage plan; or, when starting anew, checkpoints of an earlier run that would be mixed up.
        """
        base, plan = self.args, self.model.stages
        names = [each.name for each in plan]
        overrides = checked_overrides(base, names)
        if stage is not None and stage not in names:
            raise ValueError(f"stage: got {stage!r}; {type(self.model).__name__} has {', '.join(names)}")
        if any(self._given) and stage is None and len(plan) > 1:
            raise ValueError(
                "optimizers: one optimizer cannot serve several stages; leave it out, or call train(stage=...)"
            )
        ledger = Ledger(Path(base.output_dir), plan, overrides)
        chosen = names if stage is None else [stage]
        _check_stages(self.model, plan, chosen)
        done, checkpoint = ledger.resume(resume_from_checkpoint, chosen) if resume_from_checkpoint else ([], None)
        if not resume_from_checkpoint:
            ledger.refuse_leftovers(chosen)
            done = [name for name in ledger.done() if name not in chosen]
        self.accelerator.wait_for_everyone()  # nobody may write before all have looked
        if resume_from_checkpoint and done and checkpoint is None and (stage is None or stage in done):
            self._load_from_checkpoint(ledger.final(stage or done[-1]))

        if not set(chosen) <= set(done):
            self._drop_temperatures()
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
                    if self._states is not None:  # else a stage would seem to cost less than it does
                        outputs[name].metrics["train_runtime"] += self._states.seconds
                    checkpoint = None
                    if self._stopped(name):
                        break
                    if self.args.save_strategy != "no":
                        self.save_model(str(ledger.folder(name) / "final"), _internal_call=True)
                done = [*done, name]
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    ledger.write(done)
        finally:
            self._configure(base)
        if not outputs:
            return TrainOutput(0, 0.0, {})
        if base.push_to_hub and base.hub_strategy == HubStrategy.EVERY_SAVE and set(names) <= set(done):
            self.push_to_hub()
        last = list(outputs.values())[-1]
        metrics = dict(last.metrics)
        for name, output in outputs.items():
            metrics |= {f"{name}_{key}": output.metrics[key] for key in ("train_loss", "train_runtime")}
        return TrainOutput(sum(output.global_step for output in outputs.values()), last.training_loss, metrics)

    @contextmanager
    def _entered(self, stage: Stage, base: Any, folder: Path, overrides: dict[str, Any]) -> Iterator[None]:
        """Set for this stage what Transformers keeps from one training run to the next, and afterwards set it back."""
        if "metric_for_best_model" in overrides:  # its direction was derived from the other stages' metric
            overrides = {"greater_is_better": None} | overrides
        # What is pushed is the finished model.
        self._configure(dataclasses.replace(base, **overrides, output_dir=str(folder), push_to_hub=False))
        self.stage, self._exit_losses = stage, None
        self.optimizer, self.lr_scheduler = self._given
        for callback in self._early_stopping():
            callback.early_stopping_patience_counter = 0
        trainable, checkpointing = _trainable(self.model, stage), getattr(self.model, f"is_{CHECKPOINTING}")
        before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trainable[name] and before[name])
        set_seed(self.args.seed)
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(before[name])
            if getattr(self.model, f"is_{CHECKPOINTING}") and not checkpointing:
                getattr(self.model, f"{CHECKPOINTING}_disable")()
            if self._states is not None:
                self._states.close()
            self.stage = self._states = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As in Transformers; where states of a frozen encoder are reused, batches also say which rows they have."""
        if self._states is None and self._reuses_states():
            # Here the weights of a checkpoint to resume from are loaded.
            self._states = self._frozen_states()
        if self._states is None:
            return super().get_train_dataloader()
        kept: Any = self.train_dataset, self.data_collator
        self.train_dataset = RowsWithPlaces(self.train_dataset)
        self.data_collator = CollatorWithPlaces(  # type: ignore[assignment]
            self._get_collator_with_removed_columns(self.data_collator)
        )
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = kept

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As in Transformers, which looks for lengths in the data set itself."""
        wrapped = isinstance(train_dataset, RowsWithPlaces)
        return super()._get_train_sampler(train_dataset.rows if wrapped else train_dataset)

    def _reuses_states(self) -> bool:
        """Is the encoder frozen, and can its states be reused? If not, say why."""
        if self.stage is None or not self.args.reuse_frozen_states:
            return False
        if any(parameter.requires_grad for parameter in self.model.encoder.parameters()):
            return False
        rows, why = self.train_dataset, None
        if isinstance(rows, IterableDataset) or not has_length(rows):
            why = "the training set is iterable, its rows have no numbers"
        elif not self.model.takes_exit_states:
            why = f"the exits of {type(self.model).__name__} read more than its states"
        elif self.args.neftune_noise_alpha is not None:
            why = "neftune_noise_alpha asks for another noise in every step"
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            why = "FSDP or DeepSpeed may spread it over processes"
        if why:
            logger.info(f"stage '{self.stage.name}': the frozen encoder runs in every step, since {why}")
        return not why

    def _frozen_states(self) -> FrozenStates | None:
        try:
            return frozen_states(
                self.model,
                self.train_dataset,
                self._get_collator_with_removed_columns(self.data_collator),
                self.accelerator,
                Path(self.args.output_dir) / "frozen_states",
                self.args.frozen_states_memory,
                progress=not self.args.disable_tqdm and self.is_local_process_zero(),
            )
        except NoRoomError as error:
            logger.warning(
                f"the states of the frozen encoder are not reused, it runs in every step: {error}. Pass an output_dir "
                "on a larger disk, or reuse_frozen_states=False, which needs none"
            )
            return None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in Transformers; with `exits_learning_rate`, what is outside of the encoder is in groups of its own.

        Raises:
            ValueError: the optimizer was given, or DeepSpeed makes it, and its rates are not this trainer's to set; or
                it holds other tensors than the model's parameters, as layer-wise GaLore's and FSDP's flattened ones.
        """
        rate = self.args.exits_learning_rate
        if rate is None:
            return super().create_optimizer(*args, **kwargs)
        if self._given[0] is not None or self.is_deepspeed_enabled:
            raise ValueError(
                f"exits_learning_rate: got {rate} with an optimizer that was given, or DeepSpeed's; set the rates of "
                "its parameter groups, and leave exits_learning_rate out"
            )
        if self.optimizer is not None:  # made when a larger batch was tried (auto_find_batch_size)
            return super().create_optimizer(*args, **kwargs)
        optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(parameter) for parameter in self.model.parameters()}
        if any(id(held) not in known for group in optimizer.param_groups for held in group["params"]):
            raise ValueError(
                f"exits_learning_rate: got {rate}, but {type(optimizer).__name__} holds tensors that are not the "
                "model's own parameters, so that encoder and exits cannot be told apart; leave exits_learning_rate "
                "out, or pass another optim, e.g. 'adamw_torch', and to FSDP use_orig_params"
            )
        encoder = {id(parameter) for parameter in self.model.encoder.parameters()}
        groups = []
        for group in optimizer.param_groups:
            inside = [parameter for parameter in group["params"] if id(parameter) in encoder]
            outside = [parameter for parameter in group["params"] if id(parameter) not in encoder]
            groups += [group | {"params": inside}, group | {"params": outside, "lr": rate}]
        optimizer.param_groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def _drop_temperatures(self) -> None:
        if self.model.config.exit_temperatures is not None:
            self.model.config.exit_temperatures = None
            logger.warning(
                "exit_temperatures: set to None, since training changes what they were fitted to; afterwards call "
                "calibrate_temperatures again, and choose exit_threshold anew, which may be stale, too"
            )

    def _configure(self, args: Any) -> None:
        """Take these arguments, and an accelerator made for them."""
        # The model's forward would keep the autocast of a stage in mixed precision, or never get that of the next one.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        # An old DDP wrapper would not synchronise parameters that were frozen when it was made.
        self.model_wrapped = self.model
        AcceleratorState._reset_state()  # else it insists on the mixed precision that it has
        self.args, self._train_batch_size = args, args.train_batch_size
        self.create_accelerator_and_postprocess()

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]

    def _stopped(self, stage: str) -> bool:
        """Did a callback stop the run? Early stopping only ends its stage."""
        patience = [
            each.early_stopping_patience - each.early_stopping_patience_counter for each in self._early_stopping()
        ]
        if self.state.global_step >= self.state.max_steps or min(patience, default=1) <= 0:
            return False
        logger.warning(
            f"a callback stopped stage '{stage}' at step {self.state.global_step} of {self.state.max_steps}; "
            "train(resume_from_checkpoint=True) continues it"
        )
        return True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of this optimizer step's objective.

        Evaluation inside a stage gives the loss of its last objective, which tells whether the stage still learns;
        outside of one, the task loss of the answer. What `compute_metrics` sees is the answer in either case.

        Raises:
            ValueError: the objective needs labels, and there are none.
        """
        if self.stage is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = self.state.global_step if model.training else -1
        objective = self.stage.objectives[step % len(self.stage.objectives)]
        unlabelled = objective in self.model.unlabelled_objectives
        if "labels" not in inputs and not unlabelled:
            free = [each.name for each in self.model.stages if self._needs_no_labels(each)]
            columns = ", ".join(name for name in inputs if name != "exit_states")
            raise ValueError(
                f"train_dataset: got rows with {columns}, but objective '{objective}' of stage "
                f"'{self.stage.name}' needs labels too; pass rows with a column 'label' or 'labels'"
                + (f", or call train(stage='{free[0]}'), which needs none" if free else "")
            )
        inputs = {**inputs, "objective": objective, "return_dict": True}
        if self._states is not None and model.training:
            inputs["exit_states"] = self._states.batch(inputs["exit_states"], inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and "labels" in inputs:
            self._add_exit_losses(outputs["exit_logits"], inputs["labels"], unlabelled)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """As in Transformers, which gives no loss without labels: here a stage that needs none has one."""
        if self.stage is None or "labels" in inputs or not self._needs_no_labels(self.stage):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss.mean(), None if prediction_loss_only else outputs["logits"], None

    def _needs_no_labels(self, stage: Stage) -> bool:
        return set(stage.objectives) <= set(self.model.unlabelled_objectives)

    @torch.no_grad()
    def _add_exit_losses(self, exit_logits: Tensor, labels: Tensor, unlabelled: bool) -> None:
        if self._exit_losses is None:
            # Also where this batch adds nothing: all processes must take part when the sums are gathered.
            self._exit_losses = exit_logits.new_zeros(exit_logits.shape[1] + 1, dtype=torch.float32)
        if unlabelled and self.model.config.num_labels > 1 and bool((labels < 0).any()):
            return
        labels = self.model.checked_labels(labels, len(exit_logits))
        losses = [self.model.task_loss(logits, labels) for logits in exit_logits.unbind(dim=1)]
        self._exit_losses += torch.stack([*losses, torch.ones_like(losses[0])])

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add the stage's name, and the mean loss of every exit since the last log."""
        if self.stage is not None:
            logs["stage"] = self.stage.name
            if "loss" in logs and self._exit_losses is not None:
                *sums, count = self.accelerator.reduce(self._exit_losses, "sum").tolist()
                if count:
                    layers = self.model.config.exit_layers
                    logs |= {f"exit_{layer}_loss": total / count for layer, total in zip(layers, sums, strict=True)}
                self._exit_losses = None
        super().log(logs, *args, **kwargs)


def _check_stages(model: nn.Module, plan: tuple[Stage, ...], chosen: list[str]) -> None:
    """Refuse frozen names that match nothing, and stages to run that would train nothing."""
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for stage in plan:
        trainable = _trainable(model, stage)
        if stage.name in chosen and not any(trainable[name] for name in wanted):
            raise ValueError(
                f"model: every parameter that stage '{stage.name}' trains is frozen; set requires_grad, or with PEFT "
                "name the exits to train besides the adapter, e.g. LoraConfig(modules_to_save=['exits.0'])"
            )


def _trainable(model: nn.Module, stage: Stage) -> dict[str, bool]:
    """Which parameters a stage trains; a frozen name stands for the parameter or module of exactly that name."""
    # What PEFT wraps has other names: 'base_model.model.encoder...'.
    names = {name: name.removeprefix("base_model.").removeprefix("model.") for name, _ in model.named_parameters()}
    for prefix in stage.frozen:
        if not any(_belongs(name, prefix) for name in names.values()):
            raise ValueError(
                f"stage '{stage.name}' freezes '{prefix}', which matches no parameter of {type(model).__name__}"
            )
    return {name: not any(_belongs(own_name, prefix) for prefix in stage.frozen) for name, own_name in names.items()}


def _belongs(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")  # 'exits.1' is not 'exits.10'
