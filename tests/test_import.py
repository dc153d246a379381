"""Importing the package costs next to nothing, and the Auto classes know its methods nonetheless."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.fresh import run

import adaexit_hf
from adaexit_hf.cli.main import COMMANDS
from adaexit_hf.models import METHODS, MODEL_TYPES


def run_in_new_process(code: str) -> str:
    """What code prints in an interpreter that has imported nothing."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_the_auto_classes() -> None:
    late = {"torch", "transformers", "transformers.models.auto", "transformers.pipelines", "transformers.trainer"}
    code = f"import sys, adaexit_hf; print({late} & set(sys.modules))"
    assert run_in_new_process(code) == "set()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import adaexit_hf; from transformers import AutoConfig, AutoModelForSequenceClassification",
        "from transformers import AutoConfig, AutoModelForSequenceClassification; import adaexit_hf",
        "import transformers.modeling_utils, adaexit_hf; from transformers.models.auto import *",
    ],
)
def test_auto_classes_know_the_methods_in_whatever_order_they_are_imported(imports: str) -> None:
    code = f"""
{imports}
config = AutoConfig.for_model("deebert", encoder_config={{"model_type": "bert", "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}})
print(type(AutoModelForSequenceClassification.from_config(config)).__module__)
"""
    assert run(code) == "adaexit_hf.models.modeling_deebert"


@pytest.mark.parametrize(
    "imports",
    ["import adaexit_hf; from transformers import pipeline", "import transformers.pipelines, adaexit_hf"],
)
def test_pipelines_know_the_task_once_a_config_was_read(imports: str) -> None:
    code = f"""
{imports}
from transformers import AutoConfig
from transformers.pipelines import PIPELINE_REGISTRY
AutoConfig.for_model("deebert", encoder_config={{"model_type": "bert"}})  # as `pipeline` does first
print(PIPELINE_REGISTRY.check_task("early-exit-text-classification")[1]["impl"].__module__)
"""
    assert run(code) == "adaexit_hf.models.pipeline_early_exit"


def test_looking_at_all_modules_does_not_load_the_auto_classes() -> None:
    """Inspection, as of torch while it is imported, reads attributes of every module that there is."""
    code = """
import inspect, sys, adaexit_hf
inspect.getmodule(len, "nowhere")
print([hasattr(module, "__warningregistry__") for module in list(sys.modules.values())] and "torch" in sys.modules)
"""
    assert run_in_new_process(code) == "False"


def test_evaluation_imports_neither_the_trainer_nor_a_method() -> None:
    code = """
import sys, adaexit_hf.evaluation.curves
names = [name.split(".")[-1] for name in sys.modules if name.startswith("adaexit_hf.models.modeling_")]
print(names, "transformers.trainer" in sys.modules, "adaexit_hf.trainer" in sys.modules)
"""
    assert run(code) == "['modeling_early_exit'] False False"


@pytest.mark.slow
def test_commands_need_the_extras_onnx_and_serve_only_to_use_them() -> None:
    modules = [
        "adaexit_hf.export",
        "adaexit_hf.serving",
        "adaexit_hf.benchmark",
        *(f"adaexit_hf.cli.{name}" for name, _ in COMMANDS.values()),
    ]
    code = f"""
import importlib, sys
for name in ("onnx", "onnxruntime", "onnxscript", "prometheus_client", "starlette", "uvicorn"):
    sys.modules[name] = None  # importing it is an ImportError
for name in {modules}:
    importlib.import_module(name)
try:
    from adaexit_hf import OnnxEarlyExitClassifier
except ImportError as error:
    print(error)
try:
    import adaexit_hf.serving.server
except ImportError as error:
    print(error)
"""
    printed = run_in_new_process(code)
    assert "pip install adaexit_hf[onnx]" in printed
    assert "pip install adaexit_hf[serve]" in printed


def test_a_copy_of_the_mapping_has_the_classes() -> None:
    code = """
import copy, pickle, adaexit_hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
copied = pickle.loads(pickle.dumps(CONFIG_MAPPING))
print(copied["pabee"].__name__, "pabee" in copied, len(copied.keys()) == len(CONFIG_MAPPING.keys()))
"""
    assert run(code) == "PabeeConfig True True"


def test_configs_that_others_registered_stay() -> None:
    code = """
from transformers import AutoConfig, PreTrainedConfig
class Other(PreTrainedConfig):
    model_type = "other"
AutoConfig.register("other", Other)
import adaexit_hf
print(type(AutoConfig.for_model("other")).__name__)
"""
    assert run(code) == "Other"


def test_the_table_of_names_has_every_method() -> None:
    public = {public.__name__ for model in METHODS.values() for public in (model.config_class, model)}
    assert public <= set(adaexit_hf.__all__)
    assert tuple(METHODS) == MODEL_TYPES
    assert {name: model.config_class.model_type for name, model in METHODS.items()} == {name: name for name in METHODS}


@pytest.mark.parametrize("name", adaexit_hf.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert name in dir(adaexit_hf)
    assert getattr(adaexit_hf, name) is not None


def test_modules_can_be_reached_from_the_package() -> None:
    assert run("import adaexit_hf; print(len(adaexit_hf.models.METHODS) == len(adaexit_hf.METHODS))") == "True"


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'DactBert'; it has .*DactBertConfig"):
        adaexit_hf.DactBert  # noqa: B018


def test_threads_that_need_the_auto_classes_at_once_all_get_them() -> None:
    code = """
import threading, time, adaexit_hf
failures = []
def use(number):
    time.sleep(number / 200)
    try:
        from transformers.models.auto.configuration_auto import AutoConfig, CONFIG_MAPPING
        assert "deebert" in CONFIG_MAPPING and callable(AutoConfig.for_model)
    except Exception as error:
        failures.append(repr(error))
threads = [threading.Thread(target=use, args=[number]) for number in range(100)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failures)
"""
    assert run(code) == "[]"


def test_a_thread_that_asks_while_another_loads_the_auto_classes_waits_for_the_methods() -> None:
    code = """
import threading, adaexit_hf
from adaexit_hf import _registration
from transformers.models.auto import configuration_auto
found = []
def ask():
    found.append("deebert" in configuration_auto.CONFIG_MAPPING)
def add_model_types_late(module, add=_registration._add_model_types):
    other.start()
    other.join(0.3)  # long enough for a thread that does not wait
    add(module)
other = threading.Thread(target=ask)
_registration._add_model_types = add_model_types_late
configuration_auto.AutoConfig
other.join()
print(found)
"""
    assert run(code) == "[True]"


def test_importing_the_package_waits_for_a_thread_that_loads_the_auto_classes() -> None:
    code = """
import importlib.abc, sys, threading
import transformers
reached, imported = threading.Event(), threading.Event()
class Late(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.dynamic_module_utils":  # which the module of AutoConfig imports
            reached.set()
            imported.wait(0.5)
thread = threading.Thread(target=lambda: __import__("transformers.models.auto.configuration_auto"))
sys.meta_path.insert(0, Late())
thread.start()
reached.wait()
import adaexit_hf
imported.set()
thread.join()
from transformers import AutoConfig
print(type(AutoConfig.for_model("deebert", encoder_config={"model_type": "bert"})).__name__)
"""
    assert run_in_new_process(code) == "DeeBertConfig"


def test_all_names_of_the_module_can_be_imported_at_once() -> None:
    code = "import adaexit_hf; from transformers.models.auto.configuration_auto import *; print(AutoConfig.__name__)"
    assert run(code) == "AutoConfig"


def test_the_auto_classes_know_a_method_that_was_imported_by_its_module() -> None:
    """As unpickling imports it."""
    code = """
from adaexit_hf.models.modeling_pabee import PabeeConfig
from transformers import AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY
small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
model = AutoModelForSequenceClassification.from_config(PabeeConfig({"model_type": "bert", **small}))
print(type(model).__name__, "early-exit-text-classification" in PIPELINE_REGISTRY.get_supported_tasks())
"""
    assert run(code) == "PabeeForSequenceClassification True"


def test_the_package_can_be_imported_from_a_zip_file(tmp_path: Path) -> None:
    package = Path(adaexit_hf.__file__).parent
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for path in package.rglob("*.py"):
            archive.write(path, path.relative_to(package.parent))
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'package.zip')!r}); import adaexit_hf"
    code += "; print('.zip' in adaexit_hf.__file__, 'BerxitConfig' in adaexit_hf.__all__)"
    assert run_in_new_process(code) == "True True"
