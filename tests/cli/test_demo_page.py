"""`adaexit demo` and `adaexit space`: what they refuse, write and push; the Space, as it runs without this package."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import gradio
import httpx
import pytest
import torch
import yaml
from helpers.fresh import free_port, run_script
from helpers.tiny import build
from helpers.words import new_tokenizer

from adaexit_hf.cli import demo as command
from adaexit_hf.cli import main as cli
from adaexit_hf.demo_app import app
from adaexit_hf.utils import imports

HELPERS = Path(__file__).parents[1] / "helpers"
ROWS = [f"w{number} w{number + 1}" for number in range(4, 44)]


def save(folder: Path, **settings: Any) -> str:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    build("right-tool", **{"num_labels": 2, "pairs": False} | names | settings).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def rows(place: Path) -> Iterator[list[str]]:
    """Flags for labelled rows."""
    path = place / "dev.csv"
    path.write_text("text,label\n" + "".join(f"{text},{('bad', 'good')[len(text) % 2]}\n" for text in ROWS))
    cache, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, place / "cache"
    yield ["--validation_file", str(path)]
    datasets.config.HF_DATASETS_CACHE = cache


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> str:
    model, tokenizer = build("right-tool", num_labels=2), new_tokenizer()
    scores = [app.run(model, tokenizer, [text], None).scores[0].item() for text in ROWS]
    return save(place / "out", exit_threshold=round(sorted(scores)[len(ROWS) // 2], 4))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main([*arguments]) == 1
    return capsys.readouterr().err


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `adaexit demo` builds and launches, without a server."""
    found: list[Any] = []

    class Page:
        def block_thread(self) -> None:
            found.append("blocked")

    def built(*arguments: Any) -> Page:
        found.extend(arguments)
        return Page()

    monkeypatch.setattr(app, "build", built)
    monkeypatch.setattr(app, "launch", lambda page, **options: found.append(options))
    return found


def test_demo_listens_here_only_and_says_where(checkpoint: str, opened: list[Any], capsys: Any) -> None:
    assert cli.main(["demo", checkpoint, "--port", "0"]) == 0
    _, _, facts, options, last = opened
    assert options["server_name"] == "127.0.0.1" and options["server_port"] > 0 and last == "blocked"
    told = capsys.readouterr().err
    assert f"on http://127.0.0.1:{options['server_port']}, Ctrl-C stops it" in told
    assert facts["curve"] == facts["examples"] == [] and facts["model"] == "out" and facts["max_tokens"] == 32
    assert "no trade-off curve" in told and "no examples of easy and hard texts: pass labelled rows" in told


def test_demo_takes_curve_and_examples_from_labelled_rows(checkpoint: str, opened: list[Any], rows: list[str]) -> None:
    assert cli.main(["demo", checkpoint, "--port", "0", *rows]) == 0
    model, _, facts, *_ = opened
    assert facts["dataset"] == "dev.csv" and facts["metric"] == "accuracy"
    assert model.config.exit_threshold in [point[0] for point in facts["curve"]]
    assert {text for example in facts["examples"] for text in example["texts"]} <= set(ROWS)
    assert len({example["layer"] for example in facts["examples"]}) > 1


def test_demo_uses_another_threshold(checkpoint: str, opened: list[Any]) -> None:
    assert cli.main(["demo", checkpoint, "--port", "0", "--exit_threshold", "none"]) == 0
    assert opened[0].config.exit_threshold is None


def test_demo_shows_the_curve_of_the_folder_if_it_is_the_models(
    checkpoint: str, opened: list[Any], rows: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = str(shutil.copytree(checkpoint, tmp_path / "measured"))
    assert cli.main(["report", folder, *rows]) == 0
    assert cli.main(["demo", folder, "--port", "0"]) == 0
    facts = opened[2]
    measured = json.loads((tmp_path / "measured" / "curve.json").read_text())
    assert [point[0] for point in facts["curve"]] == [point["threshold"] for point in measured]
    assert (facts["dataset"], facts["metric"]) == ("dev.csv", "accuracy")
    config = json.loads((tmp_path / "measured" / "config.json").read_text()) | {"exit_criterion": "margin"}
    (tmp_path / "measured" / "config.json").write_text(json.dumps(config))
    for stale in (["demo", folder, "--port", "0"], ["space", folder, "you/demo", "--output", str(tmp_path / "new")]):
        message = refused(capsys, *stale)
        assert "curve.json' was measured at exit_criterion 'confidence', but the model's is 'margin'" in message


def test_the_curve_of_the_newest_report_has_the_name_of_its_rows(
    checkpoint: str, opened: list[Any], rows: list[str], tmp_path: Path
) -> None:
    folder = str(shutil.copytree(checkpoint, tmp_path / "measured"))
    other = shutil.copy(rows[1], tmp_path / "other.csv")
    assert cli.main(["report", folder, *rows]) == cli.main(["report", folder, "--validation_file", str(other)]) == 0
    assert cli.main(["demo", folder, "--port", "0"]) == 0
    assert opened[2]["dataset"] == "other.csv"


def test_a_name_on_the_hub_has_no_curve_and_says_how_to_get_one(checkpoint: str, capsys: Any) -> None:
    assert command.measured_before(Path("you/berxit"), None) == {}
    assert "run hf download you/berxit --local-dir FOLDER first" in capsys.readouterr().err


def test_long_texts_are_no_examples_and_the_message_says_so(
    checkpoint: str, opened: list[Any], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"{text * 60},{('bad', 'good')[len(text) % 2]}\n" for text in ROWS))
    assert cli.main(["demo", checkpoint, "--port", "0", "--validation_file", str(path)]) == 0
    assert opened[2]["examples"] == []
    assert "or have more than 400 characters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "8"], "batch_size: got 8 without rows; pass --validation_file"),
        (["--host", "nowhere.invalid"], "host, port: cannot listen on nowhere.invalid:7860 ("),
        (["--port", "70000"], "port: got 70000; pass a number from 0 to 65535"),
        (["--port", "0", "--exit_threshold", "7"], "exit_threshold: got 7.0"),
        (["--metrics", "f1"], "metrics: got ['f1'] without rows; pass --validation_file"),
    ],
)
def test_demo_refuses_bad_flags(checkpoint: str, flags: list[str], message: str, capsys: Any) -> None:
    assert message in refused(capsys, "demo", checkpoint, *flags)


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(
    checkpoint: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(command, "load", lambda *_: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port: cannot listen on 127.0.0.1:{port}" in refused(capsys, "demo", checkpoint, "--port", port)


@pytest.mark.parametrize("arguments", [["demo"], ["space", "you/demo"]])
def test_without_gradio_the_extra_is_named(
    checkpoint: str, arguments: list[str], capsys: Any, monkeypatch: Any
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=module)

    monkeypatch.setattr(imports.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"you need gradio, .* call pip install adaexit_hf\[demo-app\]"):
        options = command.DemoOptions() if arguments == ["demo"] else command.SpaceOptions()
        getattr(command, arguments[0])(options, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out", "you/de mo"], "repo_id: got 'you/de mo', which is no name on the Hub; pass e.g. you/berxit-demo"),
        (["out", "you/demo", "--model", "a/b/c"], "model: got 'a/b/c', which is no name on the Hub"),
        (["out", "you/demo", "--output", "space"], "output: 'space' exists and is not empty; pass another folder"),
        (["out", "you/demo", "--output", "out/space"], "output: 'out/space' is in the model's folder; pass another"),
        (["out", "you/demo", "--output", "new", "--private"], "private: got True with --output, with which nothing"),
        (["nowhere", "you/demo", "--output", "new"], "folder: 'nowhere' has no model"),
        (["out", "you/demo", "--label_column", "x", "--output", "new"], "label_column: got 'x' without rows"),
    ],
)
def test_space_refuses_wrong_use(
    checkpoint: str, arguments: list[str], message: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(Path(checkpoint).parent)
    Path("space").mkdir(exist_ok=True)
    Path("space", "notes.txt").touch()
    assert message in refused(capsys, "space", *arguments)
    shutil.rmtree("space")


@pytest.fixture(scope="module")
def space(checkpoint: str, rows: list[str], place: Path) -> Path:
    folder = place / "space"
    Path(checkpoint, "training_args.bin").write_bytes(b"secret")
    Path(checkpoint, "report.html").write_text("texts")
    flags = ["--license", "mit", "--output", str(folder)]
    assert cli.main(["space", checkpoint, "you/tiny-demo", *flags, *rows]) == 0
    return folder


def test_a_space_has_the_page_the_model_and_nothing_else(space: Path) -> None:
    assert {path.name for path in space.iterdir()} == {"README.md", "app.py", "demo.json", "model", "requirements.txt"}
    assert (space / "app.py").read_bytes() == Path(app.__file__).read_bytes()
    inside = {path.name for path in (space / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_right_tool.py"} <= inside
    assert not {"training_args.bin", "report.html"} & inside


def test_the_header_of_a_space_is_what_the_hub_reads(space: Path) -> None:
    header = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    expected = {
        "title": "tiny-demo",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "app_file": "app.py",
        "license": "mit",
        "python_version": "3.11",
    }
    assert header | expected == header and "models" not in header


def test_the_requirements_are_those_of_the_package(space: Path) -> None:
    project = (Path(command.__file__).parents[2] / "pyproject.toml").read_text()
    for requirement in (space / "requirements.txt").read_text().split():
        assert f'"{requirement}"' in project


def test_published_texts_are_printed(
    space: Path, checkpoint: str, rows: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert cli.main(["space", checkpoint, "you/tiny-demo", "--output", str(tmp_path / "other"), *rows]) == 0
    told = capsys.readouterr().err
    examples = json.loads((tmp_path / "other" / "demo.json").read_text())["examples"]
    printed = re.findall(r"published as an example: (.*)", told)
    assert examples and printed == [" / ".join(example["texts"]) for example in examples]
    assert (tmp_path / "other" / "demo.json").read_bytes() == (space / "demo.json").read_bytes()


@pytest.fixture(scope="module")
def running(space: Path, place: Path) -> Iterator[str]:
    """The address of the Space, which runs where adaexit_hf cannot be imported."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    settings = {"GRADIO_SERVER_PORT": str(port), "HF_MODULES_CACHE": str(place / "modules"), "OMP_NUM_THREADS": "1"}
    with open(place / "log.txt", "w") as log:
        arguments = [sys.executable, "-u", str(HELPERS / "run_space.py"), str(space)]
        process = subprocess.Popen(arguments, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                if "Running on local URL" in (place / "log.txt").read_text() or process.poll() is not None:
                    break
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
            assert process.poll() is None, (place / "log.txt").read_text()
            yield address
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_a_space_answers_like_the_model_without_the_package(running: str, checkpoint: str) -> None:
    from transformers import AutoModelForSequenceClassification

    asked = httpx.post(f"{running}/gradio_api/call/classify", json={"data": [True, 1.0, ROWS[0]]}, timeout=60)
    stream = httpx.get(f"{running}/gradio_api/call/classify/{asked.json()['event_id']}", timeout=60).text
    html = json.loads(re.search(r"^data: (.*)$", stream, re.MULTILINE)[1])[0]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    assert html == app.result_html(model, app.run(model, new_tokenizer(), [ROWS[0]], model.config.exit_threshold))


@pytest.mark.slow
def test_the_page_works_by_keyboard_and_asks_nobody_else(running: str, space: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    facts = json.loads((space / "demo.json").read_text())
    example = facts["examples"][0]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark").new_page()
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(running)
        page.get_by_role("textbox", name="Text").focus()
        page.keyboard.type("<b>w7</b> ${1+1} w8")
        page.keyboard.press("Enter")
        page.locator("#result table").wait_for()
        page.keyboard.press("Tab")  # Classify
        page.keyboard.press("Tab")  # the model's own threshold
        assert page.locator("#own input").evaluate("box => box === document.activeElement")
        marked = page.locator("#curve .hint").inner_text()
        slider = page.locator("#threshold input[type=range]")
        before = slider.input_value()
        slider.focus()
        page.keyboard.press("End")
        page.get_by_text("Marked, at full depth:").wait_for()
        assert not page.locator("#own input").is_checked()
        page.locator("#own input").focus()
        page.keyboard.press("Space")
        page.get_by_text(marked).wait_for()
        assert slider.input_value() == before
        page.get_by_role("button", name="Which words decided?").focus()
        page.keyboard.press("Enter")
        page.locator("#words .words").wait_for()
        assert "<b>w7" in page.locator("#words .words").inner_text()
        assert "${1+1}" in page.locator("#words .words").inner_text()
        page.get_by_role("button", name=app.example_name(example)).focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.querySelector('#text-0 textarea').value === '{example['texts'][0]}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator("#result .table").evaluate("each => each.scrollWidth <= each.clientWidth")
        unnamed = """[...document.querySelectorAll('input, textarea')].filter(
            (each) => each.offsetParent && !each.labels.length && !each.ariaLabel).length"""
        assert page.evaluate(unnamed) == 0
        assert [url for url in asked if not url.startswith((running, "data:", "blob:"))] == []
        browser.close()


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the true client sent to a Hub of our own."""
    folder = tmp_path_factory.mktemp("hub")
    save(folder / "out", exit_threshold=0.5)
    save(folder / "changed", exit_threshold=0.7)
    run_script(HELPERS / "space_client.py", str(folder))
    return torch.load(folder / "found.pt")


@pytest.mark.slow
def test_a_space_is_pushed_in_one_commit(pushed: dict[str, Any]) -> None:
    found = pushed["copy"]
    assert found["code"] == 0, found["err"]
    assert found["out"].strip().endswith("/spaces/you/demo")
    assert pushed["titles"][1:] == ["Upload a page to try early exit"]
    assert {"app.py", "README.md", "demo.json", "requirements.txt", "model/model.safetensors"} <= found["files"].keys()


@pytest.mark.slow
def test_a_space_may_load_its_model_from_the_hub(pushed: dict[str, Any]) -> None:
    found = pushed["hub model"]
    assert found["code"] == 0, found["err"]
    facts = json.loads(found["files"]["demo.json"])
    assert (facts["hub_model"], facts["revision"]) == ("you/model", found["sha"])
    assert not [name for name in found["files"] if name.startswith("model/")]
    assert b"models:\n- you/model\n" in found["files"]["README.md"]


@pytest.mark.slow
def test_what_cannot_be_pushed_is_refused_early(pushed: dict[str, Any]) -> None:
    assert "repo_id: there is no Hub token to push with; call hf auth login" in pushed["no token"]["err"]
    message = pushed["other model"]["err"]
    assert "model: 'you/model' has exit_threshold 0.5, but" in message and "has 0.7; call adaexit push" in message
