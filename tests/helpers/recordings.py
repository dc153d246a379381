"""Recordings of the authors' own code on tiny random models: weights, inputs, answers, exit layers, losses.

They lie in `tests/oracles/`; set ADAEXIT_ORACLES to a folder to check others of the same kind.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from helpers.tiny import CLASSES
from safetensors import safe_open
from torch import Tensor

from adaexit_hf.hub.conversion import convert_encoder_config, convert_state_dict
from adaexit_hf.models import EarlyExitForSequenceClassification

FOLDER = Path(os.environ.get("ADAEXIT_ORACLES", Path(__file__).parents[1] / "oracles"))


class Recording(NamedTuple):
    """One file. Thresholds keep the authors' notation.

    That is -1 for full depth; PABEE's are a patience, 0 for full depth, and with one label `patience/tolerance`.
    """

    name: str
    family: str
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    inputs: dict[str, Tensor]
    tensors: dict[str, Tensor]

    @property
    def thresholds(self) -> list[str]:
        return [name.removeprefix("exit_layer@") for name in self.tensors if name.startswith("exit_layer@")]

    @property
    def num_labels(self) -> int:
        """From the weights: not every config says it."""
        return next(
            len(self.state_dict[key]) for key in ("classifier.bias", "classifiers.0.bias") if key in self.state_dict
        )

    @property
    def learned(self) -> bool:
        return "lte_uncertainty" in self.tensors


def names(implementation: str) -> list[str]:
    return [path.stem for path in sorted(FOLDER.glob(f"{implementation}-*.safetensors"))]


def read(name: str) -> Recording:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    prefix, family = "state_dict/", metadata["backbone"]
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    wanted = ["input_ids", "attention_mask"] + ["token_type_ids"] * (
        family == "bert"
    )  # their code drops them elsewhere
    inputs = {key: tensors[key] for key in wanted if key in tensors}
    return Recording(name, family, json.loads(metadata["config"]), state, inputs, tensors)


def model_of(recording: Recording, **kwargs: Any) -> EarlyExitForSequenceClassification:
    """Our model with the recorded weights, in eval mode."""
    model_class = CLASSES[recording.name.split("-")[0]]
    config = model_class.config_class(
        encoder_config=convert_encoder_config(recording.config, recording.family),
        num_labels=recording.num_labels,
        **kwargs,
    )
    model = model_class(config)
    model.load_state_dict(convert_state_dict(recording.state_dict, config))
    return model.eval()
