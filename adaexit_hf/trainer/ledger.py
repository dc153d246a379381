"""Which stages of a training run are done, and where their checkpoints lie: `output_dir/stages.json`."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers.trainer import TRAINER_STATE_NAME

from ..models.modeling_early_exit import Stage

LEDGER = "stages.json"


class Ledger:
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
            if _last_checkpoint(self.folder(name)):
                raise ValueError(
                    f"output_dir: '{self.folder(name)}' holds checkpoints of an earlier run; call "
                    "train(resume_from_checkpoint=True) to continue it, or pass another output_dir"
                )

    def resume(self, source: str | Literal[True], chosen: list[str]) -> tuple[list[str], str | None]:
        """The stages that are done, and the checkpoint to continue from in the next one (None: from its start)."""
        path = self.root / LEDGER
        if not path.exists():
            raise ValueError(
                f"resume_from_checkpoint: '{self.root}' has no {LEDGER}, so no run to continue; call train()"
            )
        ledger = json.loads(path.read_text())
        if ledger["plan"] != self.plan:
            raise ValueError(
                f"resume_from_checkpoint: '{path}' was made with another stage plan, {ledger['plan']}; now it is "
                f"{self.plan}. Use the same model config and stage_overrides, or another output_dir"
            )
        if source is not True:
            names = [name for name in chosen if self.folder(name).resolve() == Path(source).resolve().parent]
            if not names or not Path(source).is_dir():
                raise ValueError(
                    f"resume_from_checkpoint: got '{source}'; pass True, or a checkpoint of this run, e.g. "
                    f"'{self.folder(chosen[0])}/checkpoint-500'"
                )
            return self.names[: self.names.index(names[0])], str(source)
        running = next((name for name in chosen if name not in ledger["done"]), None)
        return ledger["done"], None if running is None else _last_checkpoint(self.folder(running))

    def final(self, name: str) -> str:
        """Where the model of a finished stage lies."""
        folder = self.folder(name) / "final"
        if not folder.exists():
            raise ValueError(
                f"resume_from_checkpoint: '{folder}' does not exist, so the model of stage '{name}' is lost; "
                "train with a save_strategy other than 'no' to resume between stages"
            )
        return str(folder)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; Transformers writes the trainer's state last."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None
