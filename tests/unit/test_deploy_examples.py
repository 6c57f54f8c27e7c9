"""The deployment examples are well formed, and what they run is understood by the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from ltx2rt.cli.__main__ import parse
from tests.unit.test_house_rules import ROOT

FOLDER = ROOT / "examples/deploy"


def docs(name: str) -> list[Any]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def commands() -> list[list[str]]:
    text = (FOLDER / "Dockerfile").read_text()
    found = [json.loads(line) for line in re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)]
    found.append(docs("compose.yaml")[0]["services"]["ltx2rt"]["command"])
    [container] = docs("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"]
    return [*found, container["args"]]


@pytest.mark.parametrize("command", commands(), ids=["Dockerfile", "compose", "kubernetes"])
def test_what_containers_run_is_understood(command: list[str]) -> None:
    options = parse(command)
    assert options.host == "0.0.0.0"
    assert options.keys is not None  # a public address without keys is refused


def test_batches_take_their_part() -> None:
    [job] = docs("kubernetes-batch.yaml")
    [container] = job["spec"]["template"]["spec"]["containers"]
    script = (FOLDER / "slurm-batch.sh").read_text()
    [line] = re.findall(r"^srun bash -c 'exec (ltx2rt .*)'$", script, re.MULTILINE)
    parts = job["spec"]["completions"]
    for text, index, count in (
        (" ".join(container["args"]), "$(JOB_COMPLETION_INDEX)", str(parts)),
        (line.removeprefix("ltx2rt "), "$SLURM_PROCID", "$SLURM_NTASKS"),
    ):
        assert f"--shard {index}/{count}" in text
        options = parse(text.replace(f"{index}/{count}", "1/4").split())
        assert (options.command, options.resume, options.shard.index) == ("batch", True, 1)


def test_a_ray_job_runs_on_its_workers() -> None:
    [job] = docs("kubernetes-ray.yaml")
    options = parse(job["spec"]["entrypoint"].removeprefix("ltx2rt ").split())
    assert (options.command, options.resume, options.runner) == ("batch", True, "ray")
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}  # no worker runs there
    for pod in (head["template"]["spec"], group["template"]["spec"]):
        [container] = pod["containers"]
        mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert {*mounted} == {v["name"] for v in pod["volumes"]}
        assert mounted == {"bundle": str(options.bundle), "data": str(options.jobs.parent)}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_names_fit_together() -> None:
    stateful, service = docs("kubernetes.yaml")
    pod = stateful["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    [container] = pod["spec"]["containers"]
    volumes = {v["name"] for v in pod["spec"]["volumes"]}
    volumes |= {c["metadata"]["name"] for c in stateful["spec"]["volumeClaimTemplates"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes
    grace = float(container["args"][container["args"].index("--grace") + 1])
    assert grace < pod["spec"]["terminationGracePeriodSeconds"]
    compose = docs("compose.yaml")[0]
    assert {*compose["services"]["ltx2rt"]["secrets"]} == {*compose["secrets"]}
