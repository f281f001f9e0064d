"""The whole cascade on Ray, submitted as a job, once; then what it left is looked at."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from dyefreenet import recipes
from dyefreenet.cascade import Cascade
from dyefreenet.data.volume import Volume
from dyefreenet.errors import StoreError
from dyefreenet.evaluate.protocols import PROTOCOLS
from dyefreenet.store import Folder

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "tiny.yaml")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

ALL = {
    *("phantom", "ingest", "ssl", "primary", "primary_scratch", "refine", "unet", "pix2pix"),
    "evaluate",
}


def submit(address, *words):
    """`ray job submit` as a user types it in the project's root."""
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": address}
    for _ in range(12):
        done = subprocess.run(
            ["ray", "job", "submit", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        if "No available agent" not in done.stderr:
            break
        time.sleep(5)  # the cluster has only just started
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def local(*words, **extra):
    """The command line on this machine, without a cluster's address."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | extra,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def run(cluster):
    """The literal command; recipe and store are the cluster's defaults."""
    output = submit(cluster, "jobs/full_cascade.py")
    assert "DyeFreeNet (refine)" in output and "report:" in output
    return Folder(os.environ["DYEFREENET_STORE"]) / "tiny"


def test_every_step_is_done_and_says_with_what(run):
    for name in ALL:
        manifest = (run / name).manifest()
        assert manifest is not None, name
        assert {"fingerprint", "config", "code", "finished", "seconds"} <= set(manifest)
    recipe = recipes.validate(run.read_json("recipe.json"))
    assert recipe == recipes.load(TINY)


def test_losses_of_every_epoch_are_kept(run):
    lines = (run / "primary").read("metrics.jsonl").decode().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [entry["epoch"] for entry in epochs] == [1.0, 2.0]
    assert {
        "loss/mse",
        "loss/l1",
        "loss/perceptual",
        "loss/adversarial",
        "loss/discriminator",
    } <= set(epochs[0])
    assert "validation/psnr" in epochs[0]


def test_rows_of_every_method_under_every_protocol(run):
    summary = (run / "evaluate").read_json("summary.json")
    methods = {"identity", "remap", "unet", "pix2pix", "primary_scratch", "primary", "refine"}
    for protocol in ("window600/1", "paper8/1"):
        for metric in ("psnr", "ssim"):
            found = {
                row["method"]
                for row in summary
                if (row["protocol"], row["metric"]) == (protocol, metric)
            }
            assert found == methods
    vessel = [row for row in summary if (row["metric"], row["region"]) == ("mae", "vessel")]
    assert {row["method"] for row in vessel} == methods
    assert all(row["low"] <= row["mean"] <= row["high"] for row in vessel)


def test_the_run_under_every_convention_stands_beside_its_own_evaluation(run, cluster):
    before = (run / "evaluate").read("manifest.json")
    output = submit(cluster, "--", "jobs/evaluate.py", "--all-protocols")
    store = os.environ["DYEFREENET_STORE"]
    words = ["--recipe", TINY, "--store", store, "--all-protocols", "--json"]
    done = local("jobs/evaluate.py", *words)  # made already: no cluster is needed
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["protocols"]) == set(PROTOCOLS) and found["left_out"] == []
    for name in PROTOCOLS:
        assert name in output
        assert any(line["protocol"] == name for line in found["summary"])
    assert (run / "evaluate").read("manifest.json") == before


def test_no_patient_is_in_two_splits(run):
    splits: dict[str, set[str]] = {}
    for record in (run / "ingest").read_json("slabs.json"):
        splits.setdefault(record["patient"], set()).add(record["split"])
    assert all(len(names) == 1 for names in splits.values())
    assert {"train", "validation", "test"} <= set.union(*splits.values())


def test_the_report_opens_without_network(run):
    page = run.read("report/index.html").decode()
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page


def test_a_second_run_does_nothing_and_says_so(run):
    began = time.monotonic()
    store = os.environ["DYEFREENET_STORE"]
    again = local("jobs/full_cascade.py", "--recipe", TINY, "--store", store)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr and "already done" in again.stderr
    assert time.monotonic() - began < 15


def test_a_changed_recipe_stops_with_the_fields_name(run):
    store = os.environ["DYEFREENET_STORE"]
    changed = local(
        "jobs/full_cascade.py", "--recipe", TINY, "--store", store, "--set", "primary.lr=0.5"
    )
    assert changed.returncode == 1
    assert "primary.lr=0.002, the recipe says 0.5" in changed.stderr
    assert "Traceback" not in changed.stderr


def test_working_dir_form_runs_too_and_keeps_all_in_object_storage(
    run, cluster, s3, monkeypatch, tmp_path
):
    command = f"python jobs/full_cascade.py --recipe {TINY} --run second --store s3://scans/runs"
    shorter = "--set baselines=false --set ablation=false --set primary.epochs=1"
    environment = json.dumps({"env_vars": s3})
    submit(
        *(cluster, "--working-dir", ".", "--runtime-env-json", environment, "--"),
        *(command.split() + shorter.split()),
    )
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    second = Folder("s3://scans/runs/second")
    assert (second / "evaluate").manifest() is not None
    assert (second / "unet").manifest() is None
    assert second.exists("report/index.html")
    assert not any(".partial" in name for name in second.names())
    again = local("jobs/full_cascade.py", *command.split()[2:], *shorter.split())
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr

    # From a series in the store, by a run in the store, back into the store.
    series = sorted({name.rpartition("/")[0] for name in (second / "phantom" / "dicom").names()})
    source = f"{second}/phantom/dicom/{series[0]}"
    words = ["-i", source, "-o", "s3://scans/virtual", "--run", str(second)]
    done = local("jobs/generate.py", *words)
    assert done.returncode == 0, done.stderr
    made = Folder("s3://scans/virtual")
    images = [pydicom.dcmread(io.BytesIO(made.read(n))) for n in made.names() if n.endswith("dcm")]
    assert len(images) == len(Folder(source).names())
    assert all("NOT FOR DIAGNOSTIC USE" in image.SeriesDescription for image in images)


def test_two_workers_equal_one_at_the_same_global_batch(run, tmp_path):
    """Batch norm of both networks included; primary without SSL has every kind of term."""
    from dyefreenet.runtime import Share
    from dyefreenet.stages.launch import make_trainer
    from dyefreenet.train.state import load_weights

    recipe = recipes.load(TINY)
    share = Share(gpu=False, cpus=0.75, threads=1)
    target = Folder(str(tmp_path))
    trainer = make_trainer(recipe, "primary_scratch", run, target, "two", 2, share)
    result = trainer.fit()
    alone = [
        json.loads(line) for line in (run / "primary_scratch").read("metrics.jsonl").splitlines()
    ]
    together = [json.loads(line) for line in target.read("metrics.jsonl").splitlines()]
    for name in ("validation/psnr", "validation/enhanced_mae_hu", "loss/mse", "loss/discriminator"):
        assert together[-1][name] == pytest.approx(alone[-1][name], rel=1e-3)
    expected = load_weights(run / "primary_scratch")
    from safetensors.torch import load_file

    with result.checkpoint.as_directory() as folder:
        found = load_file(f"{folder}/generator.safetensors")
    # To the last digit in tests/stages/test_workers.py. Here, in single precision, Adam amplifies
    # the rounding of batches of two and of four, so only the weights of a kind as a whole agree.
    for kind in ("running_mean", "running_var", "weight", "bias"):
        names = [name for name in expected if name.endswith(kind)]
        one, two = (
            torch.cat([tensors[name].flatten() for name in names]) for tensors in (expected, found)
        )
        assert torch.norm(two - one) <= 0.05 * torch.norm(one), kind


def test_the_trained_cascade_keeps_what_it_must(run):
    cascade = Cascade.load(run)
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 20, (5, 70, 90)).astype(np.int16)
    hu[:, :20] = -1000  # air
    hu[:, 60:, :10] = 1200  # dense bone
    padding = np.zeros(hu.shape, bool)
    padding[:, :, 85:] = True
    volume = Volume(np.where(padding, np.int16(-1024), hu), (3.0, 1.7, 1.7), padding=padding)
    virtual = cascade.predict(volume)
    assert virtual.hu.shape == volume.hu.shape and virtual.spacing == volume.spacing
    for kept in (hu <= -200, hu >= 600, padding):
        assert np.array_equal(virtual.hu[kept], volume.hu[kept])


def test_a_changed_weight_file_is_refused(run, tmp_path):
    copy = Folder(str(tmp_path))
    for name in ("recipe.json", "unet/manifest.json", "unet/weights/generator.safetensors"):
        copy.write(name, run.read(name))
    assert set(Cascade.load(copy).methods) == {"unet"}
    content = bytearray(copy.read("unet/weights/generator.safetensors"))
    content[-2] ^= 1
    copy.write("unet/weights/generator.safetensors", bytes(content))
    with pytest.raises(StoreError, match="expected SHA-256"):
        Cascade.load(copy)


def test_generate_from_the_run_makes_derived_dicom(run, tmp_path):
    source = next(
        Path(file).parent
        for file in sorted(Path(str(run / "phantom" / "dicom")).rglob("*.dcm"))
        if "ContrastBolusAgent" not in pydicom.dcmread(file, stop_before_pixels=True)
    )
    out = tmp_path / "virtual"
    done = local("jobs/generate.py", "-i", str(source), "-o", str(out), "--run", str(run))
    assert done.returncode == 0, done.stderr
    made = [pydicom.dcmread(file) for file in sorted(out.rglob("*.dcm"))]
    assert len(made) == len(list(source.glob("*.dcm")))
    assert {tuple(image.ImageType) for image in made} == {
        ("DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST")
    }
    assert all("NOT FOR DIAGNOSTIC USE" in image.SeriesDescription for image in made)


def test_an_exported_package_predicts_what_its_run_does(run, tmp_path):
    from hashlib import sha256

    from dyefreenet.generation.package import export, export_onnx

    names = export(run, Folder(str(tmp_path)), "make demo")
    assert "MODEL_CARD.md" in names and "refine/weights/generator.safetensors" in names
    assert not any("discriminator" in name for name in names)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "Research only" in card and "10 made-up patients" in card and "make demo" in card
    plain = np.random.default_rng(0).normal(40, 20, (3, 64, 64)).astype(np.int16)
    volume = Volume(plain, (3.0, 2.0, 2.0))
    ours = Cascade.load(Folder(str(tmp_path))).predict(volume)
    assert np.array_equal(ours.hu, Cascade.load(run).predict(volume).hu)
    assert export_onnx(Folder(str(tmp_path))) < 0.1  # HU, from torch
    sums = dict(
        line.split("  ")[::-1] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()
    )
    assert sums["refine.onnx"] == sha256((tmp_path / "refine.onnx").read_bytes()).hexdigest()
