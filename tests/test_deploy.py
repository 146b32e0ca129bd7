"""The files in deploy/ and their documentation fit the server: options, metrics and limits."""

import json
import re
from pathlib import Path

import yaml

from icefall_pathways import cli
from icefall_pathways.serve.limits import Limits
from icefall_pathways.serve.metrics import Metrics

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


def read(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


def entrypoint():
    """Return the words of the image's command after `icefall-pathways serve`."""
    words = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", read("Dockerfile"), re.MULTILINE)[1])
    assert words[:2] == ["icefall-pathways", "serve"]
    return words[2:]


def container():
    deployment, *_ = yaml.safe_load_all(read("kubernetes.yaml"))
    (item,) = deployment["spec"]["template"]["spec"]["containers"]
    return item


def test_server_accepts_the_options_of_every_file():
    unit = re.search(r"^ExecStart=\S+ serve (.*)$", read("icefall-pathways@.service"), re.MULTILINE)[1]
    compose = yaml.safe_load(read("compose.yaml"))["services"]["speech"]["command"]
    for words in (unit.replace("%i", "6007").split(), entrypoint() + compose, entrypoint() + container()["args"]):
        config = cli.read_config("serve", words)
        assert str(config.exp_dir) in ("/model", "/srv/model")


def test_metrics_exist():
    """In every page, and deploy.md describes all but those of reloads."""
    metrics = set(re.findall(r"^# TYPE (\w+) ", Metrics().format().decode(), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), *DEPLOY.iterdir()]
    used = {page.name: set(re.findall(r"\bpathways_\w+", page.read_text(encoding="utf-8"))) for page in pages}
    assert {name: names - metrics for name, names in used.items() if names - metrics} == {}
    assert used["kubernetes.yaml"] and used["deploy.md"] | used["serving.md"] == {
        name for name in metrics if not name.endswith("_created")
    }


def test_streams_have_time_to_end():
    deployment, *_ = yaml.safe_load_all(read("kubernetes.yaml"))
    seconds = {
        "kubernetes": deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        "compose": int(yaml.safe_load(read("compose.yaml"))["services"]["speech"]["stop_grace_period"].rstrip("s")),
        "systemd": int(re.search(r"^TimeoutStopSec=(\d+)$", read("icefall-pathways@.service"), re.MULTILINE)[1]),
    }
    assert min(seconds.values()) >= Limits().drain_timeout + 10, seconds


def test_autoscaler_acts_before_streams_are_refused():
    *_, autoscaler = yaml.safe_load_all(read("kubernetes.yaml"))
    targets = {
        metric["pods"]["metric"]["name"]: metric["pods"]["target"]["averageValue"]
        for metric in autoscaler["spec"]["metrics"]
    }
    config = cli.read_config("serve", entrypoint() + container()["args"])
    assert float(targets["pathways_load"].rstrip("m")) / 1000 < config.limits.max_load
    assert float(targets["pathways_open_streams"]) < config.limits.max_streams


def test_proxy_accepts_uploads_of_the_default_size():
    megabytes = float(re.search(r"client_max_body_size (\d+)m;", read("nginx.conf"))[1])
    assert megabytes == Limits().max_upload_mb


def test_image_has_all_files_that_it_copies():
    """Of the folder, only those files are sent to the daemon that .dockerignore lists."""
    listed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in listed)
    requirements = re.findall(r"requirements-current\.\w+", read("Dockerfile"))
    assert {"icefall_pathways", "pyproject.toml", "README.md", "LICENSE", *requirements} <= listed
