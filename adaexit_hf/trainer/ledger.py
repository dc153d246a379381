"""Which stages of a training run are done, in `output_dir/stages.json`, and where their checkpoints are."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers.trainer import TRAINER_STATE_NAME

from ..models.modeling_early_exit import Stage

LEDGER = "stages.json"


class Ledger:
    """Reads and writes `stages.json`, and finds where a run continues.

    Args:
        root: `output_dir` of the run.
        plan: all stages of the model.
        overrides: stage name -> training arguments of this stage.
    """

    def __init__(self, root: Path, plan: tuple[Stage, ...], overrides: dict[str, dict[str, Any]]) -> None:
        self.root = root
        self.names = [stage.name for stage in plan]
        rows = [stage._asdict() | {"overrides": overrides.get(stage.name, {})} for stage in plan]
        self.plan = json.loads(json.dumps(rows))  # tuples as lists, to compare it with a plan that was read

    def folder(self, stage: str) -> Path:
        """The folder of a stage, with its checkpoints and its final model."""
        return self.root / f"stage-{self.names.index(stage) + 1}-{stage}"

    def write(self, done: list[str]) -> None:
        """Write that these stages are done."""
        self.root.mkdir(parents=True, exist_ok=True)
        scratch = self.root / f"{LEDGER}.new"
        scratch.write_text(json.dumps({"plan": self.plan, "done": done}, indent=2))
        scratch.replace(self.root / LEDGER)  # atomic: an interrupted write leaves the old ledger

    def start(self, stages: list[str]) -> list[str]:
        """Start these stages anew.

        Returns:
            The other stages that are already done.

        Raises:
            ValueError: if one of the stages has checkpoints of an earlier run, from which a later call could resume by
                mistake.
        """
        for stage in stages:
            if _last_checkpoint(self.folder(stage)):
                raise ValueError(
                    f"output_dir: '{self.folder(stage)}' holds checkpoints of an earlier run; call "
                    "train(resume_from_checkpoint=True) to continue it, or pass another output_dir"
                )
        path = self.root / LEDGER
        done = json.loads(path.read_text())["done"] if path.exists() else []
        return [stage for stage in done if stage not in stages]

    def resume(self, source: str | Literal[True], stages: list[str]) -> tuple[list[str], str | None]:
        """Find where to continue these stages.

        Args:
            source: True for the place where the run was interrupted, or one of its checkpoints.
            stages: the stages to run, finished or not.

        Returns:
            The stages that are done, and the checkpoint to continue from in the next one; None continues from its
            start.

        Raises:
            ValueError: if there is no run, if its plan is another one, or if the checkpoint does not belong to one
                of these stages.
        """
        path = self.root / LEDGER
        if not path.exists():
            raise ValueError(
                f"resume_from_checkpoint: '{self.root}' has no {LEDGER}, so there is no run to continue; call train()"
            )
        ledger = json.loads(path.read_text())
        if ledger["plan"] != self.plan:
            raise ValueError(
                f"resume_from_checkpoint: '{path}' was made with another stage plan, {ledger['plan']}; now it is "
                f"{self.plan}. Use the same model config and stage_overrides, or another output_dir"
            )
        if source is not True:
            parent = Path(source).resolve().parent
            resumed = next((stage for stage in stages if self.folder(stage).resolve() == parent), None)
            if resumed is None or not Path(source).is_dir():
                raise ValueError(
                    f"resume_from_checkpoint: got '{source}'; pass True, or a checkpoint of this run, e.g. "
                    f"'{self.folder(stages[0])}/checkpoint-500'"
                )
            return self.names[: self.names.index(resumed)], str(source)
        interrupted = next((stage for stage in stages if stage not in ledger["done"]), None)
        return ledger["done"], None if interrupted is None else _last_checkpoint(self.folder(interrupted))

    def final_model(self, stage: str) -> str:
        """The folder with the model of a finished stage.

        Raises:
            ValueError: if it was not saved.
        """
        folder = self.folder(stage) / "final"
        if not folder.exists():
            raise ValueError(
                f"resume_from_checkpoint: '{folder}' does not exist, so the model of stage '{stage}' is lost; "
                "train with a save_strategy other than 'no' to resume between stages"
            )
        return str(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: Transformers writes the trainer's state last."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None
