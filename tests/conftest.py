"""Every test is offline, deterministic and single-threaded."""
# ruff: noqa: E402

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import gc

gc.disable()  # until all is imported: there is nothing to collect yet

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import set_seed

torch.set_num_threads(1)
for accelerator in (torch.cuda, torch.xpu, torch.mtia):  # each formats the stack at every seeding, for a later error
    accelerator.traceback = SimpleNamespace(format_stack=list)
pytest.register_assert_rewrite("helpers")
collect_ignore = ["helpers"]  # scripts among them do their work when they are imported
LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_configure(config: pytest.Config) -> None:
    """The process that starts the workers makes a folder for what they share: `helpers.exports`."""
    if not hasattr(config, "workerinput"):
        os.environ["ADAEXIT_SHARED_BY_WORKERS"] = tempfile.mkdtemp(prefix="adaexit-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["ADAEXIT_SHARED_BY_WORKERS"], ignore_errors=True)


def pytest_collection_finish() -> None:
    """What was imported stays: Python need not look through it at every full collection."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            pytest.fail(f"a test opened a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    set_seed(0)


@pytest.fixture(params=["right", "left", "none"])
def padding(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files for the pictures of model cards, which take a third of a short run; other tests draw them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: path.touch())


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny pretrained encoder that knows the words of `helpers.reviews`."""
    from helpers.reviews import save_encoder

    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def demo_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with the words of the demo's grammar."""
    from demo_sentences import generate
    from helpers.reviews import save_encoder

    words = sorted({word for sentence in generate(1000)[0] for word in re.findall(r"[a-z]+", sentence.text.lower())})
    return save_encoder(tmp_path_factory.mktemp("demo_encoder"), words, positions=64, lowercase=True)
