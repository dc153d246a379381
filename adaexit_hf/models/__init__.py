"""Configs, models and the pipeline; one file per method.

The files of this folder are copied into every checkpoint, and run there without this package.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._lazy_names import LazyNames

# Each method needs a line here: it makes the method public, registers it with the Auto classes, and has it tested.
if TYPE_CHECKING:
    from .configuration_early_exit import EarlyExitConfig
    from .modeling_berxit import *
    from .modeling_dact_bert import *
    from .modeling_deebert import *
    from .modeling_depth_adaptive import *
    from .modeling_early_exit import EarlyExitForSequenceClassification, EarlyExitModel
    from .modeling_fastbert import *
    from .modeling_pabee import *
    from .modeling_right_tool import *

    METHODS: dict[str, type[EarlyExitForSequenceClassification]]

_lazy = LazyNames(__name__)
_METHOD_MODULES = sorted({module for module in _lazy.modules.values() if module.startswith("modeling_")})
_METHOD_MODULES.remove("modeling_early_exit")

# "deebert", "dact-bert", ...; from the file names, so that no method has to be imported.
MODEL_TYPES = tuple(module.removeprefix("modeling_").replace("_", "-") for module in _METHOD_MODULES)
__all__ = [*_lazy.names, "METHODS", "MODEL_TYPES"]


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        return _lazy(name)
    import_methods()
    return globals()["METHODS"]


def __dir__() -> list[str]:
    return __all__


def import_methods() -> None:
    """Import all methods, which registers them, and set `METHODS`, a dict from model type to class."""
    classifiers = [_classes(importlib.import_module(f".{module}", __name__))[0] for module in _METHOD_MODULES]
    globals()["METHODS"] = {classifier.config_class.model_type: classifier for classifier in classifiers}


def _classes(module: ModuleType) -> tuple[Any, Any]:
    """A method's classifier, and its encoder without exits."""
    (name,) = (name for name in module.__all__ if name.endswith("ForSequenceClassification"))
    return getattr(module, name), getattr(module, name.replace("ForSequenceClassification", "Model"))


class _Models(ModuleType):
    """This package. Python sets a submodule as an attribute when it has been imported, in whatever way."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _METHOD_MODULES:  # imported for its name, by unpickling, or directly: the Auto classes must know it
            from .._registration import register, register_pipeline

            register(*_classes(value))
            register_pipeline()


sys.modules[__name__].__class__ = _Models
