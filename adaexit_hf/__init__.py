"""Early exit for Hugging Face Transformers: encoders that decide for each input how many layers to run."""

from typing import TYPE_CHECKING

from ._lazy_names import LazyNames
from ._registration import announce
from .version import __version__

# The public names of these sub-packages are public in this package, too.
if TYPE_CHECKING:
    from .data import *
    from .evaluation import *
    from .export import *
    from .hub import *
    from .inference import *
    from .interpretation import *
    from .models import *
    from .models import METHODS, MODEL_TYPES
    from .onnx_runtime import *
    from .pruning import *
    from .serving import EarlyExitEngine
    from .trainer import *
    from .visualization import *

__getattr__ = LazyNames(__name__)
__all__ = __getattr__.names
__dir__ = __getattr__.names.copy

announce()
