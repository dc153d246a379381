"""The part of the Trainer that writes a model's card from what it knows, and remembers what it is told."""

from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..hub.card_facts import CardDataset, SplitMetrics, training_facts
from ..hub.model_card import TASK, write_model_card
from .ledger import LEDGER

logger = logging.get_logger(__name__)

MEASURED = ("curve", "metrics", "speed")  # of the model as it was, before it was trained again
OF_THE_CLOCK = ("runtime", "_per_second", "_time")


class WritesModelCard(Trainer):
    """A Trainer whose model card says what the model is, how it was trained and what was measured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._card: dict[str, Any] = {}
        self._evaluated: SplitMetrics | None = None
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; forgets what was measured before."""
        self._card = {name: value for name, value in self._card.items() if name not in MEASURED}
        self._evaluated = None
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in Transformers; remembers the last evaluation of the finished model."""
        found = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if found and "stage" not in logs:
            numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
            values = {name: value for name, value in numbers.items() if not name.endswith(OF_THE_CLOCK)}
            self._evaluated = {"at_threshold": values, "exit_threshold": self.model.config.exit_threshold}
        super().log(logs, *args, **kwargs)

    def create_model_card(self, **facts: Any) -> None:
        """Write the model's card, `README.md` and its pictures, into `output_dir`; `push_to_hub` calls it.

        What it is told it keeps for the next call, measurements until the next training: so a push after this call
        carries the same card. Told of none, it reports the last `evaluate()`. A README.md of somebody else stays,
        with a warning.

        Args:
            **facts: arguments of `write_model_card` (`curve`, `metrics`, `dataset`, `speed`, ...), and of
                Transformers' `create_model_card` (`model_name`, `finetuned_from`, `dataset_tags`, ...).

        Raises:
            TypeError: an argument of neither; ValueError and OSError: as `write_model_card`.
        """
        card = self._card | {name: value for name, value in facts.items() if value not in (None, [])}
        if self.is_world_process_zero():
            try:
                write_model_card(self.model, self.args.output_dir, **self._known(card) | _translated(card))
            except FileExistsError as error:
                logger.warning(str(error))
        self._card = card  # not before: what makes no card is not kept

    def _known(self, told: dict[str, Any]) -> dict[str, Any]:
        """What nobody needs to tell, as arguments of `write_model_card`."""
        root, config = Path(self.args.output_dir), self.model.config
        known = {"name": self.hub_model_id, "base_model": _hub_name(config.name_or_path)}
        if (root / LEDGER).exists():  # else this Trainer has trained nothing
            rows = len(self.train_dataset) if has_length(self.train_dataset) else None
            known["training"] = training_facts(self.args, rows)
        # At another threshold than today's it was the evaluation of another model; a curve has a metric of its own.
        if self._evaluated and self._evaluated["exit_threshold"] == config.exit_threshold and "curve" not in told:
            known["metrics"] = {"evaluation": self._evaluated}
        return known


def _translated(facts: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Transformers' `create_model_card` as those of `write_model_card`."""
    facts = dict(facts)
    tasks = _one("tasks", facts.pop("tasks", None))
    if tasks not in (None, TASK):
        raise ValueError(f"tasks: got {tasks!r}; these models do '{TASK}', leave it out")
    for theirs, ours in (("model_name", "title"), ("finetuned_from", "base_model")):
        if theirs in facts:
            facts[ours] = facts.pop(theirs)
    if isinstance(facts.get("tags"), str):
        facts["tags"] = [facts["tags"]]
    hub_id, config = (_one(name, facts.pop(name, None)) for name in ("dataset_tags", "dataset_args"))
    if not isinstance(facts.get("dataset"), CardDataset):
        name = _one("dataset", facts.pop("dataset", None)) or hub_id
        if name:
            facts["dataset"] = CardDataset(name, hub_id, config)
    return facts


def _one(name: str, value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) != 1:
        raise ValueError(f"{name}: got {value!r}; a card reports on one data set and task, pass one")
    return values[0]


def _hub_name(name: str | None) -> str | None:
    """The name, unless it is a folder of this machine or cannot be one of the Hub."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
