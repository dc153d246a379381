"""Run by test_demo_page.py: space_client.py FOLDER. Push Spaces of FOLDER/out with the command; save what came of it.

A process of its own, since huggingface_hub reads where the Hub is when it is imported.
"""
# ruff: noqa: E402

import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.hub_server import Hub

# With hf_xet disabled, huggingface_hub itself sends large files in a way that its HTTP client calls old.
warnings.filterwarnings("ignore", "Use 'content", DeprecationWarning)
FOLDER, HUB = Path(sys.argv[1]), Hub()
os.environ.update(HUB.environment(FOLDER / "cache"))

import torch

from adaexit_hf.cli import main as cli

OUT = str(FOLDER / "out")


def called(*arguments: str) -> dict[str, Any]:
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()) as told:
        code = cli.main([*arguments])
    return {"code": code, "out": printed.getvalue(), "err": told.getvalue()}


def files(name: str) -> dict[str, bytes]:
    repo = HUB.repos[name]
    return repo.commits[repo.branches["main"]]


def main() -> None:
    torch.set_num_threads(1)
    HUB.start()
    results: dict[str, Any] = {"copy": called("space", OUT, "you/demo") | {"files": files("spaces/you/demo")}}
    results["titles"] = HUB.repos["spaces/you/demo"].titles
    with patch.dict(os.environ):
        del os.environ["HF_TOKEN"]
        results["no token"] = called("space", OUT, "you/other")
    called("push", OUT, "you/model")
    results["hub model"] = called("space", OUT, "you/small", "--model", "you/model")
    results["hub model"] |= {"files": files("spaces/you/small"), "sha": HUB.repos["you/model"].branches["main"]}
    results["other model"] = called("space", str(FOLDER / "changed"), "you/small", "--model", "you/model")
    HUB.close()
    torch.save(results, FOLDER / "found.pt")


if __name__ == "__main__":
    main()
