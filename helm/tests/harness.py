"""Renders the chart under each Helm, and asks the real program about what comes out."""

import functools
import os
import pathlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "dotmac-license-proxy"
VALUES = ROOT / "helm" / "tests" / "values"
CANARY = CHART / "canary"

HELMS = ("3.17", "4.3")
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")

# What is rendered everywhere: names of files, later ones beating earlier ones.
COMBINATIONS = {
    "minimal": ["minimal"],
    "everything": ["everything"],
    "plain": ["minimal", "plain"],
    "loopback": ["minimal", "loopback"],
    "env": ["minimal", "env"],
    "relay": ["relay"],
    "own-deployment": ["minimal", "own-deployment"],
    "existing": ["minimal", "existing"],
    "file": ["minimal", "file"],
    **{f"canary-{percent}": ["minimal", CANARY / f"values-{percent}.yaml"] for percent in (5, 25, 50, 100)},
}

_home = tempfile.TemporaryDirectory(prefix="helm-home-")


class HelmFailed(Exception):
    """What Helm said when it failed."""


def file_of(name) -> str:
    return str(name if isinstance(name, pathlib.Path) else VALUES / f"{name}.yaml")


def run_helm(version: str, *arguments: str) -> str:
    program = ROOT / ".test-tools" / "bin" / f"helm-{version}"
    if not program.exists():
        raise AssertionError(f"{program} is missing: scripts/test installs it")
    environment = {"PATH": os.environ["PATH"], "HOME": _home.name}
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)
    if ended.returncode != 0:
        raise HelmFailed(ended.stdout + ended.stderr)
    return ended.stdout


def arguments_of(files, changes: dict | None) -> list[str]:
    """`-f` for each file, and one more for what a test changes."""
    arguments = [word for name in files for word in ("-f", file_of(name))]
    if changes:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=_home.name, delete=False) as more:
            yaml.safe_dump(changes, more)
        arguments += ["-f", more.name]
    return arguments


def template(version="4.3", kubernetes="1.37.0", files=("minimal",), changes=None, chart=CHART) -> list[dict]:
    """The objects that the chart renders to, for a release named `shop`."""
    arguments = arguments_of(files, changes)
    text = run_helm(version, "template", "shop", str(chart), "-n", "prod", "--kube-version", kubernetes, *arguments)
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@functools.cache
def rendered(combination: str, version="4.3", kubernetes="1.37.0") -> list[dict]:
    return template(version, kubernetes, COMBINATIONS[combination])


def refusal(version="4.3", kubernetes="1.37.0", files=("minimal",), changes=None) -> str:
    """What Helm says about values that must not render."""
    try:
        template(version, kubernetes, files, changes)
    except HelmFailed as failed:
        return str(failed)
    raise AssertionError(f"rendered all the same: {files} {changes}")


def notes(version="4.3", files=("minimal",), changes=None) -> str:
    """What somebody reads after installing."""
    arguments = arguments_of(files, changes)
    if version.startswith("3."):
        # Helm 3 installs nothing without a cluster, not even dry: there, the notes are rendered by a template.
        objects = template(version, files=files, changes=changes, chart=_with_notes())
        return only(objects, "ConfigMap", "notes")["data"]["text"]
    text = run_helm(version, "install", "shop", str(CHART), "-n", "prod", "--dry-run=client", *arguments)
    return text.split("\nNOTES:\n", 1)[1]


@functools.cache
def _with_notes() -> pathlib.Path:
    chart = pathlib.Path(_home.name) / "with-notes"
    subprocess.run(["cp", "-r", CHART, chart], check=True)
    text = 'text: {{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    shell = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: notes }}\ndata:\n  {text}\n"
    (chart / "templates" / "notes.yaml").write_text(shell)
    return chart


def parent(version="4.3") -> pathlib.Path:
    """The example of a team's own chart, with this one as its dependency."""
    return _parent(version)


@functools.cache
def _parent(version: str) -> pathlib.Path:
    place = pathlib.Path(_home.name) / version / "helm"
    for folder in ("dotmac-license-proxy", "tests/parent"):
        copy = place / folder
        copy.mkdir(parents=True)
        subprocess.run(["cp", "-r", f"{ROOT / 'helm' / folder}/.", copy], check=True)
    chart = place / "tests" / "parent"
    run_helm(version, "dependency", "update", str(chart))
    return chart


def only(objects: list[dict], kind: str, name: str | None = None) -> dict:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    names = [o["metadata"]["name"] for o in objects if o["kind"] == kind]
    assert len(found) == 1, f"{kind} {name}: {names}"
    return found[0]


def all_of(objects: list[dict], kind: str) -> list[dict]:
    return [o for o in objects if o["kind"] == kind]


def pod_specs(objects: list[dict]) -> list[tuple[str, dict]]:
    """Every pod that the objects lead to, as (kind/name, spec)."""
    found = []
    for o in objects:
        spec = o.get("spec", {})
        if o["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        pod = spec if o["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if pod:
            found.append((f"{o['kind']}/{o['metadata']['name']}", pod))
    return found


def containers(pod: dict) -> list[dict]:
    return (pod.get("initContainers") or []) + pod["containers"]


def container(pod: dict, name: str) -> dict:
    (found,) = [c for c in containers(pod) if c["name"] == name]
    return found


def deployment(objects: list[dict], name="shop-dotmac-license-proxy") -> dict:
    """The pod of a Deployment."""
    return only(objects, "Deployment", name)["spec"]["template"]


def config_of(objects: list[dict]) -> str:
    (text,) = [o["data"]["config.yaml"] for o in all_of(objects, "ConfigMap") if "config.yaml" in o["data"]]
    return text


def in_parallel(work, items) -> None:
    """Each item by itself; the first failure counts."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(work, item) for item in items]:
            done.result()


def program() -> str:
    path = os.environ.get("DOTMAC_LICENSE_PROXY", "")
    if not os.access(path, os.X_OK):
        raise AssertionError(f"DOTMAC_LICENSE_PROXY={path!r} is no program: build it by `cargo build` and name it, as scripts/test does")
    return path


def check_config(text: str, *arguments: str, beside: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Ask the program whether it would take this configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "config.yaml"
        file.write_text(text)
        for name, content in (beside or {}).items():
            (file.parent / name).write_text(content)
        command = [program(), "check-config", "--config", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={})
