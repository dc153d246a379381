"""Make the methods known to Transformers' Auto classes and to `pipeline`.

`import adaexit_hf` announces the model types to `AutoConfig`; the methods themselves are imported, and
registered in the public way, when a config of such a type or one of their classes is first used.
"""

import importlib
from collections import UserDict
from importlib.util import find_spec
from typing import Any


class _LazyConfigs(UserDict[str, Any]):
    """Configs by model type; the first look at one of this package's imports the methods."""

    def __getitem__(self, model_type: str) -> Any:
        if self.data.get(model_type, self) is None:
            importlib.import_module("adaexit_hf.models").METHODS  # noqa: B018 # registers every method
        return super().__getitem__(model_type)


def announce() -> None:
    """Make the model types known to `AutoConfig`, without importing the methods.

    Does nothing where torch is missing, since no model can be used there.
    """
    if find_spec("torch") is None:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from .models import MODEL_TYPES

    # `AutoConfig.register` takes classes, which would import the methods.
    CONFIG_MAPPING._extra_content = _LazyConfigs(dict.fromkeys(MODEL_TYPES) | dict(CONFIG_MAPPING._extra_content))


def register(model: Any, encoder: Any) -> None:
    """Register a method with the Auto classes.

    Args:
        model: the method's classifier.
        encoder: its encoder without exits.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    AutoModel.register(config, encoder, exist_ok=True)
    # Model cards and Transformers' own tests look up a class's task by its name.
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = model.__name__


def register_pipeline() -> None:
    """Make `pipeline("early-exit-text-classification", ...)` run this package's code, not that of the checkpoint."""
    from transformers import AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.configuration_early_exit import EarlyExitConfig
    from .models.pipeline_early_exit import TASK, EarlyExitTextClassificationPipeline

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # else it warns
        PIPELINE_REGISTRY.register_pipeline(
            TASK, EarlyExitTextClassificationPipeline, AutoModelForSequenceClassification, type="text"
        )
    EarlyExitConfig.has_pipelines = True
