"""Make the methods known to Transformers' Auto classes and to `pipeline`.

`import adaexit_hf` imports neither torch nor the Auto classes, as `import transformers` does not. The Auto classes
learn the model types when they are imported themselves; the methods are imported, and registered in the public way,
when a config of such a type or one of their classes is first used.
"""

import sys
from collections import UserDict
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_lock = RLock()


class _LazyConfigs(UserDict[str, Any]):
    """Configs by model type; the first look at one of this package's imports the methods."""

    def __getitem__(self, model_type: str) -> Any:
        if self.data.get(model_type, self) is None:
            from .models import import_methods

            import_methods()
        return super().__getitem__(model_type)


class _AutoConfigModule(ModuleType):
    """Transformers' module of `AutoConfig`; loaded, and told the model types, when something of it is first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        with _lock:
            if type(self) is _AutoConfigModule:
                import_module("transformers.models.auto")  # its package
                self.__class__ = ModuleType  # type: ignore[assignment]
                self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
                _announce_to(self)
        return getattr(self, name)


def announce() -> None:
    """Make the model types known to `AutoConfig` as soon as it is imported, without importing the methods.

    Does nothing where torch is not installed, since no model can be used there.
    """
    if AUTO_CONFIG in sys.modules:
        _announce_to(sys.modules[AUTO_CONFIG])
    elif find_spec("torch") is not None and (transformers := find_spec("transformers")) is not None:
        file = Path(str(transformers.origin)).parent / "models" / "auto" / "configuration_auto.py"
        spec = spec_from_file_location(AUTO_CONFIG, file)
        module = sys.modules[AUTO_CONFIG] = module_from_spec(spec)  # type: ignore[arg-type]
        module.__class__ = _AutoConfigModule


def _announce_to(auto_config: ModuleType) -> None:
    from .models import MODEL_TYPES

    configs = auto_config.CONFIG_MAPPING
    # `AutoConfig.register` takes classes, which would import the methods.
    configs._extra_content = _LazyConfigs(dict.fromkeys(MODEL_TYPES) | dict(configs._extra_content))


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
