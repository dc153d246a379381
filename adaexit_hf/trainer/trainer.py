"""The Trainer for all methods: one call of `train` runs all training stages of the model, one after the other."""

import copy
import dataclasses
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    default_data_collator,
)
from transformers.trainer_utils import (
    HPSearchBackend,
    HubStrategy,
    PredictionOutput,
    TrainOutput,
    default_compute_objective,
    enable_full_determinism,
    set_seed,
)
from transformers.utils import logging

from ..data.collators import DataCollatorWithTokenDepths
from ..evaluation.metrics import compute_score, task_metrics
from ..evaluation.trace import predictions, scored_predictions
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, Stage
from ..models.padded_batches import eval_mode, model_inputs
from ..utils.files import check_writable
from ..utils.progress_bars import write_seldom_to_files
from ..utils.spelling import did_you_mean
from .checked_data import can_be_read_twice, check_dataset, check_kind, check_kinds, collated, rows_for_prepare
from .frozen_states import CollatorWithPlaces, FrozenStates, NoRoomError, RowsWithPlaces, frozen_states
from .hub_mixin import PushesFinishedModel
from .ledger import Ledger
from .model_card_mixin import TIMINGS, WritesModelCard
from .training_args import CHECKPOINTING, EarlyExitTrainingArguments, checked_overrides

logger = logging.get_logger(__name__)


class EarlyExitTrainer(WritesModelCard, PushesFinishedModel):
    """Transformers' Trainer for early-exit models: trains in the stages of the method's paper.

    The model's `stages` say which parameters each stage trains and with which objectives; every stage has its own
    optimizer and learning-rate schedule, and starts from the same seed. It writes to `output_dir/stage-<k>-<name>`;
    `output_dir/stages.json` lists the stages that are done. If a stage has several objectives, they alternate by
    optimizer step, so that gradient accumulation and several processes do not change the result. Logs contain the name
    of the stage and the loss of every exit (`exit_<layer>_loss`, always the task loss). A stage whose objectives need
    no labels can be trained and evaluated on rows without labels, or with label -1 as in GLUE's test sets.

    Before the first step of a run the data sets are checked, row by row, and a model that is not `prepared` is
    prepared with the training set.

    Args:
        model: an early-exit model. Leave it out if you pass `model_init`.
        args: the training arguments, those of single stages included.
        *trainer_args: further positional arguments of Transformers' `Trainer`.
        **trainer_kwargs: keyword arguments of Transformers' `Trainer`: `train_dataset`, `eval_dataset`,
            `processing_class`, `data_collator`, `compute_metrics`, `callbacks`, ... `compute_metrics` is by default
            the accuracy; for regression Spearman's and Pearson's correlation, and for several labels at once micro
            and macro F1, too. With `model_init` every call of
            `train` starts from a new model, and `hyperparameter_search` can be called.

    Raises:
        TypeError: if `args` is not `EarlyExitTrainingArguments`, or the model has no stages.
        ValueError: if a data set is a data frame, a dict of columns or splits, a data loader or a generator; or if
            `label_smoothing_factor` or `compute_loss_func` is set: they would replace the objectives.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, PrinterCallback
        >>> from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification, EarlyExitTrainingArguments
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder, num_labels=2))
        >>> rows = [{"input_ids": [1, 5, 2], "label": 0}, {"input_ids": [1, 6, 2], "label": 1}]
        >>> quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "use_cpu": True}
        >>> with TemporaryDirectory() as folder:
        ...     args = EarlyExitTrainingArguments(folder, max_steps=1, **quiet)
        ...     trainer = EarlyExitTrainer(model, args, train_dataset=rows)
        ...     trainer.remove_callback(PrinterCallback)  # prints the logs
        ...     output = trainer.train()
        >>> output.global_step, [name for name in output.metrics if name.endswith("_train_loss")]
        (2, ['backbone_train_loss', 'exits_train_loss'])
    """

    loss_is_scaled_for_ga = False  # the model's loss is the mean over the micro-batch

    def __init__(
        self,
        model: EarlyExitForSequenceClassification | None = None,
        args: EarlyExitTrainingArguments | None = None,
        *trainer_args: Any,
        **trainer_kwargs: Any,
    ) -> None:
        if not isinstance(args, EarlyExitTrainingArguments):
            raise TypeError(f"args: got {type(args).__name__}; pass EarlyExitTrainingArguments(output_dir=...)")
        if model is not None:  # else Transformers calls `model_init`
            _check_has_stages("model", model)
        if args.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor: got {args.label_smoothing_factor}, {_OWN_LOSS}")
        if args.should_save:
            check_writable("output_dir", args.output_dir)
        given = inspect.signature(Trainer.__init__).bind(self, model, args, *trainer_args, **trainer_kwargs).arguments
        check_kinds(given.get("train_dataset"), given.get("eval_dataset"))
        write_seldom_to_files()
        self.stage: Stage | None = None
        # Sums since the last log: the loss of each exit, and the number of micro-batches with labels, (exits + 1,).
        self._exit_losses: Tensor | None = None
        self._states: FrozenStates | None = None
        # Whether `compute_loss` has computed the stage's objective since the last optimizer step.
        self._objective_computed = False
        # Data sets that were checked, whether with their labels, and a checksum of their token ids and labels.
        self._checked_data: list[tuple[Any, bool, int]] = []
        self._last_model: Callable[[], Any] = lambda: None  # what `model_init` returned last, if it still exists
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(f"compute_loss_func: got {self.compute_loss_func!r}, {_OWN_LOSS}")
        self._set_signature_columns_if_needed()
        if type(self.data_collator) is DataCollatorWithPadding and "token_depths" in self._signature_columns:
            # Transformers' own cannot pad this column.
            self.data_collator = DataCollatorWithTokenDepths(**vars(self.data_collator))
        self.add_callback(_ObjectiveCheck(self))
        # `batch_eval_metrics` calls the function for every batch, with another argument.
        self._default_metrics = self.compute_metrics is None and not self.args.batch_eval_metrics
        if self._default_metrics:
            self.compute_metrics = self._task_metrics
        # The optimizer and scheduler that were passed; None for those that every stage creates.
        self._passed_optimizers: tuple[Any, Any] = (self.optimizer, self.lr_scheduler)

    def call_model_init(self, trial: Any = None) -> Any:
        """As in Transformers, but the model must be new.

        Args:
            trial: as in Transformers.

        Returns:
            The model.

        Raises:
            TypeError: if it has no stages.
            ValueError: if it is the model of the run before.
        """
        model = super().call_model_init(trial)
        _check_has_stages("model_init", model)
        if model is self._last_model():
            raise ValueError(
                "model_init: returned the same model again, which would go on from where the last run left it; build "
                "the model inside the function, e.g. lambda: "
                f"{type(model).__name__}.from_encoder_pretrained(...)"
            )
        self._last_model = weakref.ref(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        stage: str | None = None,
    ) -> TrainOutput:
        """Run all stages of the model, or a single one.

        If a callback stops the training, the run ends and can be resumed; early stopping only ends its stage, and the
        next one follows. Temperatures of an earlier calibration are removed from the config, with a warning.

        Args:
            resume_from_checkpoint: True continues an interrupted run in `output_dir`, whichever stage it was in.
                "auto" does so if there is something to continue, and else starts: what a job needs that may be
                preempted. A path continues from one of the run's checkpoints; the stages before it count as done, and
                what was trained after it must have been removed. Default: start anew.
            trial: as in Transformers.
            ignore_keys_for_eval: as in Transformers.
            stage: name of the only stage to run, with the model as it is now. Default: all stages.

        Returns:
            The number of steps of all stages together, and the loss and the metrics of the last stage; the metrics
            also have `<stage>_train_loss` and `<stage>_train_runtime` of every stage that was run.

        Raises:
            TypeError: if `stage_overrides` is not a dict.
            ValueError: if the stage or an override is unknown; if a stage trains no parameter, or freezes one that the
                model does not have; if an optimizer was passed and several stages are to run; if there is no run to
                resume, or one with another stage plan, other texts or labels, or models that were trained after the
                checkpoint; or, without resuming, if `output_dir` has models of an earlier run.
        """
        given, model_init = self.args, self.model_init
        try:
            if model_init is not None:
                self._start_from_new_model(trial)
            self.model_init = None  # Transformers would call it in every stage
            return self._train_stages(resume_from_checkpoint, ignore_keys_for_eval, stage, model_init is not None)
        finally:
            self.model_init = model_init
            if self.args is not given:
                self._configure(given)

    def _start_from_new_model(self, trial: Any) -> None:
        """Call `model_init`; in a hyperparameter search, also use the settings and the folder of the trial."""
        self.args = copy.copy(self.args)  # the next trial starts from the arguments that were passed
        (enable_full_determinism if self.args.full_determinism else set_seed)(self.args.seed)
        self.model = self.model_wrapped = self.call_model_init(trial)
        if self.place_model_on_device:
            self._move_model_to_device(self.model, self.args.device)
        self._hp_search_setup(trial)
        self.args.output_dir = self._get_output_dir(trial)

    def _train_stages(
        self, resume: Any, ignore_keys_for_eval: list[str] | None, stage: str | None, new_model: bool
    ) -> TrainOutput:
        base, plan = self.args, self.model.stages
        names = [planned.name for planned in plan]
        overrides = checked_overrides(base, names)
        if stage is not None and stage not in names:
            raise ValueError(f"stage: got {stage!r}; {type(self.model).__name__} has {', '.join(names)}")
        if any(self._passed_optimizers) and stage is None and len(plan) > 1:
            raise ValueError(
                "optimizers: one optimizer cannot serve several stages; leave it out, or call train(stage=...)"
            )
        settings = {"method": self.model.config.model_type} | {name: getattr(base, name) for name in _COMPARED}
        ledger = Ledger(Path(base.output_dir), plan, overrides, settings)
        chosen = names if stage is None else [stage]
        _check_stages(self.model, plan, chosen)
        if resume == "auto":
            resume = ledger.can_continue(chosen)
        if resume:
            done, checkpoint = ledger.resume(resume, chosen)
        else:
            done, checkpoint = ledger.start(chosen), None
            if new_model and done:
                raise ValueError(
                    f"stage: got '{stage}', but with model_init every call of train starts from a new model, so that "
                    f"what stage '{done[-1]}' trained in '{base.output_dir}' would be lost; call train() for all "
                    "stages, or pass model= in place of model_init="
                )
        ledger.run |= self._check_data([planned for planned in plan if planned.name in chosen])
        if resume:
            ledger.check_same_run(resume)
        self.accelerator.wait_for_everyone()  # no process may write before all have read
        if resume and done and checkpoint is None and (stage is None or stage in done):
            self._load_from_checkpoint(ledger.final_model(stage or done[-1]))
        elif not (resume and (done or checkpoint)):  # else the model was prepared when the run began
            self._prepare_model()

        if not set(chosen) <= set(done):
            self._drop_temperatures()
        outputs: dict[str, TrainOutput] = {}
        for name in chosen:
            if name in done:
                continue
            current = plan[names.index(name)]
            with self._stage_setup(current, base, ledger.folder(name), overrides.get(name, {})):
                if self.is_world_process_zero():
                    ledger.write(done)
                # Without the trial: values of different objectives cannot be compared. After the last stage the search
                # itself evaluates the model.
                outputs[name] = super().train(checkpoint, None, ignore_keys_for_eval)
                if self._states is not None:  # computing them belongs to the time of the stage
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
        if not outputs:
            return TrainOutput(0, 0.0, {})
        if set(names) <= set(done):
            self._configure(base)
            self._warn_if_constant()
        if base.push_to_hub and base.hub_strategy == HubStrategy.EVERY_SAVE and set(names) <= set(done):
            self.push_to_hub()
        last = list(outputs.values())[-1]
        metrics = dict(last.metrics)
        for name, output in outputs.items():
            metrics |= {f"{name}_{key}": output.metrics[key] for key in ("train_loss", "train_runtime")}
        return TrainOutput(sum(output.global_step for output in outputs.values()), last.training_loss, metrics)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Search for training arguments as in Transformers; every trial trains a new model in all stages.

        A trial is evaluated once, after its last stage, so it cannot be pruned earlier. Its files are in
        `output_dir/run-<number>`. Its parameters hold for all stages, except where `stage_overrides` says otherwise;
        `exits_learning_rate` and `stage_overrides` themselves can be parameters, too.

        Args:
            hp_space: as in Transformers: returns the training arguments of a trial.
            compute_objective: as in Transformers: returns the value of a trial from its evaluation. Default: the sum
                of the metrics that `compute_metrics` returns, or without any the loss.
            *args: as in Transformers.
            **kwargs: as in Transformers: `n_trials`, `direction`, `backend`, ...

        Returns:
            The best run, as in Transformers.

        Raises:
            ValueError: if the trainer has no `model_init` or no `eval_dataset`, or `hp_space` returns something else
                than training arguments.
        """
        if self.model_init is None:
            raise ValueError(
                "model_init: missing; every trial needs a new model, pass EarlyExitTrainer(model_init=lambda: "
                "DeeBertForSequenceClassification.from_encoder_pretrained(...), args=...) without a model"
            )
        if self.eval_dataset is None:
            raise ValueError("eval_dataset: missing; trials are compared by their evaluation, pass eval_dataset=rows")
        by_default = _loss if self._default_metrics else _metrics_or_loss
        return super().hyperparameter_search(hp_space, compute_objective or by_default, *args, **kwargs)

    def _hp_search_setup(self, trial: Any) -> None:
        """As in Transformers; once for all stages, whose own arguments then win over those of the trial."""
        if self.stage is not None:
            return
        if self.hp_search_backend == HPSearchBackend.OPTUNA and trial is not None:
            allowed = [argument.name for argument in dataclasses.fields(self.args)]
            for name in self.hp_space(trial):
                if name not in allowed:  # Transformers only warns
                    raise ValueError(
                        f"hp_space: got '{name}', which is no training argument; see EarlyExitTrainingArguments"
                        f"{did_you_mean(name, allowed)}"
                    )
        super()._hp_search_setup(trial)

    def _check_data(self, stages: list[Stage]) -> dict[str, int | None]:
        """Check all rows of every data set that can be read twice, once.

        Returns:
            The number of rows of the training set, and a checksum of its token ids and labels; None if it is a stream.
        """
        if self.train_dataset is None:
            raise ValueError("train_dataset: missing; pass EarlyExitTrainer(..., train_dataset=rows)")
        named = check_kinds(self.train_dataset, self.eval_dataset)
        with_labels = not all(self._needs_no_labels(stage) for stage in stages)
        collate = self._get_collator_with_removed_columns(self.data_collator)
        set_seed(0)  # so that texts that are changed at random have the same checksum in every run
        known: dict[str, int | None] = {"rows": None, "data": None}
        for name, rows in named.items():
            checked = any(rows is other and with_labels <= labels for other, labels, _ in self._checked_data)
            if can_be_read_twice(rows) and not checked:
                training = name == "train_dataset"
                size = self.args.train_batch_size if training else self.args.eval_batch_size
                checksum = check_dataset(self.model, rows, collate, size, name, with_labels)
                self._checked_data.append((rows, with_labels, checksum))
        for rows, _, checksum in self._checked_data:
            if rows is self.train_dataset:
                known = {"rows": len(rows), "data": checksum}
        return known

    def _prepare_model(self) -> None:
        """Prepare the model with the training set, unless the user has done so."""
        if self.model.prepared:
            return
        rows = None
        if can_be_read_twice(self.train_dataset):
            collate = self._get_collator_with_removed_columns(self.data_collator)
            rows = rows_for_prepare(self.train_dataset, collate, self.args.train_batch_size)
        if rows is not None:
            self.model.prepare(rows)
        elif self.model.config.num_labels == 1:
            logger.warning(
                "train_dataset: has no length or no input_ids, so that the exits of this regression start from 0, not "
                "from the mean label; call model.prepare(rows) before training, with labelled rows of it"
            )
        else:
            raise ValueError(
                f"train_dataset: has no length or no input_ids, and {type(self.model).__name__} needs what is "
                "estimated from all rows; call model.prepare(rows) before training, with labelled rows of it"
            )

    @contextmanager
    def _stage_setup(self, stage: Stage, base: Any, folder: Path, overrides: dict[str, Any]) -> Iterator[None]:
        """Give a stage its arguments, optimizer, trainable parameters and seed; afterwards restore the parameters."""
        if "metric_for_best_model" in overrides:  # greater_is_better was derived from the metric of the run
            overrides = {"greater_is_better": None} | overrides
        # Only the finished model is pushed.
        self._configure(dataclasses.replace(base, **overrides, output_dir=str(folder), push_to_hub=False))
        self.stage, self._exit_losses = stage, None
        self._objective_computed = False
        self.optimizer, self.lr_scheduler = self._passed_optimizers
        for callback in self._early_stopping():
            callback.early_stopping_patience_counter = 0
        trainable, had_checkpointing = _trainable(self.model, stage), getattr(self.model, f"is_{CHECKPOINTING}")
        before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trainable[name] and before[name])
        set_seed(self.args.seed)
        try:
            yield
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(before[name])
            if getattr(self.model, f"is_{CHECKPOINTING}") and not had_checkpointing:
                getattr(self.model, f"{CHECKPOINTING}_disable")()
            if self._states is not None:
                self._states.close()
            self.stage = self._states = None

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Transformers.

        Args:
            eval_dataset: as in Transformers: a data set, a dict of them, or the name of one in the trainer's dict.
            *args: as in Transformers.
            **kwargs: as in Transformers.

        Returns:
            The metrics.

        Raises:
            ValueError: if it is no data set of rows, but e.g. a data frame.
        """
        if not isinstance(eval_dataset, str):
            check_kinds(None, eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _task_metrics(self, result: Any) -> dict[str, float]:
        """The metrics of `task_metrics`, without those that are not defined for these labels, which are logged."""
        references = torch.as_tensor(result.label_ids)
        logits = torch.as_tensor(result.predictions)
        if references.dim() == 1 and logits.shape[-1] > 1:  # rows with label -1 have none
            logits, references = logits[references >= 0], references[references >= 0]
        if not len(references):
            return {}
        predicted, scores = scored_predictions(logits, references), dict[str, float]()
        for name in task_metrics(logits.shape[-1], self.model.config.multi_label):
            try:
                scores[name] = compute_score(name, predictions=predicted, references=references)
            except ValueError as error:
                logger.warning(f"evaluate: no {name}: {error}")
        return scores

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As in Transformers.

        Args:
            test_dataset: a data set of rows.
            *args: as in Transformers.
            **kwargs: as in Transformers.

        Returns:
            The predictions, the labels and the metrics.

        Raises:
            ValueError: if it is no data set of rows, but e.g. a data frame.
        """
        check_kind(test_dataset, "test_dataset")
        return super().predict(test_dataset, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As in Transformers; if a frozen encoder's states are reused, batches also have the indices of their rows."""
        if self._states is None and self._reuses_states():
            # Transformers calls this method after it has loaded the weights of a checkpoint to resume from.
            self._states = self._frozen_states()
        if self._states is None:
            return super().get_train_dataloader()
        originals: Any = self.train_dataset, self.data_collator
        self.train_dataset = RowsWithPlaces(self.train_dataset)
        self.data_collator = CollatorWithPlaces(  # type: ignore[assignment]
            self._get_collator_with_removed_columns(self.data_collator)
        )
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = originals

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As in Transformers, with the data set that was passed: its sampler reads the lengths of the rows."""
        wrapped = isinstance(train_dataset, RowsWithPlaces)
        return super()._get_train_sampler(train_dataset.rows if wrapped else train_dataset)

    def _reuses_states(self) -> bool:
        """Whether this stage reuses the states of a frozen encoder; if it cannot, the reason is logged."""
        if self.stage is None or not self.args.reuse_frozen_states:
            return False
        if any(parameter.requires_grad for parameter in self.model.encoder.parameters()):
            return False
        reason = None
        if not can_be_read_twice(self.train_dataset):
            reason = "the training set is iterable, so that its rows have no index"
        elif not self.model.takes_exit_states:
            reason = f"the exits of {type(self.model).__name__} read more than its states"
        elif self.args.neftune_noise_alpha is not None:
            reason = "neftune_noise_alpha adds different noise in every step"
        elif self.data_collator is default_data_collator and self.args.train_batch_size == 1:
            reason = "the collator does not pad, so that rows of different lengths cannot share a batch"
        elif self.is_fsdp_enabled or self.is_deepspeed_enabled:
            reason = "FSDP or DeepSpeed may divide it among processes"
        if reason:
            logger.info(f"stage '{self.stage.name}': the frozen encoder runs in every step, since {reason}")
        return not reason

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
                "on a larger disk, or reuse_frozen_states=False, which needs no space"
            )
            return None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in Transformers; with `exits_learning_rate`, parameters outside the encoder get their own groups.

        Args:
            *args: as in Transformers.
            **kwargs: as in Transformers.

        Returns:
            The optimizer.

        Raises:
            ValueError: if `exits_learning_rate` is set and the optimizer was passed to the trainer or is made by
                DeepSpeed, so that its learning rates cannot be set here; or if it holds other tensors than the model's
                parameters, as with layer-wise GaLore or FSDP's flattened parameters.
        """
        rate = self.args.exits_learning_rate
        if rate is None:
            return super().create_optimizer(*args, **kwargs)
        if self._passed_optimizers[0] is not None or self.is_deepspeed_enabled:
            raise ValueError(
                f"exits_learning_rate: got {rate} with an optimizer that was passed, or DeepSpeed's; set the learning "
                "rates of its parameter groups, and leave exits_learning_rate out"
            )
        if self.optimizer is not None:  # created before auto_find_batch_size reduced the batch size
            return super().create_optimizer(*args, **kwargs)
        optimizer = super().create_optimizer(*args, **kwargs)
        parameters = {id(parameter) for parameter in self.model.parameters()}
        if any(id(tensor) not in parameters for group in optimizer.param_groups for tensor in group["params"]):
            raise ValueError(
                f"exits_learning_rate: got {rate}, but {type(optimizer).__name__} holds tensors that are not the "
                "model's own parameters, so that encoder and exits cannot be distinguished; leave exits_learning_rate "
                "out, or pass another optim, e.g. 'adamw_torch', and with FSDP set use_orig_params"
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
        """Set temperatures to None, with a warning, and with them a threshold for scores that depend on them."""
        config = self.model.config
        if config.exit_temperatures is None:
            config.own_thresholds()  # otherwise an invalid one would raise an error when the first checkpoint is saved
            return
        unit = config._unit()
        config.exit_temperatures = None
        if config.exit_threshold is not None and config._unit() != unit:
            which = f"exit_temperatures and exit_threshold, which was {config.exit_threshold} for tempered logits"
            config.exit_threshold = None
        else:
            which = "exit_temperatures"
        logger.warning(
            f"{which}: set to None, since training changes the logits they were fitted to; afterwards call "
            "calibrate_temperatures again, and choose exit_threshold anew"
        )

    @torch.no_grad()
    def _warn_if_constant(self) -> None:
        """Warn if all exits give one class to the first rows of the evaluation set, though their labels differ."""
        rows = (
            next(iter(self.eval_dataset.values()), None) if isinstance(self.eval_dataset, dict) else self.eval_dataset
        )
        if self.model.config.num_labels == 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        if not can_be_read_twice(rows) or not self.is_world_process_zero():
            return
        collate = self._get_collator_with_removed_columns(self.data_collator)
        multi_label = self.model.config.multi_label
        answers, labels = set[tuple[int, ...]](), set[tuple[int, ...]]()
        with eval_mode(self.model), self.accelerator.autocast():
            for _, batch in collated(rows, collate, self.args.eval_batch_size, "eval_dataset", most_rows=256):
                inputs = {name: value for name, value in model_inputs(self.model, batch).items() if value is not None}
                logits = self.model(**inputs, early_exit=False).exit_logits  # (batch, exits, labels)
                answers |= _different(predictions(logits, multi_label).flatten(0, 1))
                labels |= _different(batch["labels"]) if "labels" in batch else set()
        if len(answers) == 1 and len(labels) > 1:
            names, (answer,) = self.model.config.id2label, answers
            chosen = [label for label, given in enumerate(answer) if given] if multi_label else answer
            name = ", ".join(names[label] for label in chosen) or "no label"
            logger.warning(
                f"all exits answer '{name}' to each of the first evaluation texts, whose labels differ: the model has "
                "not learned to tell them apart. Try a lower learning_rate with warmup_steps=0.1, more epochs, "
                "exits_learning_rate=1e-3, and for rare classes class_weights in the model's config"
            )

    def _configure(self, args: Any) -> None:
        """Use these arguments, with a new accelerator for them."""
        # Otherwise the model's forward would keep the autocast of the last stage, also if the next one has none.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        # An old DDP wrapper would not synchronize parameters that were frozen when it was created.
        self.model_wrapped = self.model
        AcceleratorState._reset_state()  # otherwise it keeps its mixed precision
        self.args, self._train_batch_size = args, args.train_batch_size
        self.create_accelerator_and_postprocess()

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [
            callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)
        ]

    def _stopped(self, stage: str) -> bool:
        """Whether a callback other than early stopping, which only ends its stage, stopped the run."""
        stopped_early = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self._early_stopping()
        )
        if self.state.global_step >= self.state.max_steps or stopped_early:
            return False
        logger.warning(
            f"a callback stopped stage '{stage}' at step {self.state.global_step} of {self.state.max_steps}; "
            "train(resume_from_checkpoint=True) continues it"
        )
        return True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of this optimizer step's objective.

        Evaluation inside a stage computes the stage's last objective, which shows whether the stage still improves;
        evaluation outside of a stage computes the task loss of the model's prediction. `compute_metrics` gets the
        model's predictions in both cases.

        Args:
            model: the model, possibly wrapped.
            inputs: the batch.
            return_outputs: as in Transformers.
            num_items_in_batch: as in Transformers.

        Returns:
            The loss, or with `return_outputs` the loss and the model's outputs.

        Raises:
            ValueError: if the objective needs labels and the batch has none.
        """
        if self.stage is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._objective_computed = self._objective_computed or model.training
        step = self.state.global_step if model.training else -1
        objective = self.stage.objectives[step % len(self.stage.objectives)]
        unlabelled = objective in self.model.unlabelled_objectives
        if "labels" not in inputs and not unlabelled:
            unlabelled_stages = [stage.name for stage in self.model.stages if self._needs_no_labels(stage)]
            columns = ", ".join(name for name in inputs if name != "exit_states")
            raise ValueError(
                f"train_dataset: got rows with {columns}, but objective '{objective}' of stage "
                f"'{self.stage.name}' needs labels too; pass rows with a column 'label' or 'labels'"
                + (f", or call train(stage='{unlabelled_stages[0]}'), which needs none" if unlabelled_stages else "")
            )
        inputs = {**inputs, "objective": objective, "return_dict": True}
        if self._states is not None and model.training:
            inputs["exit_states"] = self._states.batch(inputs["exit_states"], inputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and "labels" in inputs:
            self._add_exit_losses(outputs["exit_logits"], inputs["labels"], unlabelled)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in Transformers; an error of a `compute_loss` that bypasses the stage's objective names what to do.

        Args:
            *args: as in Transformers.
            **kwargs: as in Transformers.

        Returns:
            The loss.

        Raises:
            ValueError: if `compute_loss` is overridden and did not call `super().compute_loss`.
        """
        try:
            return super().training_step(*args, **kwargs)
        except Exception as error:
            overridden = getattr(self.compute_loss, "__func__", None) is not EarlyExitTrainer.compute_loss
            if overridden and self.stage is not None and not self._objective_computed:
                raise ValueError(f"{self._bypassed()}. It failed with {type(error).__name__}: {error}") from error
            raise

    def _bypassed(self) -> str:
        return (
            f"compute_loss: {type(self).__name__} did not call EarlyExitTrainer.compute_loss, but computes a loss of "
            f"its own in stage '{cast(Stage, self.stage).name}', {_OWN_LOSS}. An override has to return what "
            "super().compute_loss(...) returned, possibly with something added to the loss"
        )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """As in Transformers, but also with a loss for rows without labels in a stage that needs none."""
        if self.stage is None or "labels" in inputs or not self._needs_no_labels(self.stage):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss.mean(), None if prediction_loss_only else outputs["logits"], None

    def _needs_no_labels(self, stage: Stage) -> bool:
        return set(stage.objectives) <= set(self.model.unlabelled_objectives)

    @torch.no_grad()
    def _add_exit_losses(self, exit_logits: Tensor, labels: Tensor, unlabelled: bool) -> None:
        """Add the task loss of every exit to the sums for the next log.

        Args:
            exit_logits: `(batch, exits, labels)`.
            labels: `(batch,)`, or with several labels at once `(batch, labels)`.
            unlabelled: whether the objective needs no labels; then a batch with negative labels is left out.
        """
        if self._exit_losses is None:
            # Also if this batch adds nothing: all processes must take part when the sums are gathered.
            self._exit_losses = exit_logits.new_zeros(exit_logits.shape[1] + 1, dtype=torch.float32)
        if unlabelled and self.model.config.num_labels > 1 and bool((labels < 0).any()):
            return
        labels = self.model.checked_labels(labels, len(exit_logits))
        losses = [self.model.task_loss(logits, labels) for logits in exit_logits.unbind(dim=1)]
        self._exit_losses += torch.stack([*losses, torch.ones_like(losses[0])])

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in Transformers, with the stage's name and the mean loss of every exit since the last log."""
        if self.stage is not None:
            logs["stage"] = self.stage.name
            if "loss" in logs and self._exit_losses is not None:
                *sums, count = self.accelerator.reduce(self._exit_losses, "sum").tolist()
                if count:
                    layers = self.model.config.exit_layers
                    logs |= {f"exit_{layer}_loss": total / count for layer, total in zip(layers, sums, strict=True)}
                self._exit_losses = None
        super().log(logs, *args, **kwargs)


def _different(values: Tensor) -> set[tuple[int, ...]]:
    """The different classes or label sets, (rows,) or (rows, labels), each as a tuple."""
    return {tuple(row) for row in values.reshape(len(values), -1).tolist()}


# Training arguments that a resumed run should not change without notice.
_COMPARED = (
    "seed",
    "data_seed",
    "learning_rate",
    "exits_learning_rate",
    "num_train_epochs",
    "max_steps",
    "weight_decay",
)


class _ObjectiveCheck(TrainerCallback):
    """Refuses an optimizer step for which the stage's objective was not computed, however it was bypassed."""

    def __init__(self, trainer: EarlyExitTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer._objective_computed:
            raise ValueError(self.trainer._bypassed())
        self.trainer._objective_computed = False


# What a loss of the user's would do, and how to get the usual ones.
_OWN_LOSS = (
    "which replaces the objectives of the model's stages; leave it out, and for weights of classes or smoothed labels "
    "set class_weights or label_smoothing in the model's config; for another loss override exit_loss in a subclass of "
    "the model"
)


def _loss(metrics: dict[str, float]) -> float:
    """The value of a trial without `compute_metrics`, as in Transformers."""
    return metrics["eval_loss"]


def _metrics_or_loss(metrics: dict[str, float]) -> float:
    """Transformers' default value of a trial, which would add up times, too."""
    return default_compute_objective({name: value for name, value in metrics.items() if not name.endswith(TIMINGS)})


def _check_has_stages(argument: str, model: Any) -> None:
    if not isinstance(getattr(model, "stages", None), tuple):
        raise TypeError(
            f"{argument}: {type(model).__name__} has no stages; pass an early-exit model, e.g. "
            "DeeBertForSequenceClassification.from_encoder_pretrained(...)"
        )


def _check_stages(model: nn.Module, plan: tuple[Stage, ...], chosen: list[str]) -> None:
    """Check that frozen names match parameters, that stages train anything, and that PEFT saves it."""
    if getattr(model, "peft_config", None):
        _check_adapter(model, plan, chosen)
    not_frozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for stage in plan:
        trainable = _trainable(model, stage)
        if stage.name in chosen and not any(trainable[name] for name in not_frozen):
            raise ValueError(
                f"model: every parameter that stage '{stage.name}' trains is frozen; set requires_grad of the "
                "parameters to train"
            )


def _check_adapter(model: Any, plan: tuple[Stage, ...], chosen: list[str]) -> None:
    """Check that an adapter of PEFT trains and saves all that the stages need outside of the encoder.

    That is what a chosen stage trains, and what no stage trains: it is computed from the training set.

    Raises:
        ValueError: if PEFT would leave a part at its random weights and not save it, or could not load it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = {stage.name: _trainable(base, stage) for stage in plan}
    needed: list[str] = []
    wrong = False
    for name, _ in base.named_parameters():
        stages = [stage for stage, trains in trained.items() if trains[name]]
        if name.startswith("encoder.") or stages and not set(stages) & set(chosen):
            continue
        top, *rest = name.split(".")
        module = f"{top}.{rest[0]}" if isinstance(getattr(base, top), nn.ModuleList) else top
        needed += [module] if module not in needed else []
        # PEFT keeps the module as `original_module`, and trains and saves the copies in `modules_to_save`. Copies
        # inside of copies cannot be loaded.
        wrong |= name.count("modules_to_save.") + name.count("original_module.") != 1
    if wrong:
        config = next(iter(model.peft_config.values()))
        targets = sorted(config.target_modules) if isinstance(config.target_modules, set) else config.target_modules
        made = f"{type(config).__name__}(modules_to_save={config.modules_to_save}, task_type={config.task_type})"
        call = f"{type(config).__name__}(target_modules={targets}, modules_to_save={needed})"
        raise ValueError(
            f"model: {', '.join(needed)} have to be trained and saved with the adapter, which {made} does not do; "
            f"call get_peft_model(model, {call}), without task_type"
        )


def _trainable(model: nn.Module, stage: Stage) -> dict[str, bool]:
    """Name of every parameter -> whether the stage trains it; a frozen name is that of a parameter or a module."""
    # PEFT adds prefixes to the names: 'base_model.model.encoder...'.
    bare_names = {
        name: name.removeprefix("base_model.").removeprefix("model.") for name, _ in model.named_parameters()
    }
    for frozen_name in stage.frozen:
        if not any(_belongs(bare_name, frozen_name) for bare_name in bare_names.values()):
            raise ValueError(
                f"stage '{stage.name}' freezes '{frozen_name}', which matches no parameter of {type(model).__name__}"
            )
    return {
        name: not any(_belongs(bare_name, frozen_name) for frozen_name in stage.frozen)
        for name, bare_name in bare_names.items()
    }


def _belongs(parameter: str, module: str) -> bool:
    """Whether a parameter is this one, or in this module: 'exits.10.bias' is not in 'exits.1'."""
    return parameter == module or parameter.startswith(f"{module}.")
