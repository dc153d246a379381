"""The pages of the documentation, their code, and a folder in which it runs without a network.

The code names encoders and data sets as a user does. A name that is a folder in the working directory is taken from
there, so a tiny encoder and a few rows stand under the very names.
"""

import argparse
import functools
import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.exports import export_once, graphs_of
from helpers.tiny import encoder_config
from helpers.words import new_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    HfArgumentParser,
)

from adaexit_hf import BerxitConfig, BerxitForSequenceClassification, export_onnx
from adaexit_hf.cli import main as cli
from adaexit_hf.serving.server import PredictRequest, RerankRequest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
CARDS = sorted((ROOT / "model_cards").glob("*.md"))
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", RESULTS, *CARDS, *DOCS]
WORDS = ["a", "film", "not", "good", "bad", ".", "[MASK]"]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Code of one language on a page; also where it is indented."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """Text of a page without blocks of code and comments."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def run_python(page: Path, code: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run the blocks of a page one after the other; what they print must not be empty. Returns their names."""
    names: dict[str, Any] = {"__name__": "page"}
    if any("adaexit_onnx" in block for block in code):
        export_out(names)
    for number, block in enumerate(code, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        if re.search(r"^print\(", block, flags=re.MULTILINE):
            assert capsys.readouterr().out.strip(), f"{page.name}, block {number} prints nothing"
    return names


def export_out(names: dict[str, Any]) -> None:
    """Export the model "out", and import the package of the distribution adaexit-onnx, which is a link to ours."""
    model, tokenizer = (auto.from_pretrained("out") for auto in (AutoModelForSequenceClassification, AutoTokenizer))
    with graphs_of(export_once("out", model.eval(), tokenizer)):  # the same model for every page
        export_onnx(model, tokenizer, "out/onnx", progress=False)
    if str(ROOT / "onnx_runtime") not in sys.path:
        sys.path.append(str(ROOT / "onnx_runtime"))
    names |= {"texts": ["a good film ."], "labels": [1]}


def make_workshop(folder: Path) -> None:
    """Tiny encoders and finished models under the names that pages use, three data sets of GLUE, and a file of texts.

    Args:
        folder: the working directory of the code.
    """
    tokenizer = new_tokenizer(WORDS, model_max_length=None)
    config, two_layers = encoder_config("bert"), encoder_config("bert", num_hidden_layers=2)
    exits = BerxitForSequenceClassification(BerxitConfig(encoder_config=two_layers, num_labels=2, exit_threshold=0.6))
    for name, model in {
        "google-bert/bert-base-uncased": BertModel(config),
        "your/fine-tuned-classifier": BertForSequenceClassification(config),
        "you/berxit-sst2": exits,
        "out": exits,
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_glue(folder / "nyu-mll" / "glue")
    (folder / "texts.csv").write_text("text\na good film .\nnot bad\n")


def write_glue(folder: Path) -> None:
    """Few rows of three tasks, in the form in which the Hub has them."""
    pairs = {"sentence1": ["a good film .", "not bad"] * 4, "sentence2": ["He said so .", "He told them"] * 4}
    tables = {
        "sst2": {"sentence": ["a good film .", "not so bad , a film"] * 4, "label": [1, 0] * 4},
        "mrpc": pairs | {"label": [1, 0] * 4},
        "stsb": pairs | {"label": [4.5, 1.25] * 4},
    }
    header = ["---", "configs:"]
    for name, columns in tables.items():
        header += [f"- config_name: {name}", "  data_files:"]
        (folder / name).mkdir(parents=True)
        for split in ("train", "validation"):
            Dataset.from_dict(columns).to_parquet(folder / name / f"{split}-0.parquet")
            header += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]))


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page as lists of words, without comments, redirections and environment."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if ">" in words:
                words = words[: words.index(">")]
            if words:
                found.append(words)
    return found


class ParsedError(BaseException):
    """The arguments are good; nothing was done with them."""


def check_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse a command that would not start: let the real parser read its arguments, and stop there.

    Raises:
        AssertionError: a program, file, target or extra that does not exist; SystemExit, ValueError: bad arguments.
    """
    program, *rest = words
    if program == "adaexit":
        check_own_command(rest, monkeypatch)
    elif words[:3] == ["python", "-m", "adaexit_onnx"]:
        shell = importlib.import_module("adaexit_hf.onnx_runtime.__main__")
        monkeypatch.setattr(shell.OnnxEarlyExitClassifier, "from_pretrained", _stop)
        with pytest.raises(ParsedError):
            shell.main(rest[2:])
    elif program == "python" or words[:2] == ["accelerate", "launch"]:
        script = next(place for place, word in enumerate(words) if word.endswith(".py"))
        assert all(Path(ROOT, word).is_file() for word in words[:script] if word.endswith(".yaml"))
        check_script(ROOT / words[script], words[script + 1 :], monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(rest) <= set(targets), words
    elif program == "curl":
        check_request(rest)
    elif words[:2] == ["docker", "build"]:
        assert rest[-1] == "." and (ROOT / "Dockerfile").is_file()
    elif words[:2] == ["docker", "run"]:  # what follows the name of the image are arguments of `adaexit serve`
        image = rest.index("adaexit-serve")
        check_own_command(["serve", *(rest[image + 1 :] or ["/model"])], monkeypatch)
    elif words[:2] == ["serve", "run"]:
        module, name = rest[1].split(":")
        example = importlib.import_module(module)
        assert callable(getattr(example, name))
        example.Settings.model_validate(dict(word.split("=") for word in rest[2:]))
    elif words[:2] == ["pip", "install"]:
        extras = {extra for word in rest for part in re.findall(r"\[(.+)\]", word) for extra in part.split(",")}
        section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
        assert extras <= set(re.findall(r"^([\w-]+) = ", section, flags=re.MULTILINE)), words
    else:
        raise AssertionError(f"nobody knows how to check {shlex.join(words)}; teach check_command, or leave it out")


def check_request(arguments: list[str]) -> None:
    """A request to the server: an address that it has, and a body that it reads."""
    (url,) = (word for word in arguments if "://" in word)
    path = url.removeprefix("http://127.0.0.1:8080")
    kinds = {"/predict": PredictRequest, "/rerank": RerankRequest}
    assert path in {*kinds, "/info", "/metrics", "/health"}, url
    if path in kinds:
        body = arguments[arguments.index("--data") + 1]
        kinds[path].model_validate_json(body)
        assert json.loads(body).keys() <= kinds[path].model_fields.keys()


def _stop(*_: Any, **__: Any) -> None:
    raise ParsedError


def check_own_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of `adaexit`."""
    command, *rest = arguments
    if command == "--help":
        return
    home = importlib.import_module(f".{cli.COMMANDS[command][0]}", cli.__package__)
    if command == "train":
        parsed(home.parse, rest)
        return
    monkeypatch.setattr(cli, "check_files", lambda argv: None)  # the files of a page do not exist
    monkeypatch.setattr(home, command, functools.wraps(getattr(home, command))(_stop))
    try:
        code = cli.main(arguments)
    except ParsedError:
        return
    raise AssertionError(f"adaexit {shlex.join(arguments)} ended with {code}")


def check_script(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of examples/ or benchmarks/, up to where it has read its arguments."""

    def then_stop(parse: Any) -> Any:
        @functools.wraps(parse)
        def parse_and_stop(*args: Any, **kwargs: Any) -> None:
            parsed(parse, *args, **kwargs)
            raise ParsedError

        return parse_and_stop

    parse = HfArgumentParser.parse_args_into_dataclasses
    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", then_stop(parse))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ParsedError:
        return
    except ImportError as error:
        pytest.skip(str(error))  # an extra that is not installed
    raise AssertionError(f"{script.name} did not read its arguments")


def parsed(parse: Any, *args: Any, **kwargs: Any) -> None:
    """Call a parser. That this machine has no GPU, where Transformers refuses `--bf16`, is no fault of the command."""
    try:
        parse(*args, **kwargs)
    except ValueError as error:
        if "bf16" not in str(error) or torch.cuda.is_available():
            raise
