"""A new method needs three new files and one line."""

import shutil
from pathlib import Path

import pytest
from helpers.fresh import run_script

import adaexit_hf

METHOD = '''
"""Exits by margin: an exit head after every layer, trained together with the encoder on the sum of their losses.

At inference a sample leaves at the first exit whose two most likely classes differ by more than the threshold.
"""

from typing import ClassVar

from torch import Tensor, nn

from .configuration_early_exit import EarlyExitConfig
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import ExitHead
from .exit_heads import State
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import total_loss

__all__ = ["MarginExitsConfig", "MarginExitsForSequenceClassification", "MarginExitsModel"]


class MarginExitsConfig(EarlyExitConfig):
    """`exit_threshold` is a difference of probabilities, in [0, 1]."""

    model_type = "margin-exits"

    @property
    def default_criterion(self) -> str:
        return "margin"


class MarginExitsModel(EarlyExitModel):
    """The encoder of a checkpoint, without its exits."""

    config_class = MarginExitsConfig


class MarginExitsForSequenceClassification(EarlyExitForSequenceClassification):
    """Joint training, exits by margin."""

    config_class = MarginExitsConfig
    objectives = ("joint",)
    paper: ClassVar[Paper] = Paper("Exits by margin", "Nobody", "a test", "https://example.org", "@misc{margin}")

    def __init__(self, config: MarginExitsConfig) -> None:
        super().__init__(config)
        self.exits = nn.ModuleList(ExitHead(config.encoder_config, config.num_labels) for _ in config.exit_layers)
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("joint", ("joint",)),)

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        return Exit(self.exits[index](pooled)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        return total_loss([self.task_loss(exit.logits, labels) for exit in exits], objective)
'''
LINE = "    from .modeling_margin_exits import *\n"
NEIGHBOUR = "    from .modeling_pabee import *\n"


@pytest.mark.slow
def test_a_method_is_one_file_and_one_line_of_the_package(tmp_path: Path) -> None:
    """The other two new files are the method's test and model card: tests/models/test_x.py and model_cards/x.md."""
    package = tmp_path / "adaexit_hf"
    shutil.copytree(Path(adaexit_hf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "modeling_margin_exits.py").write_text(METHOD.lstrip())
    names = package / "models" / "__init__.py"
    before = names.read_text()
    assert before.count(NEIGHBOUR) == 1
    names.write_text(before.replace(NEIGHBOUR, LINE + NEIGHBOUR))
    run_script(Path(__file__).parent / "helpers" / "use_added_method.py", str(tmp_path))  # raises what fails there
