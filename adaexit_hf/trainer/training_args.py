"""Transformers' training arguments, and those of a training in stages."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils import is_torch_xla_available

from ..utils.spelling import did_you_mean

# Trainer reads these once for the whole run, or ignores them: a value for a single stage would have no effect.
RUN_WIDE = """
    output_dir stage_overrides label_smoothing_factor label_names report_to disable_tqdm log_level log_level_replica
    neftune_noise_alpha push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push hub_revision
    enable_jit_checkpoint use_cpu full_determinism skip_memory_metrics torch_compile torch_compile_backend
    torch_compile_mode ddp_backend ddp_timeout fsdp fsdp_config deepspeed parallelism_config
"""

# Up to Transformers 5.22 activation checkpointing is called gradient checkpointing; later that is a deprecated alias.
CHECKPOINTING = "gradient_checkpointing"
if hasattr(TrainingArguments, "activation_checkpointing"):
    CHECKPOINTING = "activation_checkpointing"
    RUN_WIDE += "gradient_checkpointing gradient_checkpointing_kwargs"


@dataclass
class EarlyExitTrainingArguments(TrainingArguments):
    """Transformers' `TrainingArguments` for every stage, and what differs in single stages.

    All arguments of `TrainingArguments` can be passed, too; those with another default are listed below. With
    `push_to_hub`, the model is pushed after the last stage, not before: exits that are not trained yet predict at
    random. With `hub_strategy="end"` it is pushed only by the trainer's `push_to_hub` and `save_model`.

    Args:
        stage_overrides: training arguments of single stages: stage name -> argument -> value, e.g.
            `{"exits": {"learning_rate": 1e-3, "max_steps": 100}}`, or the same as JSON. Arguments that hold for the
            whole run, such as `output_dir`, cannot be overridden. Default: none.
        exits_learning_rate: learning rate, > 0, of all parameters outside the encoder. Exits start from random weights
            and are still under-trained after three epochs at a learning rate that suits a pretrained encoder. Default:
            `learning_rate`. If it is set, a stage that overrides `learning_rate` must also override
            `exits_learning_rate`.
        reuse_frozen_states: if a stage freezes the whole encoder, run the encoder over the training set once, before
            the first step, and train the exits on the saved hidden states. The frozen encoder then runs without
            dropout, which it has in the code of the papers' authors; the exits keep their dropout. False runs the
            encoder in every step, as in the authors' code. The data set must have a length and give the same rows in
            every epoch; an iterable data set runs the encoder in every step. FastBERT's exits need the states of all
            tokens, which can take much memory. Default: True.
        frozen_states_memory: largest size in bytes, >= 0, of these hidden states in memory. Larger ones are kept in a
            file in the stage's folder, which is removed after the stage. 0 always uses a file. Default: 1 GiB.
        ddp_find_unused_parameters: as in Transformers. Default: True, because some objectives do not use all exits.
        use_cpu: as in Transformers. Default: False, but True with `bf16` where there is no accelerator.

    Raises:
        ValueError: if `frozen_states_memory` or `exits_learning_rate` is out of range, or if `push_to_hub` is combined
            with a `hub_strategy` that pushes checkpoints.

    Examples:
        >>> args = EarlyExitTrainingArguments("out", stage_overrides='{"exits": {"num_train_epochs": 1}}')
        >>> args.stage_overrides["exits"], args.frozen_states_memory
        ({'num_train_epochs': 1}, 1073741824)
    """

    stage_overrides: dict[str, dict[str, Any]] | str | None = field(
        default_factory=dict,
        metadata={"help": 'JSON: training arguments of single stages, e.g. \'{"exits": {"num_train_epochs": 1}}\'.'},
    )

    exits_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of all parameters outside the encoder, e.g. 1e-3. Default: --learning_rate; "
            "1e-3 with the recommended recipe."
        },
    )
    reuse_frozen_states: bool = field(
        default=True,
        metadata={"help": "Run a frozen encoder once instead of in every step; it then has no dropout."},
    )
    frozen_states_memory: int = field(
        default=2**30,
        metadata={"help": "Largest size in bytes of the frozen encoder's states in memory; larger ones go to a file."},
    )

    # Some objectives do not use all exits. With activation checkpointing the default of Transformers is False: DDP
    # would wait for the gradients of the unused exits.
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Let DDP search for parameters without a gradient; some objectives do not use all exits."},
    )

    def __post_init__(self) -> None:
        if self.stage_overrides is None or isinstance(self.stage_overrides, str):
            self.stage_overrides = json.loads(self.stage_overrides or "{}")
        if self.frozen_states_memory < 0:
            raise ValueError(
                f"frozen_states_memory: got {self.frozen_states_memory}; pass a number of bytes >= 0; 0 always uses a "
                "file"
            )
        rate = self.exits_learning_rate
        if rate is not None and (not isinstance(rate, int | float) or not 0 < rate < math.inf):
            raise ValueError(
                f"exits_learning_rate: got {rate!r}; pass a positive number, e.g. 1e-3, or None to use learning_rate"
            )
        # Transformers asks for `use_cpu` although there is nothing else to use. A GPU without bf16 stays an error.
        if (
            (self.bf16 or self.bf16_full_eval)
            and not torch.accelerator.is_available()
            and not is_torch_xla_available()
        ):
            self.use_cpu = True
        super().__post_init__()
        if self.push_to_hub and self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy: got '{self.hub_strategy.value}'; checkpoints of stages are not pushed, only the "
                "finished model is; pass 'every_save' or 'end'"
            )


def checked_overrides(args: EarlyExitTrainingArguments, stages: list[str]) -> dict[str, dict[str, Any]]:
    """The `stage_overrides` of the arguments.

    Args:
        args: the arguments of the run.
        stages: names of the model's stages.

    Raises:
        TypeError: if they are not a dict.
        ValueError: if they name an unknown stage or an argument that a stage cannot set, or set `learning_rate`
            without `exits_learning_rate` where the run has one.
    """
    overrides = args.stage_overrides
    if not isinstance(overrides, dict):
        raise TypeError(
            f"stage_overrides: got {overrides!r}; pass a dict, e.g. {{'{stages[-1]}': {{'learning_rate': 1e-3}}}}"
        )
    allowed = {argument.name for argument in dataclasses.fields(args)} - set(RUN_WIDE.split())
    for stage, changes in overrides.items():
        if stage not in stages:
            raise ValueError(f"stage_overrides: got stage {stage!r}; this model has {', '.join(stages)}")
        for name in changes:
            if name not in allowed:
                raise ValueError(
                    f"stage_overrides: stage '{stage}' sets '{name}', which a stage cannot set; see "
                    f"EarlyExitTrainingArguments{did_you_mean(name, allowed)}"
                )
        exits_rate = args.exits_learning_rate
        if exits_rate is not None and "learning_rate" in changes and "exits_learning_rate" not in changes:
            rate = changes["learning_rate"]
            raise ValueError(
                f"stage_overrides: stage '{stage}' sets learning_rate to {rate}, but its exits would keep the "
                f"exits_learning_rate {exits_rate} of the run; set both, e.g. "
                f"{{'{stage}': {{'learning_rate': {rate}, 'exits_learning_rate': {rate}}}}}"
            )
    return overrides
