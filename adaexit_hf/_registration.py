"""Register the methods with Transformers' Auto classes and with `pipeline`.

Like `import transformers`, `import adaexit_hf` must import neither torch nor the Auto classes. So the model types are
added to `AutoConfig`'s mapping when its module is imported. The methods themselves are imported when a config of one
of these types, or one of their classes, is first used, and each is registered when its module is imported.
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
    """Config classes by model type; looking up one of this package imports the methods."""

    def __getitem__(self, model_type: str) -> Any:
        if self.data.get(model_type, self) is None:
            from .models import import_methods

            import_methods()
        return super().__getitem__(model_type)


class _AutoConfigModule(ModuleType):
    """Transformers' module of `AutoConfig`, which is loaded, with the model types, when it is first used."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__all__" or not name.startswith("__"):  # inspection reads other such attributes of every module
            # While one thread loads the module, others wait also for names that it has already, since `CONFIG_MAPPING`
            # is there before this package's model types are in it.
            with _lock:
                if type(self) is _AutoConfigModule and "_loading" not in vars(self):
                    _load(self)
        return ModuleType.__getattribute__(self, name)


def _load(module: ModuleType) -> None:
    """Load the module of `AutoConfig`; the lock must be held."""
    vars(module)["_loading"] = True
    try:
        import_module("transformers.models.auto")  # the parent package, which the module expects
        module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]
        _add_model_types(module)
        module.__class__ = ModuleType
    finally:
        del vars(module)["_loading"]


def announce() -> None:
    """Add the model types to `AutoConfig`, now or as soon as it is imported, without importing the methods.

    Does nothing if torch is not installed, since models cannot be used then.
    """
    if AUTO_CONFIG in sys.modules:
        _add_model_types(import_module(AUTO_CONFIG))  # waits for a thread that is still loading it
    elif find_spec("torch") is not None and (transformers := find_spec("transformers")) is not None:
        file = Path(str(transformers.origin)).parent / "models" / "auto" / "configuration_auto.py"
        spec = spec_from_file_location(AUTO_CONFIG, file)
        module = sys.modules[AUTO_CONFIG] = module_from_spec(spec)  # type: ignore[arg-type]
        module.__class__ = _AutoConfigModule


def _add_model_types(auto_config: ModuleType) -> None:
    """Add this package's model types to the mapping of the module of `AutoConfig`."""
    from .models import MODEL_TYPES

    configs = auto_config.CONFIG_MAPPING
    # `AutoConfig.register` needs the classes, so the methods would have to be imported.
    configs._extra_content = _LazyConfigs(dict.fromkeys(MODEL_TYPES) | dict(configs._extra_content))


def register(model: Any, encoder: Any) -> None:
    """Register a method with the Auto classes.

    Args:
        model: class of the method's classifier.
        encoder: class of the method's encoder without exits.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForSequenceClassification.register(config, model, exist_ok=True)
    AutoModel.register(config, encoder, exist_ok=True)
    # In this dict, model cards and Transformers' own tests look up the task of a class by its name.
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = model.__name__


def register_pipeline() -> None:
    """Register the pipeline, so that this package's code is run, and not the code saved with a checkpoint."""
    from transformers import AutoModelForSequenceClassification
    from transformers.pipelines import PIPELINE_REGISTRY

    from .models.configuration_early_exit import EarlyExitConfig
    from .models.pipeline_early_exit import TASK, EarlyExitTextClassificationPipeline

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # registering it again would warn
        PIPELINE_REGISTRY.register_pipeline(
            TASK, EarlyExitTextClassificationPipeline, AutoModelForSequenceClassification, type="text"
        )
    EarlyExitConfig.has_pipelines = True
