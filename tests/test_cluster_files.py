"""The clusters under ``cluster.yaml`` and ``jobs/cluster/``, read as Ray and KubeRay read them."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from lltopo.study_files import read_study

ROOT = Path(__file__).parent.parent
AWS, OWN, KUBERAY = (
    ROOT / name
    for name in ("cluster.yaml", "jobs/cluster/own-machines.yaml", "jobs/cluster/kuberay.yaml")
)
RAYJOB_SCHEMA = json.loads((Path(__file__).parent / "schemas" / "rayjob-v1.json").read_text())
launched = pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.stem)


def prepared(path: Path) -> dict[str, Any]:
    """A launcher's configuration with Ray's defaults put in."""
    return dict(prepare_config(yaml.safe_load(path.read_text())))


def pinned_ray() -> str:
    """The version of Ray that the project's own dependencies name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [ray] = [line for line in project["dependencies"] if line.startswith("ray[")]
    return ray.partition("~=")[2]


# -- the cluster launcher's --


@launched
def test_launcher_configs_pass_ray_s_own_schema(path: Path) -> None:
    config = prepared(path)
    validate_config(config)  # which raises what the test below expects
    assert config["cluster_name"]


@launched
def test_schema_refuses_what_it_does_not_know(path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError, match="head_setup_command"):
        validate_config(prepared(path) | {"head_setup_command": []})


@launched
def test_every_node_asks_for_the_token_and_gets_it(path: Path) -> None:
    config = prepared(path)
    mounts = {remote.rpartition("/")[2]: local for remote, local in config["file_mounts"].items()}
    assert mounts["auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        [start] = [command for command in commands if "ray start" in command]
        assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b.*; ray start", start)
    [start] = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in path.read_text() + json.dumps(config)


@launched
def test_what_is_installed_is_named(path: Path) -> None:
    config = prepared(path)
    assert "wheel" not in json.dumps(config)
    assert any("pip install" in command for command in config["setup_commands"])
    images = re.findall(r"rayproject/ray:(\S+?)-py311-[cg]pu", json.dumps(config))
    assert set(images) == ({pinned_ray()} if path == AWS else set())


def test_head_runs_nothing_and_gpu_nodes_offer_no_cpu() -> None:
    types = prepared(AWS)["available_node_types"]
    offered = {name: Counter(node["resources"]) for name, node in types.items()}
    assert offered["head"]["CPU"] == offered["head"]["GPU"] == 0
    assert offered["training"]["CPU"] == 0 < offered["training"]["GPU"]
    assert offered["analysis"]["GPU"] == 0 < offered["analysis"]["CPU"]
    # CPU and GPU are named, else the launcher would put in what the machine has
    assert all({"CPU", "GPU"} <= node["resources"].keys() for node in types.values())
    assert types["training"]["min_workers"] == types["analysis"]["min_workers"] == 0
    assert types["analysis"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    [start] = [line for line in prepared(OWN)["head_start_ray_commands"] if "--head" in line]
    assert "--num-cpus=0 --num-gpus=0" in start


def started_nodes(demands: list[dict[str, float]], gpu_node_cpus: int = 0) -> Counter[str]:
    """The nodes that Ray's autoscaler would add to our cluster's head for some demands."""
    raw = prepared(AWS)
    raw["available_node_types"]["training"]["resources"]["CPU"] = gpu_node_cpus
    config = AutoscalingConfig(configs=raw, skip_content_hash=True)
    types = config.get_node_type_configs()
    del types["head"]
    requests = [ResourceRequestUtil.make(demand) for demand in demands]
    asked = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(requests),
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(asked)
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})


def test_autoscaler_starts_gpu_nodes_for_training_alone() -> None:
    assert started_nodes([{"CPU": 1}] * 40) == {"analysis": 3}
    assert started_nodes([{"GPU": 1}] * 3) == {"training": 3}
    assert started_nodes([{"GPU": 0.5}] * 3) == {"training": 2}
    # never another GPU, be the analysis nodes all taken; which it would, had they a CPU to offer
    many = [{"CPU": 1.0}] * 1000 + [{"GPU": 1.0}]
    assert started_nodes(many) == {"analysis": 16, "training": 1}
    assert started_nodes(many, gpu_node_cpus=4) == {"analysis": 16, "training": 8}


# -- KubeRay's --


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not name, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner.setdefault("additionalProperties", False)
    return inner


def groups(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Head and workers of a RayJob's cluster."""
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


@pytest.fixture
def ray_job() -> dict[str, Any]:
    """The manifest."""
    job = yaml.safe_load(KUBERAY.read_text())
    assert isinstance(job, dict)
    return job


def test_ray_job_passes_kuberay_s_schema(ray_job: dict[str, Any]) -> None:
    jsonschema.validate(ray_job, closed(RAYJOB_SCHEMA))
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_job, closed(RAYJOB_SCHEMA))


def test_ray_job_asks_for_the_token(ray_job: dict[str, Any]) -> None:
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["rayVersion"] == pinned_ray()
    assert f"rayproject/ray:{pinned_ray()}-py311-gpu" in KUBERAY.read_text()
    for group in groups(ray_job):
        [container] = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f"-ray{pinned_ray()}")
        assert "env" not in container


def test_ray_job_s_gpu_pods_offer_no_cpu(ray_job: dict[str, Any]) -> None:
    offered = {}
    for group in groups(ray_job):
        [container] = group["template"]["spec"]["containers"]
        limits, params = container["resources"]["limits"], group["rayStartParams"]
        offered[group.get("groupName", "head")] = (
            int(params.get("num-cpus", limits["cpu"])),
            int(params.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        )
    assert offered == {"head": (0, 0), "training": (0, 1), "analysis": (15, 0)}
    assert all(group.get("minReplicas", 0) == 0 for group in groups(ray_job))


def test_ray_job_runs_a_study_that_there_is(ray_job: dict[str, Any]) -> None:
    program, command, study, out, uri, *overrides = ray_job["spec"]["entrypoint"].split()
    assert (program, command, out) == ("lltopo", "run", "--out")
    assert uri.startswith("s3://")
    inside = Path(study).relative_to("/home/ray/lltopo")
    assert overrides[::2] == ["--set"] * (len(overrides) // 2)
    resources = read_study(ROOT / inside, overrides[1::2]).resources
    assert (resources.device, resources.parallel_runs) == ("gpu", 2)
