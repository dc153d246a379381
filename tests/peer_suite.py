"""Run Transformers' own model tests (`ModelTesterMixin`) on every method, and on the stock classifiers for comparison.

    python tests/peer_suite.py                              # all methods, all backbones: what `make peer` does
    python tests/peer_suite.py --backbones bert -k resize   # further arguments go to pytest

The tests are not part of the installed library, so the source archive of the installed version is fetched from PyPI
into `.peer/` once. The run fails if a method fails a test, or if a method skips what the stock class of the same
backbone passes, unless `CANNOT_APPLY` says why it must.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import unittest
import unittest.mock
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers import AlbertConfig, BertConfig, PreTrainedConfig, RobertaConfig

PEER = Path(__file__).resolve().parent.parent / ".peer"

SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
BACKBONES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZE, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZE, max_position_embeddings=64, pad_token_id=1),
    "albert": AlbertConfig(**SIZE, max_position_embeddings=64, embedding_size=16, num_hidden_groups=1),
}

# What the stock classes pass and ours do not run, each with the reason. CONTRIBUTING.md repeats this table.
CANNOT_APPLY: dict[str, str] = {
    "test_problem_types": "asks one config for several labels at once, which DACT-BERT does not define, nor does the "
    "mutual information of the depth-adaptive transformer, and for regression, which DeeBERT, DACT-BERT, FastBERT and "
    "The Right Tool do not define; these are refused with an error",
}
# The methods that run `test_problem_types` all the same, since they define all that it asks for.
EVERY_PROBLEM = ("berxit", "pabee")


def unpacked_tests() -> Path:
    """Folder that holds the `tests` package of the installed Transformers."""
    name = f"transformers-{transformers.__version__}"
    if not (PEER / name / "tests").is_dir():
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", str(PEER)]
        subprocess.run([sys.executable, *command, f"transformers=={transformers.__version__}"], check=True)
        with tarfile.open(PEER / f"{name}.tar.gz") as archive:
            archive.extractall(PEER, filter="data")
    return PEER / name


def model_tester_mixin() -> type:
    """`ModelTesterMixin`; the archive leaves out two modules that it imports and that encoders do not need."""
    missing = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
    for name, mixin in missing.items():
        stub = ModuleType(f"tests.{name}")
        setattr(stub, mixin, type(mixin, (), {}))
        package = f"tests.{name.split('.')[0]}"
        sys.modules |= {package: ModuleType(package), stub.__name__: stub}
    from tests.test_modeling_common import ModelTesterMixin

    return ModelTesterMixin


class Tester:
    """What the mixin asks of a model: a small config and a batch."""

    is_training = True
    batch_size, seq_length, num_labels = 3, 7, 3
    hidden_size, num_hidden_layers, num_attention_heads = (SIZE[name] for name in list(SIZE)[1:4])
    encoder_seq_length = key_length = seq_length

    def __init__(self, backbone: str, config_class: type[PreTrainedConfig] | None) -> None:
        self.backbone, self.config_class = backbone, config_class
        self.settings: dict[str, Any] = {}  # of the method's config

    def get_config(self) -> PreTrainedConfig:
        encoder = BACKBONES[self.backbone]
        if self.config_class is None:
            return type(encoder).from_dict(encoder.to_dict() | {"num_labels": self.num_labels})
        return self.config_class(encoder_config=encoder, num_labels=self.num_labels, **self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, Any]]:
        from tests.test_modeling_common import ids_tensor, random_attention_mask

        shape = (self.batch_size, self.seq_length)
        ids = ids_tensor(shape, SIZE["vocab_size"] - 2) + 2  # 0 and 1 are the padding tokens
        return self.get_config(), {"input_ids": ids, "attention_mask": random_attention_mask(shape)}


def cases() -> dict[str, type[unittest.TestCase]]:
    """One test class per method and backbone, and one per backbone for the stock classifier."""
    from adaexit_hf.models import METHODS

    mixin, found = model_tester_mixin(), {}

    def dispatch(case: Any) -> None:
        # The variant for composite models wants a vision part; what stock encoders are asked holds for ours too.
        case._is_composite = False
        mixin.test_sdpa_can_dispatch_non_composite_models(case)

    def retain_grad(case: Any) -> None:
        # It takes the gradient of a logit in training mode, which ours refuse there; in eval mode the same must hold.
        (model_class,) = case.all_model_classes
        new = model_class._from_config
        with unittest.mock.patch.object(
            model_class, "_from_config", lambda *args, **kwargs: new(*args, **kwargs).eval()
        ):
            mixin.test_retain_grad_hidden_states_attentions(case)

    def problem_types(case: Any) -> None:
        # It changes the problem of one config; patience is the criterion that classes, label sets and numbers have.
        case.model_tester.settings = {"exit_criterion": "patience"}
        mixin.test_problem_types(case)

    for backbone in os.environ["PEER_BACKBONES"].split(","):
        stock = transformers.AutoModelForSequenceClassification._model_mapping[type(BACKBONES[backbone])]
        for config_class, model_class in [(None, stock), *((model.config_class, model) for model in METHODS.values())]:

            def set_up(case: Any, config_class: Any = config_class, backbone: str = backbone) -> None:
                case.model_tester = Tester(backbone, config_class)

            body = {"all_model_classes": (model_class,), "_is_composite": config_class is not None, "setUp": set_up}
            if config_class is not None:
                body["test_sdpa_can_dispatch_non_composite_models"] = dispatch
                body["test_retain_grad_hidden_states_attentions"] = retain_grad
                body |= {test: unittest.skip(reason)(getattr(mixin, test)) for test, reason in CANNOT_APPLY.items()}
                if config_class.model_type in EVERY_PROBLEM:
                    body["test_problem_types"] = problem_types
            name = f"Test_{backbone}_{'stock' if config_class is None else model_class.__name__}"
            found[name] = type(name, (mixin, unittest.TestCase), body)
    return found


class Tally:
    """Pytest plugin: counts outcomes per class, and compares each class with the stock one of its backbone."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)  # class -> test -> outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped or report.failed:
            _, case, test = report.nodeid.split("::")
            if self.outcomes[case].get(test) != "failed":  # one failed subtest is enough
                self.outcomes[case][test] = report.outcome

    def lost(self) -> list[str]:
        """Tests that a method skips without a reason in the table, though the stock class passes them."""
        return [
            f"{case}::{test}"
            for case, tests in self.outcomes.items()
            for test, outcome in tests.items()
            if outcome == "skipped" and test not in CANNOT_APPLY
            and self.outcomes.get(f"Test_{case.split('_')[1]}_stock", {}).get(test) == "passed"
        ]  # fmt: skip

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for case, tests in self.outcomes.items():
            counts = [list(tests.values()).count(outcome) for outcome in ("passed", "skipped", "failed")]
            terminalreporter.write_line("{:52} {:4} passed {:4} skipped {:4} failed".format(case, *counts))
        for test in self.lost():
            terminalreporter.write_line(f"SKIPPED, but the stock class passes it: {test}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default=",".join(BACKBONES), help=f"of {', '.join(BACKBONES)}")
    arguments, options = parser.parse_known_args()
    for backbone in arguments.backbones.split(","):
        if backbone not in BACKBONES:
            parser.error(f"--backbones: got '{backbone}'; choose from {', '.join(BACKBONES)}")
    os.environ["PEER_BACKBONES"] = arguments.backbones
    torch.set_num_threads(1)  # the models are tiny
    root = unpacked_tests()
    sys.path.insert(0, str(root))
    os.chdir(root)  # some tests read files next to themselves
    tally = Tally()
    command = ["-q", "-c", os.devnull, "--rootdir", str(root), "-p", "no:cacheprovider", "-W", "ignore", "--tb=short"]
    status = pytest.main([*command, *options, __file__], plugins=[tally])
    return int(status) or int(bool(tally.lost()))


if __name__ == "__main__":
    sys.exit(main())
elif "PEER_BACKBONES" in os.environ:  # pytest collects this very file
    globals().update(cases())
