"""Transformers' training arguments, and what a training in stages has besides."""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

# Trainer reads these once, for the whole run, or only keeps them for old scripts: a stage's value would be ignored.
RUN_WIDE = """
    output_dir stage_overrides label_smoothing_factor label_names report_to disable_tqdm log_level log_level_replica
    neftune_noise_alpha push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
    enable_jit_checkpoint use_cpu full_determinism skip_memory_metrics torch_compile torch_compile_backend
    torch_compile_mode ddp_backend ddp_timeout fsdp fsdp_config deepspeed parallelism_config
"""

# Up to Transformers 5.22 activation checkpointing is called gradient checkpointing, which later is a deprecated alias.
CHECKPOINTING = "gradient_checkpointing"
if hasattr(TrainingArguments, "activation_checkpointing"):
    CHECKPOINTING = "activation_checkpointing"
    RUN_WIDE += "gradient_checkpointing gradient_checkpointing_kwargs"


@dataclass
class EarlyExitTrainingArguments(TrainingArguments):
    """Transformers' arguments, which hold for every stage, and what is different in single stages.

    With `push_to_hub`, the model is pushed when the last stage is done, not before: exits that no stage has trained
    answer by chance. With `hub_strategy="end"`, only the trainer's `push_to_hub` and `save_model` push it.

    Args:
        exits_learning_rate: of everything outside of the encoder: exits start from random weights, and at a rate that
            suits a pretrained encoder three epochs leave them half trained. Default: `learning_rate`. Where it is set,
            a stage whose overrides have a `learning_rate` must say its `exits_learning_rate`, too.
        stage_overrides: stage name -> argument -> value, e.g. `{"exits": {"learning_rate": 1e-3, "max_steps": 100}}`.
        reuse_frozen_states: where a stage freezes the whole encoder, run it over the training set once, before the
            first step, and train the exits on the states that it gave. It then runs without the dropout that the
            papers' authors have in a frozen encoder, too; the exits keep theirs. False runs it in every step, as they
            do. Rows must be the same whenever they are read, and be found by number: an iterable data set is not
            reused. FastBERT's exits need the states of all tokens, which can be many.
        frozen_states_memory: bytes. More states than that go to a file in the stage's folder, as long as it lasts.
    """

    stage_overrides: dict[str, dict[str, Any]] | str | None = field(
        default_factory=dict,
        metadata={"help": 'JSON: training arguments of single stages, e.g. \'{"exits": {"num_train_epochs": 1}}\'.'},
    )

    exits_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the exits, and all else outside of the encoder, e.g. 1e-3. Default: --learning_rate."},
    )
    reuse_frozen_states: bool = field(
        default=True,
        metadata={"help": "Run a wholly frozen encoder once instead of in every step; it then has no dropout."},
    )
    frozen_states_memory: int = field(
        default=2**30, metadata={"help": "Bytes of such states to keep in memory; more of them go to a file."}
    )

    # An objective may leave exits unused; by default DDP waits for their gradients once activations are checkpointed.
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Let DDP look for parameters without a gradient; some objectives leave exits out."},
    )

    def __post_init__(self) -> None:
        if self.stage_overrides is None or isinstance(self.stage_overrides, str):
            self.stage_overrides = json.loads(self.stage_overrides or "{}")
        if self.frozen_states_memory < 0:
            raise ValueError(
                f"frozen_states_memory: got {self.frozen_states_memory}; pass a number of bytes, 0 for always a file"
            )
        if self.exits_learning_rate is not None and not 0 < self.exits_learning_rate < math.inf:
            raise ValueError(
                f"exits_learning_rate: got {self.exits_learning_rate}; pass a positive number, e.g. 1e-3, or None for "
                "the learning_rate of the encoder"
            )
        super().__post_init__()
        if self.push_to_hub and self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy: got '{self.hub_strategy.value}'; checkpoints of stages are not pushed, the finished "
                "model is; pass 'every_save' or 'end'"
            )


def checked_overrides(args: EarlyExitTrainingArguments, stages: list[str]) -> dict[str, dict[str, Any]]:
    overrides = args.stage_overrides
    if not isinstance(overrides, dict):
        raise TypeError(
            f"stage_overrides: got {overrides!r}; pass a dict, e.g. {{'{stages[-1]}': {{'learning_rate': 1e-3}}}}"
        )
    known = {each.name for each in dataclasses.fields(args)} - set(RUN_WIDE.split())
    for stage, changes in overrides.items():
        if stage not in stages:
            raise ValueError(f"stage_overrides: got stage {stage!r}; this model has {', '.join(stages)}")
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else "; see EarlyExitTrainingArguments"
                raise ValueError(f"stage_overrides: stage '{stage}' sets '{name}', which stages do not have{hint}")
        run_wide = args.exits_learning_rate
        if run_wide is not None and "learning_rate" in changes and "exits_learning_rate" not in changes:
            rate = changes["learning_rate"]
            raise ValueError(
                f"stage_overrides: stage '{stage}' sets learning_rate to {rate}, but its exits would learn at the "
                f"exits_learning_rate {run_wide} of the run; say which it is to be, e.g. "
                f"{{'{stage}': {{'learning_rate': {rate}, 'exits_learning_rate': {rate}}}}}"
            )
    return overrides
