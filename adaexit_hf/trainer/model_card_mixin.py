"""The part of the Trainer that writes the model card, and stores the facts that users pass for it."""

from pathlib import Path
from typing import Any, cast

from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..evaluation.summary import changed_setting, exit_settings
from ..hub.card_facts import CardDataset, SplitMetrics, training_facts
from ..hub.model_card import TASK, write_model_card
from .ledger import LEDGER

logger = logging.get_logger(__name__)

MEASUREMENTS = ("curve", "metrics", "speed")  # outdated after further training
TIMINGS = ("runtime", "_per_second", "_time")  # endings of the names of metrics that are not reported


class WritesModelCard(Trainer):
    """A Trainer that writes a model card: what the model is, how it was trained and what was measured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._card: dict[str, Any] = {}
        self._evaluated: SplitMetrics | None = None
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; drops earlier measurements."""
        self._card = {name: value for name, value in self._card.items() if name not in MEASUREMENTS}
        self._evaluated = None
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As in Transformers; stores the last evaluation outside of a stage for the model card."""
        evaluation = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if evaluation and "stage" not in logs:
            numbers = {name: value for name, value in evaluation.items() if isinstance(value, int | float)}
            metrics = {name: value for name, value in numbers.items() if not name.endswith(TIMINGS)}
            self._evaluated = cast(SplitMetrics, {"at_threshold": metrics, **exit_settings(self.model.config)})
        super().log(logs, *args, **kwargs)

    def create_model_card(self, **facts: Any) -> None:
        """Write the model card, `README.md` with its pictures, into `output_dir`; `push_to_hub` calls this method.

        The arguments are stored and used again in the next calls, so that a later push has the same card; measurements
        are dropped when the model is trained again. Without `metrics` and `curve` the card reports the last
        `evaluate()`. A README.md that this package did not write is not replaced; a warning says so.

        Args:
            **facts: arguments of `write_model_card` (`curve`, `metrics`, `dataset`, `speed`, ...) and of Transformers'
                `create_model_card` (`model_name`, `finetuned_from`, `dataset_tags`, ...).

        Raises:
            TypeError: if an argument belongs to neither.
            ValueError: as for `write_model_card`; or if there are several data sets or tasks.
            OSError: as for `write_model_card`.
        """
        card = self._card | {name: value for name, value in facts.items() if value not in (None, [])}
        if self.is_world_process_zero():
            try:
                write_model_card(self.model, self.args.output_dir, **self._default_facts(card) | _translated(card))
            except FileExistsError as error:
                logger.warning(str(error))
        self._card = card  # only after the card was written: invalid facts are not stored

    def _default_facts(self, card: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `write_model_card` that the Trainer knows itself; `card` holds those that were passed."""
        root, config = Path(self.args.output_dir), self.model.config
        defaults = {"name": self.hub_model_id, "base_model": hub_name(config.name_or_path)}
        if (root / LEDGER).exists():  # otherwise nothing was trained here
            rows = len(self.train_dataset) if has_length(self.train_dataset) else None
            defaults["training"] = training_facts(self.args, rows)
        # An evaluation with another threshold or criterion does not describe this model; a curve that was passed may
        # be of another metric than the evaluation.
        if self._evaluated and not changed_setting(self._evaluated, exit_settings(config)) and "curve" not in card:
            defaults["metrics"] = {"evaluation": self._evaluated}
        return defaults


def _translated(facts: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Transformers' `create_model_card` as those of `write_model_card`."""
    facts = dict(facts)
    task = _single("tasks", facts.pop("tasks", None))
    if task not in (None, TASK):
        raise ValueError(f"tasks: got {task!r}; these models do '{TASK}', leave it out")
    for argument, fact in (("model_name", "title"), ("finetuned_from", "base_model")):
        if argument in facts:
            facts[fact] = facts.pop(argument)
    if isinstance(facts.get("tags"), str):
        facts["tags"] = [facts["tags"]]
    hub_id, config = (_single(name, facts.pop(name, None)) for name in ("dataset_tags", "dataset_args"))
    if not isinstance(facts.get("dataset"), CardDataset):
        name = _single("dataset", facts.pop("dataset", None)) or hub_id
        if name:
            facts["dataset"] = CardDataset(name, hub_id, config)
    return facts


def _single(name: str, value: Any) -> Any:
    """The value itself, or the only item of a list."""
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) != 1:
        raise ValueError(f"{name}: got {value!r}; a card reports on one data set and one task, pass one")
    return values[0]


def hub_name(name: str | None) -> str | None:
    """The name, or None if it is a local path or not a valid name on the Hub."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
