"""The flags of `adaexit train`."""

import json
from dataclasses import dataclass, field
from typing import Any

from ..models import METHODS
from .data_arguments import DataArguments
from .options import MAX_DROP_HELP, Fraction

# What flags of Transformers do here, where that is more or less than Transformers says.
TRANSFORMERS_FLAGS = {
    "output_dir": "Folder for the model, metrics.json, curve.json and the model card. Default: trainer_output.",
    "num_train_epochs": "Epochs of each stage.",
    "learning_rate": "Learning rate of the encoder.",
    "per_device_train_batch_size": "Texts per training step and device.",
    "bf16": "Train in bfloat16, if the machine has units for it.",
    "use_cpu": "Do not use a GPU.",
    "seed": "Seed of the training.",
    "resume_from_checkpoint": "True or auto: continue the run in output_dir where it was stopped; auto starts one if "
    "there is none.",
    "push_to_hub": "Push the model to the Hub when it is finished.",
}


@dataclass(kw_only=True)
class Arguments(DataArguments):
    """Flags of `adaexit train`, besides those of `EarlyExitTrainingArguments`."""

    model_name_or_path: str = field(
        default="", metadata={"help": "Hub name or folder of a supported encoder or of a fine-tuned classifier."}
    )
    add_exits: str | None = field(
        default=None,
        metadata={
            "metavar": "PATH",
            "help": "In place of --model_name_or_path: Hub name or folder of a fine-tuned classifier that stays as it "
            "is; only exits before it are trained.",
        },
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "deebert, berxit, dact-bert, pabee, fastbert, right-tool or depth-adaptive, as in its paper; or "
            "plain, without exits. Default: the recommended recipe."
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "'recommended': our heads, rates and, for numbers, exits; 'paper': those of the paper. Default: "
            "recommended, or paper with --method."
        },
    )
    method_config: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Config settings of the method, as JSON: '{\"ponder_cost\": 0.01}'."}
    )
    layer_drop: float = field(
        default=0.0,
        metadata={
            "help": "Only with --method plain: LayerDrop, the fraction of layers to skip in each training step."
        },
    )
    stage: str | None = field(
        default=None,
        metadata={"help": "Train only this stage. To add exits to a fine-tuned classifier, pass --add_exits."},
    )
    calibrate: bool = field(
        default=False, metadata={"help": "Fit one temperature per exit on half of the validation split."}
    )
    token_depths_model: str | None = field(
        default=None,
        metadata={
            "help": "Only with depth_source 'reconstruction': folder of the masked language model that "
            "benchmarks/depths_by_reconstruction.py trained."
        },
    )
    masked_at_once: int = field(
        default=1,
        metadata={"help": "Only with --token_depths_model: tokens masked in each copy of a text. The paper uses 1."},
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Truncate texts to this many tokens, then and in all uses of the model. Default: 128, or fewer "
            "if the encoder's tokenizer truncates earlier; with --add_exits the classifier's own limit."
        },
    )
    max_drop: Fraction = field(default=Fraction(0.01), metadata={"help": MAX_DROP_HELP})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, chosen with the training seed."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Remove the model that output_dir contains, and all files of its run, before training."},
    )
    save_traces: str | None = field(
        default=None,
        metadata={
            "help": "Folder: save the trace of every split (logits and scores of every exit) for ExitTrace.load."
        },
    )

    def __post_init__(self) -> None:
        self.max_drop = Fraction(self.max_drop)  # "2%" in a file of settings
        if self.validation_fraction is not None:
            self.validation_fraction = Fraction(self.validation_fraction)
        if self.method_config is None or isinstance(self.method_config, str):  # how the parser passes a dict
            try:
                self.method_config = json.loads(self.method_config or "{}")
            except json.JSONDecodeError as error:
                raise ValueError(f"method_config: got {self.method_config!r}, which is not JSON ({error})") from None
        if bool(self.add_exits) == bool(self.model_name_or_path):
            raise ValueError(
                f"model_name_or_path, add_exits: got '{self.model_name_or_path}' and {self.add_exits!r}; pass one of "
                "them: --model_name_or_path ENCODER to train an encoder with exits, or --add_exits CLASSIFIER to add "
                "exits to a fine-tuned classifier that stays as it is"
            )
        if self.add_exits and self.method == "plain":
            raise ValueError("add_exits: got it with --method plain, which has no exits; leave out one of them")
        self.model_name_or_path = self.add_exits or self.model_name_or_path
        if self.recipe is None:
            self.recipe = "recommended" if self.method is None else "paper"
        if self.recipe not in ("recommended", "paper"):
            raise ValueError(f"recipe: got {self.recipe!r}; choose one of 'recommended', 'paper'")
        if self.recipe == "paper" and self.method is None:
            raise ValueError(f"method: missing; --recipe paper needs one of {', '.join(METHODS)}, or plain")
        if self.recipe == "recommended" and self.method == "plain":
            raise ValueError(
                "recipe: got 'recommended' with --method plain, which has no exits; leave out one of them"
            )
