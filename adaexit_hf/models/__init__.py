"""Configs, models and the pipeline; one file per method.

The files of this folder are copied into every checkpoint, and run there without this package.
"""

import importlib
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

_lazy = LazyNames(__name__, __file__)
_METHOD_MODULES = sorted({module for module in _lazy.modules.values() if module.startswith("modeling_")})
_METHOD_MODULES.remove("modeling_early_exit")

# "deebert", "dact-bert", ...; from the file names, so that no method has to be imported.
MODEL_TYPES = tuple(module.removeprefix("modeling_").replace("_", "-") for module in _METHOD_MODULES)
__all__ = [*_lazy.names, "METHODS", "MODEL_TYPES"]


def __getattr__(name: str) -> Any:
    if name == "METHODS" or name in _lazy.modules:
        import_methods()
    return globals()[name] if name == "METHODS" else _lazy(name)


def __dir__() -> list[str]:
    return __all__


def import_methods() -> None:
    """Import all methods, register them with the Auto classes, and set `METHODS`, a dict from model type to class."""
    from .._registration import register, register_pipeline

    if "METHODS" in globals():
        return
    methods = globals()["METHODS"] = {}
    for module in _METHOD_MODULES:
        classes = vars(importlib.import_module(f".{module}", __name__))
        for name in classes["__all__"]:
            if name.endswith("ForSequenceClassification"):
                model, encoder = classes[name], classes[name.replace("ForSequenceClassification", "Model")]
                methods[model.config_class.model_type] = model
                register(model, encoder)
    register_pipeline()
