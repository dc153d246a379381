"""GitHub's workflows run commands of the Makefile, on every supported Python, with as few rights as possible."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
JOBS = [(workflow, job) for workflow, content in WORKFLOWS.items() for job in content["jobs"]]
every_job = pytest.mark.parametrize(("workflow", "job"), JOBS)


def steps(workflow: str, job: str) -> list[dict[str, Any]]:
    return WORKFLOWS[workflow]["jobs"][job]["steps"]


@every_job
def test_commands_are_targets_of_the_makefile(workflow: str, job: str) -> None:
    for step in steps(workflow, job):
        for command in step.get("run", "").splitlines():
            make, *targets = command.split()
            assert make == "make", command
            assert targets and set(targets) <= TARGETS, command


@every_job
def test_actions_are_pinned_to_a_major_version_or_a_commit(workflow: str, job: str) -> None:
    for step in steps(workflow, job):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@((release/)?v\d+|[0-9a-f]{40})", step["uses"]), step["uses"]


@every_job
def test_jobs_end_and_may_do_only_what_they_must(workflow: str, job: str) -> None:
    content = WORKFLOWS[workflow]["jobs"][job]
    assert content["timeout-minutes"] <= 60
    assert WORKFLOWS[workflow]["permissions"] == {"contents": "read"}
    publishes = any("pypi-publish" in step.get("uses", "") for step in content["steps"])
    assert content.get("permissions") == ({"id-token": "write"} if publishes else None)
    assert content.get("environment") == ("pypi" if publishes else None)


def test_every_check_runs() -> None:
    run = {step["run"] for workflow, job in JOBS for step in steps(workflow, job) if "run" in step}
    assert {f"make {target}" for target in ("lint", "types", "test", "test-oldest", "docs", "release-check")} <= run


def test_every_supported_python_is_tested() -> None:
    tested = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classified = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"]]
    assert tested == [match[1] for match in classified if match]
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_a_new_push_cancels_tests_but_no_release() -> None:
    cancels = {name: content["concurrency"]["cancel-in-progress"] for name, content in WORKFLOWS.items()}
    assert cancels == {"tests": True, "release": False}


def test_nothing_is_published_that_was_not_checked() -> None:
    release = WORKFLOWS["release"]["jobs"]
    assert release["publish"]["needs"] == "build"
    (checked,) = (step for step in release["build"]["steps"] if step.get("run") == "make release-check")
    assert checked["env"] == {"RELEASE_TAG": "${{ github.ref_name }}"}


def test_pre_commit_has_the_ruff_of_the_constraints() -> None:
    hooks = {repo["repo"]: repo for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]}
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]
    (pinned,) = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert ruff["rev"] == f"v{pinned}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


@pytest.mark.parametrize("form", ["bug_report", "feature_request"])
def test_issue_forms_ask_under_different_names(form: str) -> None:
    content = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text())
    assert {"name", "description", "body"} <= content.keys()
    names = [question["id"] for question in content["body"]]
    assert len(set(names)) == len(names)
