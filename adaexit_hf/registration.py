"""Tells Transformers' Auto classes about the methods, without importing torch before it is needed.

`import transformers` imports neither torch nor the Auto classes, so `import adaexit_hf` must not either. As soon as
the Auto classes are there, they are told which model types exist. Whoever asks for one imports the methods, and with
them everything else is registered.
"""

import importlib
import sys
from collections import UserDict
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
PIPELINES = "transformers.pipelines"
OWN_PIPELINE = f"{__package__}.models.pipeline_early_exit"


class LazyConfigs(UserDict[str, Any]):
    """Registered configs by model type; those of this package are imported when one is read."""

    def __getitem__(self, model_type: str) -> Any:
        if self.data.get(model_type, self) is None:
            importlib.import_module(f"{__package__}.models")
        return super().__getitem__(model_type)


class AfterImport(MetaPathFinder):
    """Does something once, after a module has been imported, by whomever."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_then(module: ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_and_then  # type: ignore[method-assign]
        return spec


def when_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then` with the module of this name: now, if it has been imported, or else as soon as it is."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, AfterImport(name, then))


def announce(auto_config: ModuleType, model_types: Iterable[str]) -> None:
    """Make the configs of these model types known to `AutoConfig`, to be imported when one is asked for."""
    configs = auto_config.CONFIG_MAPPING
    # Not to be had by `AutoConfig.register`, which takes classes, and so would import them.
    configs._extra_content = LazyConfigs(dict.fromkeys(model_types) | dict(configs._extra_content))


def register_when_needed(model_types: Iterable[str]) -> None:
    """Make methods known to `AutoConfig`, `AutoModel`, `AutoModelForSequenceClassification` and `pipeline`.

    None of them is imported before a checkpoint or config of such a type, or a pipeline, is asked for.
    """
    when_imported(AUTO_CONFIG, lambda module: announce(module, model_types))
    # In two steps, since it may be our pipeline that imports Transformers' and is not there yet itself.
    when_imported(PIPELINES, lambda _: import_own_pipeline())
    when_imported(OWN_PIPELINE, register_pipeline)


def import_own_pipeline() -> None:
    importlib.import_module(OWN_PIPELINE)


def register(methods: Iterable[tuple[Any, Any, Any]]) -> None:
    """Register methods, each a config, a classifier and a bare encoder, with the Auto classes.

    Their code travels inside every checkpoint from then on, which so loads without this package.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    for config, model, encoder in methods:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)
        AutoModel.register(config, encoder, exist_ok=True)
        # Model cards and Transformers' own tests find a class's task by its name.
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = model.__name__
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModelForSequenceClassification")
        encoder.register_for_auto_class("AutoModel")


def register_pipeline(module: ModuleType) -> None:
    """Have `pipeline("early-exit-text-classification", ...)` run this package's code, not that of the checkpoint."""
    from transformers import AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.configuration_early_exit import EarlyExitConfig

    if module.TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # else it warns
        PIPELINE_REGISTRY.register_pipeline(
            module.TASK, module.EarlyExitTextClassificationPipeline, AutoModelForSequenceClassification, type="text"
        )
    EarlyExitConfig.has_pipelines = True
