"""Every public name is documented: what it does, arguments, shapes of tensors, errors, and the source."""

import inspect
import re
import sys

import pytest

import adaexit_hf
from adaexit_hf import benchmark
from adaexit_hf.models import METHODS, EarlyExitConfig, EarlyExitModel

PUBLIC = {name: getattr(adaexit_hf, name) for name in adaexit_hf.__all__ if callable(getattr(adaexit_hf, name))}
# Public methods that users call, besides what Transformers documents.
METHODS_OF_CLASSES = {
    f"{name}.{method}": getattr(value, method)
    for name, value in PUBLIC.items()
    if inspect.isclass(value)
    for method in vars(value)
    if not method.startswith("_") and inspect.isfunction(getattr(value, method))
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
BENCHMARK = {name: getattr(benchmark, name) for name in benchmark.__all__}
CONFIGS = {model.config_class.__name__: model.config_class for model in METHODS.values()}
MODELS = {model.__name__: model for model in METHODS.values()}


def described(value: object) -> str:
    return inspect.getdoc(value) or ""


def is_called(value: object) -> bool:
    """Whether users call it: not so records, which have attributes, nor exceptions, nor encoders without exits."""
    if not inspect.isclass(value):
        return True
    return "\nAttributes:\n" not in described(value) and not issubclass(value, BaseException | EarlyExitModel)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    text = vars(PUBLIC[name]).get("__doc__") if inspect.isclass(PUBLIC[name]) else PUBLIC[name].__doc__
    assert text, name
    assert re.match(r"[A-Z`].*?[.:;,]", text.strip(), flags=re.DOTALL), text
    # What dataclasses and named tuples write by themselves says nothing.
    assert not text.startswith(f"{name}("), text


@pytest.mark.parametrize("name", [name for name, value in (PUBLIC | BENCHMARK).items() if is_called(value)])
def test_what_users_call_has_an_example(name: str) -> None:
    value = (PUBLIC | BENCHMARK)[name]
    text = inspect.cleandoc(value.__doc__ or "")  # its own, since `inspect.getdoc` also finds that of a base class
    assert re.search(r"\nExamples:\n    >>> ", text), name
    assert "doctest: +SKIP" not in text


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS_OF_CLASSES])
def test_errors_that_are_raised_are_named(name: str) -> None:
    function = (FUNCTIONS | METHODS_OF_CLASSES)[name]
    raised = set(re.findall(r"raise (\w+Error)\(", inspect.getsource(inspect.unwrap(function))))
    text = described(function)
    if "errors as for" in text.lower():
        return
    assert not raised or "Raises:" in text, raised
    assert all(error in text for error in raised), raised


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_that_do_not_explain_themselves_are_explained(name: str) -> None:
    function, text = FUNCTIONS[name], described(FUNCTIONS[name])
    if "rguments" in text and "as for" in text:  # those of another function
        return
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"\b{argument}\b", text), argument


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_have_shapes(name: str) -> None:
    annotations = inspect.get_annotations(FUNCTIONS[name]).values()
    if any("Tensor" in str(annotation) for annotation in annotations):
        assert re.search(r"\((batch|samples|texts|tokens|exits|rows)[,)]", described(FUNCTIONS[name])), name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_argument_of_a_config_is_described(name: str) -> None:
    config = CONFIGS[name]
    own = set(config.own_arguments()) - set(EarlyExitConfig.own_arguments())
    assert {argument for argument in own if not re.search(rf"\b{argument}\b", described(config))} == set()


@pytest.mark.parametrize("name", MODELS)
def test_every_method_names_its_source(name: str) -> None:
    module = described(sys.modules[MODELS[name].__module__])
    paper = MODELS[name].paper
    assert paper.title.split(":")[0].lower() in " ".join(module.lower().split())
    assert re.search(r"Eq|section|Section", module), "which equations or sections are implemented"
    assert paper.url.removeprefix("https://").rstrip("/") in module
