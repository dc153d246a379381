"""Which stages of a training run are done, in `output_dir/stages.json`, and where their checkpoints are."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..models.modeling_early_exit import Stage
from ..utils.files import LEDGER

logger = logging.get_logger(__name__)


class Ledger:
    """Reads and writes `stages.json`, and finds where a run continues.

    Args:
        root: `output_dir` of the run.
        plan: all stages of the model.
        overrides: stage name -> training arguments of this stage.
        run: what the run was started with, for `check_same_run`: `method`, `rows`, `data` (a checksum) and training
            arguments.
    """

    def __init__(
        self,
        root: Path,
        plan: tuple[Stage, ...],
        overrides: dict[str, dict[str, Any]],
        run: dict[str, Any] | None = None,
    ) -> None:
        self.root = root
        self.run = run or {}
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
        scratch.write_text(json.dumps({"plan": self.plan, "done": done, "run": self.run}, indent=2))
        scratch.replace(self.root / LEDGER)  # atomic: an interrupted write leaves the old ledger

    def start(self, stages: list[str]) -> list[str]:
        """Start these stages anew.

        Returns:
            The stages before them that are already done; those after them have to be run again.

        Raises:
            ValueError: if one of the stages, or a later one, holds a model of an earlier run, from which a later call
                could resume by mistake.
        """
        first = min(self.names.index(stage) for stage in stages)
        leftovers = self._leftovers(self.names[first:])
        if leftovers:
            raise ValueError(
                f"output_dir: got '{self.root}', which holds models of an earlier run, {_listed(leftovers)}; call "
                "train(resume_from_checkpoint=True) to continue that run, or pass another output_dir"
            )
        done = self._read()["done"] if self.exists() else []
        return [stage for stage in self.names[:first] if stage in done]

    def exists(self) -> bool:
        """Whether there was a run."""
        return (self.root / LEDGER).exists()

    def can_continue(self, stages: list[str]) -> bool:
        """Whether these stages have a checkpoint or a finished model from which `resume(True, ...)` continues."""
        if not self.exists():
            return False
        done = self._read()["done"]
        return any(
            (self.folder(stage) / "final").exists() if stage in done else _last_checkpoint(self.folder(stage))
            for stage in stages
        )

    def resume(self, source: str | Literal[True], stages: list[str]) -> tuple[list[str], str | None]:
        """Find where to continue these stages.

        Args:
            source: True for the place where the run was interrupted, or one of its checkpoints.
            stages: the stages to run, finished or not.

        Returns:
            The stages that are done, and the checkpoint to continue from in the next one; None continues from its
            start.

        Raises:
            ValueError: if there is no run, if its plan is another one, if the checkpoint does not belong to one of
                these stages, or if there is anything that was trained after the place to continue from.
        """
        if not self.exists():
            raise ValueError(
                f"resume_from_checkpoint: got {source!r}, but '{self.root}' has no {LEDGER}, so there is no run to "
                "continue; call train() without it or with 'auto', or pass the output_dir of the run"
            )
        ledger = self._read()
        if ledger["plan"] != self.plan:
            raise ValueError(
                f"resume_from_checkpoint: '{self.root / LEDGER}' was made with another stage plan, {ledger['plan']}; "
                f"now it is {self.plan}. Use the same model config and stage_overrides, or another output_dir"
            )
        if source is True:
            interrupted = next((stage for stage in stages if stage not in ledger["done"]), None)
            if interrupted is None:
                return ledger["done"], None
            later = self.names[self.names.index(interrupted) + 1 :]
            leftovers = self._leftovers(later)
            outdated = [stage for stage in later if stage in ledger["done"]]
            if leftovers or outdated:
                raise ValueError(
                    f"resume_from_checkpoint: got True, which continues stage '{interrupted}', but "
                    f"{_listed(leftovers) or ', '.join(outdated)} were trained without it; move or remove them, or "
                    "pass another output_dir"
                )
            return ledger["done"], _last_checkpoint(self.folder(interrupted))
        path = Path(source)
        resumed = next((stage for stage in stages if self.folder(stage).resolve() == path.resolve().parent), None)
        if resumed is None or not (path / TRAINER_STATE_NAME).exists():
            raise ValueError(
                f"resume_from_checkpoint: got '{source}'; pass True, or a checkpoint of this run, e.g. "
                f"'{self.folder(stages[0])}/checkpoint-500'"
            )
        number = self.names.index(resumed)
        leftovers = self._leftovers(self.names[number:], after=path)
        if leftovers:
            raise ValueError(
                f"resume_from_checkpoint: got '{source}', but {_listed(leftovers)} were trained after it, and a later "
                "call could continue from there; move or remove them first"
            )
        return self.names[:number], str(source)

    def check_same_run(self, source: str | Literal[True]) -> None:
        """Compare a run that is resumed with what it began with.

        Args:
            source: as in `resume`.

        Raises:
            ValueError: if the model is of another method; or if `source` is True, and the training set has another
                number of rows, other texts or other labels. Other training arguments are only reported: a run may be
                prolonged, but finished stages keep what they were trained with. The same holds for a checkpoint that
                was named.
        """
        began: dict[str, Any] = self._read().get("run", {})  # ledgers of older versions have none
        changed = {
            name: (began[name], value)
            for name, value in self.run.items()
            if began.get(name) is not None and value is not None and began[name] != value
        }
        if "method" in changed:  # whose stages may have the same names
            old, new = changed["method"]
            raise ValueError(
                f"resume_from_checkpoint: the run in '{self.root}' is of method '{old}', but the model of '{new}'; "
                "pass a model of that method, or another output_dir"
            )
        for name in ("rows", "data"):
            if name in changed and source is True:
                old, new = changed[name]
                what = (
                    f"{new} rows, but the run began with {old}"
                    if name == "rows"
                    else "other texts or labels than before"
                )
                raise ValueError(
                    f"train_dataset: has {what}, so that resume_from_checkpoint would continue or return the model of "
                    "another run; pass another output_dir"
                )
        if changed:
            listed = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
            logger.warning(f"resume_from_checkpoint: {listed}; stages that are done keep what they were trained with")

    def _read(self) -> dict[str, Any]:
        return json.loads((self.root / LEDGER).read_text())

    def _leftovers(self, stages: list[str], after: Path | None = None) -> list[Path]:
        """Checkpoints and finished models of stages; of the stage of the checkpoint `after`, the later ones."""
        found = []
        for stage in stages:
            checkpoints, final = _checkpoints(self.folder(stage)), self.folder(stage) / "final"
            if after is not None and self.folder(stage).resolve() == after.resolve().parent:
                checkpoints = [path for path in checkpoints if _step(path) > _step(after)]
            found += checkpoints + ([final] if final.exists() else [])
        return found

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


def _checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, in order: Transformers writes the trainer's state last."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _last_checkpoint(folder: Path) -> str | None:
    checkpoints = _checkpoints(folder)
    return str(checkpoints[-1]) if checkpoints else None


def _listed(paths: list[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)
