"""Certificates in a model's folder: stored, read, and void as soon as a file that answers depend on changes."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny import build
from helpers.words import new_tokenizer

from adaexit_hf import Guarantee
from adaexit_hf.evaluation import certificate_file
from adaexit_hf.evaluation.certificate import Certificate
from adaexit_hf.evaluation.certificate_file import (
    CertificateFileError,
    code_of,
    save_certificate,
    sealed_files,
    verify_certificates,
)

CERTIFICATE = Certificate(
    threshold=0.75,
    guarantees=(Guarantee("changed_answers", 0.02), Guarantee("mean_layers", 2.5)),
    confidence=0.95,
    risks=(0.01, 2.0),
    bounds=(0.019, 2.2),
    mean_layers=2.0,
    saving=0.5,
    n=872,
    grouped=False,
    methods=("exact binomial", "betting"),
    repeats=0,
    fingerprint="00" * 16,
    criterion="confidence",
    settings={"exit_criterion": "confidence", "exit_temperatures": None},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certified") / "out"
    build("berxit", exit_threshold=0.75).save_pretrained(folder)
    new_tokenizer(["[MASK]", "good", "bad"]).save_pretrained(folder)
    save_certificate(folder, CERTIFICATE, max_tokens=32, data={"name": "dev.csv", "split": "test"})
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def reasons(folder: Path, name: str = "torch float32") -> tuple[str, ...]:
    return verify_certificates(folder)[name].void


def test_what_is_read_is_what_was_stored(folder) -> None:
    (sealed,) = verify_certificates(folder).values()
    assert sealed.certificate == CERTIFICATE and sealed.void == ()
    assert (sealed.runtime, sealed.precision, sealed.max_tokens) == ("torch", "float32", 32)
    assert str(sealed) == (
        "share of texts with another answer than at full depth: at most 0.02 and mean number of layers run: at most "
        "2.5; with 95 % confidence, on texts like the 872 rows of dev.csv test (computed with torch float32)"
    )


def test_a_changed_byte_in_any_sealed_file_voids(folder) -> None:
    draw = random.Random(0)
    for name in sealed_files(folder):
        content = (folder / name).read_bytes()
        for place in {0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(8))}:
            changed = bytearray(content)
            changed[place] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(changed)
            assert reasons(folder) == (f"{name} has changed",), (name, place)
        (folder / name).write_bytes(content)
    assert reasons(folder) == ()


def test_weights_config_tokenizer_and_code_are_sealed(folder) -> None:
    names = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modeling_berxit.py"}
    assert names <= set(sealed_files(folder))


def test_a_missing_or_a_new_file_voids(folder) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert reasons(folder) == ("adapter_config.json is new", "tokenizer.json is missing")


def test_descriptions_and_measurements_do_not_void(folder) -> None:
    names = ["README.md", "metrics.json", "report.html", "tradeoff.png", "seen_rows.npz", ".gitattributes", "LICENSE"]
    names += ["optimizer.pt", "scheduler.pt", "rng_state.pth", "all_results.json", "traffic.jsonl", "predictions.csv"]
    for name in names:
        (folder / name).write_text("changed")
    assert reasons(folder) == ()


@pytest.mark.parametrize(("name", "runtime"), [("torch float32", "torch"), ("onnx int8", "onnx")])
def test_other_code_of_the_package_voids(exported, monkeypatch, name, runtime) -> None:
    assert reasons(exported, name) == ()
    monkeypatch.setattr(certificate_file, "code_of", lambda used: "other" if used == runtime else code_of(used))
    assert reasons(exported, name)[0].startswith(f"the code for {runtime} is that of adaexit_hf")
    assert "another state of" in reasons(exported, name)[0]  # the version is the same
    assert reasons(exported, {"torch": "onnx int8", "onnx": "torch float32"}[runtime]) == ()


@pytest.mark.parametrize("path", [("certificate", "confidence"), ("max_tokens",), ("data", "name")])
def test_an_edited_certificate_is_void(folder, path) -> None:
    content = json.loads((folder / "certificate.json").read_text())
    *parents, last = path
    inside = content["certificates"]["torch float32"]
    for name in parents:
        inside = inside[name]
    inside[last] = 0.999
    (folder / "certificate.json").write_text(json.dumps(content))
    assert reasons(folder) == ("certificate.json was edited",)


def without(record: dict, *path: str) -> None:
    *parents, last = path
    for name in parents:
        record = record[name]
    del record[last]


@pytest.mark.parametrize("path", [("certificate", "n"), ("certificate", "guarantees"), ("made_with", "adaexit_hf")])
def test_a_certificate_without_a_field_is_an_error(folder, path) -> None:
    content = json.loads((folder / "certificate.json").read_text())
    without(content["certificates"]["torch float32"], *path)
    (folder / "certificate.json").write_text(json.dumps(content))
    if path[0] == "made_with":  # of which only the void ones are told
        assert reasons(folder) == ("certificate.json was edited",)
    else:
        with pytest.raises(CertificateFileError, match="is not what adaexit certify writes"):
            verify_certificates(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1}', '{"format_version": 9, "certificates": {}}'])
def test_a_file_that_is_no_certificate_is_an_error(folder, content) -> None:
    (folder / "certificate.json").write_text(content)
    with pytest.raises(CertificateFileError, match="certificate.json' "):
        verify_certificates(folder)


def test_without_a_file_there_are_no_certificates(tmp_path) -> None:
    assert verify_certificates(tmp_path) == {}


def test_a_model_with_another_threshold_or_criterion_is_refused(folder) -> None:
    with pytest.raises(ValueError, match="has the threshold 0.75, certified is 0.5"):
        save_certificate(folder, replace(CERTIFICATE, threshold=0.5))
    with pytest.raises(ValueError, match="has exit_criterion 'confidence', certified is 'entropy'"):
        save_certificate(folder, replace(CERTIFICATE, settings={"exit_criterion": "entropy"}))
    with pytest.raises(ValueError, match="has no config.json; save the model there first"):
        save_certificate(folder / "nowhere", CERTIFICATE)


def test_thresholds_per_exit_are_stored(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"exit_threshold": [0.9, 0.8, 0.7]}))
    save_certificate(folder, replace(CERTIFICATE, threshold=(0.9, 0.8, 0.7)))
    (sealed,) = verify_certificates(folder).values()
    assert sealed.certificate.threshold == (0.9, 0.8, 0.7) and sealed.void == ()


@pytest.fixture
def exported(folder) -> Path:
    """With an exported model of two precisions, as far as certificates look at it."""
    for precision in ("fp32", "int8"):
        (folder / "onnx" / precision).mkdir(parents=True)
        (folder / "onnx" / precision / "stage_01.onnx").write_text(precision)
    (folder / "onnx" / "tokenizer.json").write_text("{}")
    entries = {precision: {"exit_threshold": 0.75} for precision in ("fp32", "int8")}
    write_manifest(folder, {"format_version": 1, "criterion": "confidence", "precisions": entries})
    save_certificate(folder, CERTIFICATE, runtime="onnx", precision="int8")
    return folder


def write_manifest(folder: Path, facts: dict) -> None:
    (folder / "onnx" / "early_exit.json").write_text(json.dumps(facts))


def test_runtimes_have_certificates_of_their_own(exported) -> None:
    assert list(verify_certificates(exported)) == ["torch float32", "onnx int8"]
    (exported / "model.safetensors").write_text("changed")
    assert reasons(exported) == ("model.safetensors has changed",) and reasons(exported, "onnx int8") == ()


def test_a_changed_graph_or_tokenizer_voids(exported) -> None:
    (exported / "onnx" / "int8" / "stage_01.onnx").write_text("changed")
    (exported / "onnx" / "tokenizer.json").write_text("changed")
    assert reasons(exported, "onnx int8") == ("int8/stage_01.onnx has changed", "tokenizer.json has changed")
    assert reasons(exported) == ()


def test_what_is_said_of_another_precision_does_not_void(exported) -> None:
    facts = json.loads((exported / "onnx" / "early_exit.json").read_text())
    facts["precisions"]["fp32"]["exit_threshold"] = 0.5
    write_manifest(exported, facts)
    assert reasons(exported, "onnx int8") == ()
    facts["precisions"]["int8"]["exit_threshold"] = 0.5
    write_manifest(exported, facts)
    assert reasons(exported, "onnx int8") == ("early_exit.json has changed",)


def test_a_precision_that_is_gone_voids(exported) -> None:
    shutil.rmtree(exported / "onnx")
    assert "has no model that was exported in int8" in reasons(exported, "onnx int8")[0]
