"""Build both distributions, check them, and use their wheels in empty environments: `make release-check`.

    python tests/release_check.py [pip options]

Needs Python, git and the network for pip; what is installed is used without a network. The archives hold the tracked
files as they are in the working tree. If all passes they are copied to `dist/`, where the release workflow takes them
from. With RELEASE_TAG in the environment, the version must be that of the tag.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "adaexit_hf"
TOOLS = ["build", "twine"]  # versions: constraints.txt
# What an sdist holds besides the package.
SDIST = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
STARTED = float(os.environ.get("RELEASE_CHECK_STARTED", time.time()))


def done(step: str) -> None:
    """Print one line for a step that passed, with the seconds since the start."""
    print(f"{time.time() - STARTED:4.0f} s  {step}", flush=True)  # noqa: T201


def fail(message: str) -> None:
    sys.exit(f"release-check failed: {message}")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside of the repository, where its source cannot be imported; returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    ours = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "RELEASE_CHECK_STARTED": str(STARTED)}
    ended = subprocess.run(command, cwd=cwd, env=inherited | ours, capture_output=True, text=True, check=False)
    if ended.returncode:
        fail(f"`{' '.join(map(str, command))}` ended with {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def environment(folder: Path) -> Path:
    """A new virtual environment; returns the folder of its programs."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def version_of(wheel: Path) -> str:
    return wheel.name.split("-")[1]


def copy_tracked_files(to: Path) -> set[str]:
    """Copy what git tracks; returns the package's files among it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        fail(f"git ls-files: {listed.stderr.strip()}; run it in a clone of the repository")
    files = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)
    return {name for name in files if name.startswith(f"{PACKAGE}/")}


def check_contents(archive: Path, expected: set[str]) -> None:
    """A build must hold the whole package with its data files and the licence, and nothing else of the repository."""
    if archive.suffix == ".whl":
        found = set(zipfile.ZipFile(archive).namelist())
        metadata = {name for name in found if re.match(rf"{PACKAGE}-[^/]+\.dist-info/", name)}
        if not any(name.endswith("/LICENSE") for name in metadata):
            fail(f"{archive.name} has no LICENSE; pyproject.toml: license-files")
    else:
        with tarfile.open(archive) as opened:
            found = {name.partition("/")[2] for name in opened.getnames() if opened.getmember(name).isfile()}
        metadata = {name for name in found if name.startswith(f"{PACKAGE}.egg-info/")} | SDIST
        expected = expected | SDIST
    missing, foreign = expected - found, found - metadata - expected
    if missing:
        fail(f"{archive.name} lacks {', '.join(sorted(missing))}; pyproject.toml: [tool.setuptools.package-data]")
    if foreign:
        fail(
            f"{archive.name} must not hold {', '.join(sorted(foreign))}; MANIFEST.in, [tool.setuptools.packages.find]"
        )


def build(work: Path, pip_install: list[str]) -> list[Path]:
    """Build and check both archives; returns their paths, the wheel last."""
    source, dist = work / "source", work / "dist"
    package_files = copy_tracked_files(source)
    programs = environment(work / "tools")
    run(programs / "pip", *pip_install, *TOOLS, cwd=work)
    done(f"installed {' and '.join(TOOLS)}")
    # Without --sdist and --wheel it builds the wheel from the sdist, not from the source.
    run(programs / "pyproject-build", "--outdir", dist, source, cwd=work)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    done(f"built {sdist.name}, and from it {wheel.name}")
    if (tag := os.environ.get("RELEASE_TAG")) and tag != f"v{version_of(wheel)}":
        fail(f"the tag is {tag}, but {PACKAGE}/version.py says {version_of(wheel)}")
    run(programs / "twine", "check", "--strict", sdist, wheel, cwd=work)
    done("twine check --strict passed both")
    for archive in (sdist, wheel):
        check_contents(archive, package_files)
    done(f"both hold the package's {len(package_files)} files, and no tests, examples or benchmarks")
    return [sdist, wheel]


def build_light(work: Path) -> Path:
    """Build the distribution that runs exported models, adaexit-onnx, with the tools that are installed; the wheel."""
    source, dist = work / "light", work / "light-dist"
    # Its package is a link to a folder of this one.
    shutil.copytree(ROOT / "onnx_runtime", source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    run(work / "tools" / "bin" / "pyproject-build", "--outdir", dist, source, cwd=work)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    run(work / "tools" / "bin" / "twine", "check", "--strict", sdist, wheel, cwd=work)
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"adaexit_onnx/{path.name}" for path in (ROOT / PACKAGE / "onnx_runtime").glob("*.py")}
    if found != expected:
        fail(f"{wheel.name} holds {sorted(found)}, not {sorted(expected)}; onnx_runtime/pyproject.toml")
    done(f"built {wheel.name}, which holds {PACKAGE}/onnx_runtime as adaexit_onnx")
    return wheel


def use(wheel: Path, light: Path, work: Path, pip_install: list[str]) -> None:
    """Install the wheel in an empty environment, and use it from Python and from the command line."""
    programs, folder = environment(work / "empty"), work / "elsewhere"
    folder.mkdir()
    run(programs / "pip", *pip_install, f"{wheel}[onnx]", cwd=folder)
    run(programs / "pip", "check", cwd=folder)
    done(f"installed {wheel.name}[onnx] in an empty environment")
    version = run(programs / "adaexit", "--version", cwd=folder).strip()
    if version != version_of(wheel):
        fail(f"adaexit --version prints {version}, the wheel is {version_of(wheel)}")
    commands = re.findall(r"^  (\w+) ", run(programs / "adaexit", "--help", cwd=folder), flags=re.MULTILINE)
    if not commands:
        fail("adaexit --help lists no commands")
    done("adaexit --version and --help")
    script = shutil.copy(__file__, folder / "use_wheel.py")
    # What it prints are lines of `done`.
    print(run(programs / "python", "-I", script, "--use", *commands, cwd=folder), end="")  # noqa: T201
    without_torch = environment(work / "light-env")
    run(without_torch / "pip", *pip_install, light, cwd=folder)
    run(without_torch / "pip", "check", cwd=folder)
    print(run(without_torch / "python", "-I", script, "--use-light", cwd=folder), end="")  # noqa: T201


def use_from_python(commands: list[str]) -> None:
    """Train, predict with, save and reload a tiny model, and ask every command for help; in the empty environment."""
    import contextlib
    import importlib.metadata
    import io
    import socket

    def refuse(self: socket.socket, address: object) -> None:
        fail(f"a connection to {address} was opened; everything must work offline")

    socket.socket.connect = refuse

    import adaexit_hf

    if not Path(adaexit_hf.__file__).is_relative_to(sys.prefix):
        fail(f"imported {adaexit_hf.__file__}, not the wheel in {sys.prefix}")
    done(f"imported adaexit_hf {adaexit_hf.__version__}")

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BertConfig,
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        set_seed,
    )

    from adaexit_hf import (
        DeeBertConfig,
        DeeBertForSequenceClassification,
        EarlyExitTrainer,
        EarlyExitTrainingArguments,
        predict,
    )

    set_seed(0)
    # Not `helpers.words`: here are only the wheel and what it needs.
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "good", "bad", "film"])}
    word_level = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level, pad_token="[PAD]", unk_token="[UNK]")
    texts = ["a good film", "a bad film", "good", "bad bad film"]
    rows = Dataset.from_dict({**tokenizer(texts), "labels": [1, 0, 1, 0]})
    encoder = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = DeeBertForSequenceClassification(DeeBertConfig(encoder_config=encoder, num_labels=2, exit_threshold=0.5))
    trainer = EarlyExitTrainer(
        model,
        EarlyExitTrainingArguments(
            output_dir="run", max_steps=2, per_device_train_batch_size=2, report_to="none", disable_tqdm=True
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    done("trained DeeBERT for two steps in each stage")

    predictions = predict(model.eval(), texts, tokenizer)
    if predictions.logits.shape != (4, 2) or not predictions.logits.isfinite().all():
        fail(f"predict gave the logits {predictions.logits}")
    done("predicted")

    model.save_pretrained("out")
    tokenizer.save_pretrained("out")
    reloaded = AutoModelForSequenceClassification.from_pretrained("out").eval()
    if type(reloaded).__module__.partition(".")[0] != "adaexit_hf":
        fail(f"AutoModelForSequenceClassification gave {type(reloaded)}")
    again = predict(reloaded, texts, AutoTokenizer.from_pretrained("out"))
    torch.testing.assert_close(again.logits, predictions.logits)
    done("saved and reloaded, with the same answers")

    adaexit_hf.export_onnx(reloaded, AutoTokenizer.from_pretrained("out"), "out/onnx", int8=True, progress=False)
    found = adaexit_hf.OnnxEarlyExitClassifier.from_pretrained("out", "fp32").predict(texts)
    torch.testing.assert_close(torch.from_numpy(found.logits), predictions.logits)
    done("exported to ONNX, with the same answers")

    # In this process: each command in one of its own would import torch again.
    (adaexit,) = importlib.metadata.entry_points(group="console_scripts", name="adaexit")
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            adaexit.load()([command, "--help"])
        if f"usage: adaexit {command}" not in printed.getvalue():
            fail(f"adaexit {command} --help does not say how to call it")
    done(f"--help of {', '.join(commands)}")


def use_light() -> None:
    """Predict with the model that was exported in the other environment, where no torch is installed."""
    import importlib.util

    from adaexit_onnx import OnnxEarlyExitClassifier

    answers = OnnxEarlyExitClassifier.from_pretrained("out", "fp32")(["a good film", "bad"])
    if [set(answer) for answer in answers] != [{"label", "score", "exit_layer"}] * 2:
        fail(f"adaexit_onnx answered {answers}")
    unwanted = [name for name in ("torch", "transformers", PACKAGE) if importlib.util.find_spec(name)]
    if unwanted:
        fail(f"adaexit-onnx has installed {', '.join(unwanted)}")
    done("installed adaexit-onnx in an empty environment, and predicted without torch")


def main(pip_options: list[str]) -> None:
    pip_install = ["install", "--quiet", "--no-compile", *pip_options, "-c", str(ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory(prefix="release-check-") as name:
        archives = build(Path(name), pip_install)
        archives.append(build_light(Path(name)))
        use(archives[1], archives[2], Path(name), pip_install)
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        (ROOT / "dist").mkdir()
        for archive in archives:
            shutil.copy2(archive, ROOT / "dist")
    done("release-check passed; the archives are in dist/")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--use"]:
        use_from_python(sys.argv[2:])
    elif sys.argv[1:2] == ["--use-light"]:
        use_light()
    else:
        main(sys.argv[1:])
