"""The house itself: what is shipped, what stands where, and that the papers agree with the code."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

import dyefreenet

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this one
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("_"))
MODULES = sorted(m.name for m in pkgutil.walk_packages(dyefreenet.__path__, "dyefreenet."))


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def tracked() -> list[Path]:
    """Text files of the project: those that git knows, or would take."""
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listing.returncode:
        pytest.skip("no git checkout here")
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    binary = {".png", ".safetensors", ".npz", ".dcm", ".gz", ".parquet", ".ico"}
    return [path for path in paths if path.is_file() and path.suffix not in binary]


# platform/ is a folder on the path, and must never look like the standard library's module.


def test_platform_is_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("path", [ROOT, ROOT / "platform"])
def test_the_standard_library_keeps_its_platform(path):
    code = "import platform; assert platform.system(); print(platform.__file__)"
    result = run(sys.executable, "-c", code, PYTHONPATH=str(path))
    assert result.returncode == 0, result.stderr
    assert not Path(result.stdout.strip()).is_relative_to(ROOT)


# The package


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    importlib.import_module(name)


def test_a_config_needs_neither_ray_nor_torch():
    code = (
        "import sys, dyefreenet.recipes, dyefreenet.plan, dyefreenet.store;"
        "print(*sorted({'ray', 'torch'} & set(sys.modules)))"
    )
    result = run(sys.executable, "-c", code)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_imports_run_one_way():
    result = run(Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_has_its_line_in_the_picture():
    contract = next(c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["id"] == "layers")
    lines = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    placed = {name for line in lines for name in line}
    top = {name.split(".")[1] for name in MODULES} - {"weights", "__main__"}
    assert top <= placed

    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## Which way imports run")[1].split("\n## ")[0]
    drawn = re.findall(r"^ {4}(\w+(?: {3}\w+)*)$", section, re.MULTILINE)
    assert [sorted(row.split()) for row in drawn] == [sorted(line) for line in lines]


@pytest.mark.parametrize(
    "pattern",
    ["__init__.py", "py.typed"]
    + [p for p in PROJECT["tool"]["setuptools"]["package-data"]["dyefreenet"] if "weights" in p],
)
def test_what_is_shipped_is_there(pattern):
    assert list((ROOT / "platform" / "dyefreenet").glob(pattern))


def packages(lines):
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def imports(node):
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names} - sys.stdlib_module_names
    if isinstance(node, ast.ImportFrom) and not node.level:
        return {node.module.split(".")[0]} - sys.stdlib_module_names
    return set()


def test_what_the_package_imports_is_declared():
    """An extra's package may be imported only where its absence is told: inside a try."""
    always = packages(PROJECT["project"]["dependencies"]) | {"dyefreenet"}
    extras = PROJECT["project"]["optional-dependencies"]
    sometimes = always.union(*(packages(lines) for lines in extras.values()))
    providers = packages_distributions()
    for path in (ROOT / "platform" / "dyefreenet").rglob("*.py"):
        tree = ast.parse(path.read_text())
        tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
        guarded = {inner for node in tries for inner in ast.walk(node)}
        for node in ast.walk(tree):
            for name in imports(node):
                given_by = {canonical(each) for each in providers.get(name, [name])}
                allowed = sometimes if node in guarded else always
                assert given_by & allowed, f"{path.name} imports {name}"


# Versions


def test_one_version_everywhere():
    version = PROJECT["project"]["version"]
    assert dyefreenet.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    tagged = re.findall(r"dyefreenet:([\d.]+)", "".join(map(Path.read_text, cluster_files())))
    assert set(tagged) == {version}


def test_what_is_needed_is_pinned():
    pinned = {
        canonical(line.split("==")[0]) for line in constraint_lines() if not line.startswith("#")
    }
    project = PROJECT["project"]
    needed = project["dependencies"] + [
        line
        for extra in ("test", "bench", "dev")
        for line in project["optional-dependencies"][extra]
        if not line.startswith("dyefreenet")
    ]
    assert {canonical(re.match(r"[\w.-]+", line)[0]) for line in needed} <= pinned


def constraint_lines() -> list[str]:
    return (ROOT / "constraints.txt").read_text().splitlines()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Jobs


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_can_be_submitted(path):
    assert os.access(path, os.X_OK), f"chmod +x {path.relative_to(ROOT)}"
    assert path.read_text().startswith("#!/usr/bin/env python3\n")


@pytest.mark.slow
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_runs_from_a_bare_checkout(path, tmp_path):
    # An installed dyefreenet would hide a job that does not find it, so it is made to vanish.
    hide = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "sys.path[:] = [p for p in sys.path if not p.rstrip('/').endswith('platform')]\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = run(sys.executable, path, "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_jobs_and_notebooks_define_nothing():
    for path in JOBS:
        tree = ast.parse(path.read_text())
        assert not [n.name for n in tree.body if isinstance(n, ast.ClassDef)], path.name
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        for node in (node for cell in code for node in ast.walk(ast.parse(cell))):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), path.name
        assert not any(cell.get("outputs") for cell in cells), f"{path.name}: strip its outputs"


# Ways to run it


def cluster_files() -> list[Path]:
    return sorted(p for p in (ROOT / "cluster").iterdir() if p.is_file())


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def pods(spec: dict) -> list[dict]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob-full-cascade.yaml"])
def test_kuberay_files(name):
    document = load(name)
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"]
    if name == "raycluster.yaml":
        assert document["kind"] == "RayCluster"
    else:
        assert document["kind"] == "RayJob"
        spec = spec["rayClusterSpec"]
    assert f"ray=={spec['rayVersion']}" in constraint_lines()
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods(spec):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        # Credentials come by reference, and a container's shared memory holds Ray's object store.
        assert "env" not in container
        assert container["envFrom"][0]["secretRef"]
        (volume,) = pod["volumes"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
    train = next(g for g in spec["workerGroupSpecs"] if g["groupName"] == "train")
    (container,) = train["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob-full-cascade.yaml"])
def test_pods_are_what_kubernetes_takes(name):
    """By its own schemas, that of the newest version known; no field more than they have."""
    spec = load(name)["spec"]
    for pod in pods(spec.get("rayClusterSpec", spec)):
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_both_kuberay_files_ask_for_the_same_pods():
    job = load("rayjob-full-cascade.yaml")["spec"]["rayClusterSpec"]
    assert pods(job) == pods(load("raycluster.yaml")["spec"])


def test_ray_up_file_is_what_ray_takes():
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(load("ray-up.yaml"), json.loads(schema.read_text()))


def test_runtime_env_names_what_is_there():
    environment = load("runtime_env.yaml")
    assert (ROOT / environment["working_dir"] / "jobs").is_dir()
    for module in environment["py_modules"]:
        assert (ROOT / module / "__init__.py").is_file()


def test_every_job_that_is_named_exists():
    texts = [*cluster_files(), ROOT / "README.md", ROOT / "Makefile"]
    named = {name for path in texts for name in re.findall(r"jobs/\w+\.py", path.read_text())}
    assert "jobs/full_cascade.py" in named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    entrypoint = shlex.split(load("rayjob-full-cascade.yaml")["spec"]["entrypoint"])
    assert ROOT / entrypoint[0] in JOBS


@pytest.mark.parametrize("path", ["cluster/local.sh", "cluster/slurm.sbatch", ".ci/run"])
def test_shell_scripts_parse(path):
    result = run("bash", "-n", path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", ["cluster/local.sh", ".ci/run"])
def test_shell_scripts_are_executable(path):
    assert os.access(ROOT / path, os.X_OK)


# The papers


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        commands = re.findall(r"^ {4}make ([a-z ]+)$|`make ([a-z ]+)", text, re.MULTILINE)
        named = {word for pair in commands for word in "".join(pair).split()}
        assert named, name
        assert named <= targets, name


def test_every_command_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\bdyefreenet ([a-z]+) +(?:-|`)", text)) | {"run"}
    for command in sorted(named):
        result = run(sys.executable, "-m", "dyefreenet.cli", command, "--help")
        assert result.returncode == 0, result.stderr


def test_links_lead_somewhere():
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_no_file_names_a_machine():
    # Written in pieces, so that this file passes too.
    private = re.compile("/wo" + r"rk/|/ro" + r"ot/|/ho" + r"me/(?!ray/)\w+/")
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in tracked()
        if (match := private.search(path.read_text(errors="replace")))
    }
    assert found == {}


def test_the_dashboard_draws_figures_that_there_are():
    from dyefreenet.meters import FIGURES

    panels = json.loads((ROOT / "cluster/grafana.json").read_text())["panels"]
    known = {f"{name}_total" if kind == "counter" else name for name, (kind, *_) in FIGURES.items()}
    for panel in panels:
        for target in panel["targets"]:
            for name in re.findall(r"ray_(dyefreenet_\w+)", target["expr"]):
                assert name in known, panel["title"]
