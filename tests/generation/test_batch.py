"""Whole archives: every series ends in one state, nothing is done twice, nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
import urllib.request
import zipfile
from collections import Counter

import numpy as np
import pydicom
import pytest
from dicom_check import faults
from made_up_ct import scan

import dyefreenet
from dyefreenet import recipes
from dyefreenet.cascade import Cascade, Method, spread
from dyefreenet.config import GenerateConfig, Selection
from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import image_axes, read_image, write_nifti
from dyefreenet.data.volume import Volume, neighbours
from dyefreenet.errors import ConfigError, InputError, ResourceError, StoreError
from dyefreenet.generation.batch import Workers, generate_archive, read_ledger
from dyefreenet.generation.select import read_selection
from dyefreenet.generation.series import load, model_of
from dyefreenet.report.generated import write_generated
from dyefreenet.store import Folder

CANARY = "CANARY"
BODY = np.full((6, 24, 24), -1000, np.int16)
BODY[:, 4:20, 4:20] = 40


class Lit:
    """Adds 50 HU to all it is given; of 666 HU it makes an error."""

    def predict(self, volume, breaks):
        if (volume.hu == 666).any():
            raise RuntimeError("out of memory")
        return volume.hu + np.int16(50)

    def spread(self, volume, breaks):
        return np.full_like(volume.hu, 7)


def lit(device):
    return Lit()


def never(device):
    raise AssertionError("a model was loaded where there was nothing to do")


def run(source, target, loader=lit, selection=None, **options):
    """``generate_archive`` here, one series after the other."""
    known = {name: options.pop(name) for name in ("limit", "dry_run", "workers") if name in options}
    config = GenerateConfig(**options)
    return generate_archive(
        str(source),
        Folder(str(target)),
        model_of(("shipped",), config),
        config,
        selection or Selection(),
        loader=loader,
        **known,
    )


def test_a_gpu_that_is_not_there_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = GenerateConfig()
    model = model_of(("shipped",), config)
    with pytest.raises(ResourceError, match="--gpu: expected a GPU that torch can use, found none"):
        load(model, config, "cuda")
    assert load(model, config)  # auto


def contents(folder):
    """Every file but records, ledgers and what is made anew for each target."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[len(folder.parts)] in ("series", "spread", "previews")
    }


@pytest.fixture
def archive(tmp_path, write_ct):
    """Two plain series, one with contrast agent, one too short, an MR, an image and a text."""
    root = tmp_path / "archive"
    words = {"PatientName": f"{CANARY}^A", "PatientID": f"{CANARY}1"}
    for number, hu in enumerate((BODY, BODY + np.int16(10))):
        uid = {"SeriesInstanceUID": f"1.2.{number}", "StudyInstanceUID": f"1.9.{number}"}
        write_ct(root / f"plain{number}", hu, **words, **uid, SliceThickness=str(number + 1))
    agent = {"SeriesInstanceUID": "1.2.7", "ContrastBolusAgent": "IODINE"}
    write_ct(root / "contrast", BODY, **words, **agent)
    write_ct(root / "short", BODY[:2], **words, SeriesInstanceUID="1.2.8")
    write_ct(root / "mr", BODY, **words, SeriesInstanceUID="1.2.9", Modality="MR")
    write_nifti(Volume(BODY + np.int16(5), (3.0, 1.5, 1.5)), root / "image.nii.gz", "RAS")
    (root / "notes.txt").write_text(CANARY)
    return root


def test_a_scan_of_nothing_is_refused(tmp_path, write_ct):
    write_ct(tmp_path / "in", np.full_like(BODY, -1000))
    account = run(tmp_path / "in", tmp_path / "out")
    assert account["refused"] == {"empty": 1} and not account["done"]


@pytest.mark.real
def test_a_heart_full_of_contrast_is_refused_without_any_header(real_data, tmp_path):
    """The aorta is torn and stented: no blood pool accompanies the spine."""
    scan = real_data / "ts_arterial_cta" / "ct_cropped.nii.gz"
    account = run(scan, tmp_path / "out")
    assert account["refused"] == {"has-contrast": 1}
    (row,) = read_ledger(Folder(str(tmp_path / "out")))
    assert "tissue of 577 HU beside the spine" in row["detail"]


def test_every_series_ends_in_one_state_and_the_source_stays(archive, tmp_path):
    before = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    account = run(archive, tmp_path / "out")
    assert account["series"] == 6
    assert account["done"] == 3 and account["failed"] == {}
    assert account["refused"] == {"has-contrast": 1, "not-ct": 1, "short": 1}
    assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == before
    rows = read_ledger(Folder(str(tmp_path / "out")))
    assert Counter(row["status"] for row in rows) == {"done": 3, "refused": 3}
    assert len({row["key"] for row in rows}) == 6
    with open(tmp_path / "out/ledger.csv", newline="") as stream:
        assert [row["key"] for row in csv.DictReader(stream)] == [row["key"] for row in rows]
    outputs = sorted(row["output"] for row in rows if row["status"] == "done")
    assert [name.endswith(".nii.gz") for name in outputs].count(True) == 1
    for row in rows:
        if row["output"].startswith("series/2.25."):
            folder = tmp_path / "out" / row["output"]
            made = read_series(sorted(folder.iterdir())).volume
            inside = made.hu[:, 8, 8]
            assert (inside == 90).all() or (inside == 100).all()
            assert (made.hu[:, 0, 0] <= -990).all()  # air is what it was
            images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
            source = next(
                ds
                for path in archive.rglob("*.dcm")
                if (ds := pydicom.dcmread(path)).SOPInstanceUID
                == images[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            )
            assert faults(images[0], source) == []
        elif row["output"]:
            image = tmp_path / "out" / row["output"]
            assert image_axes(image) == "RAS"
            assert (read_image(image).hu[:, 8, 8] == 95).all()


def test_nothing_says_whose_scan_it_was(archive, tmp_path, capsys):
    run(archive, tmp_path / "out")
    write_generated(Folder(str(tmp_path / "out")), str(tmp_path / "page.html"))
    told = capsys.readouterr()
    assert CANARY not in told.out + told.err
    for path in [*(tmp_path / "out").rglob("*"), tmp_path / "page.html"]:
        assert CANARY not in str(path.name)
        if path.is_file() and "series" not in path.parts:
            assert CANARY.encode() not in path.read_bytes()
            assert b"1.9.0" not in path.read_bytes()


def test_a_finished_archive_loads_no_model_and_what_is_damaged_is_made_again(archive, tmp_path):
    target = tmp_path / "out"
    first = run(archive, target)
    made = contents(target)
    again = run(archive, target, never)
    assert again["already_done"] == 3 + 1  # what reading refused is known, too
    assert {k: again[k] for k in ("done", "refused")} == {k: first[k] for k in ("done", "refused")}
    dicom = next(target.glob("series/*/0001.dcm"))
    for harm in (
        lambda: dicom.unlink(),
        lambda: dicom.write_bytes(dicom.read_bytes()[:-1] + b"\1"),
        lambda: shutil.rmtree(target / "records"),
        lambda: (target / "ledger.parquet").unlink(),
    ):
        harm()
        run(archive, target)
        assert contents(target) == made
    run(archive, target, never)


def test_a_series_that_changed_is_made_again(archive, tmp_path, write_ct):
    run(archive, tmp_path / "out")
    uid = {"SeriesInstanceUID": "1.2.0", "StudyInstanceUID": "1.9.0", "PatientID": f"{CANARY}1"}
    write_ct(archive / "plain0", BODY + np.int16(3), **uid)
    account = run(archive, tmp_path / "out")
    assert (account["done"], account["already_done"]) == (3, 3)


def test_one_series_fails_alone_and_is_tried_again(archive, tmp_path, write_ct):
    odd = BODY.copy()
    odd[2, 8, 8] = 666
    write_ct(archive / "odd", odd, SeriesInstanceUID="1.2.66", PatientID="x")
    assert run(archive, tmp_path / "out")["failed"] == {"network": 1}
    assert run(archive, tmp_path / "out")["failed"] == {"network": 1}
    (row,) = [r for r in read_ledger(Folder(str(tmp_path / "out"))) if r["status"] == "failed"]
    assert (row["code"], row["detail"], row["output"]) == ("network", "RuntimeError", "")


def test_settings_of_a_target_do_not_change(archive, tmp_path):
    run(archive, tmp_path / "out", limit=1)
    with pytest.raises(StoreError, match="its series were made with settings"):
        run(archive, tmp_path / "out", banner=True)
    run(archive, tmp_path / "out")  # more of the same is all right


def test_the_archive_is_never_a_target(archive, tmp_path):
    (tmp_path / "link").symlink_to(archive)
    for target in (
        archive,
        archive / "v",
        f"{archive}/x/../y",
        tmp_path / "link",
        tmp_path / "link/v",
    ):
        with pytest.raises(InputError, match="never written to"):
            run(archive, target)


def test_a_dry_run_writes_nothing(archive, tmp_path):
    account = run(archive, tmp_path / "out", never, dry_run=True)
    assert (account["to_do"], account["selected_slices"]) == (4, 20)
    assert account["refused"] == {"has-contrast": 1, "not-ct": 1}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rules", "done"),
    [
        ({"series": ["1.2.0"]}, 1),
        ({"thickness_mm": [0, 1.5]}, 1),
        ({"slices": [5, 9]}, 3),
        ({"kernels": ["B30f"]}, 0),
        ({"description": "chest"}, 0),
    ],
)
def test_selection_by_headers(archive, tmp_path, rules, done):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(rules))
    account = run(archive, tmp_path / "out", selection=read_selection(str(path)))
    assert account["done"] == done
    assert account["refused"]["not-selected"] == 4 - done
    assert sum(account["refused"].values()) + account["done"] == account["series"]


def test_one_of_a_study_is_the_thinnest(tmp_path, write_ct):
    for number, thickness in enumerate(("3", "1.25", "5")):
        uid = {"SeriesInstanceUID": f"1.3.{number}", "SliceThickness": thickness}
        write_ct(tmp_path / f"in/{number}", BODY, **uid)
    run(tmp_path / "in", tmp_path / "out", selection=Selection(one_per_study=True))
    (made,) = (tmp_path / "out/series").iterdir()
    source = pydicom.dcmread(made / "0001.dcm").SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID.startswith("1.3.1.")


def test_wrong_rules_are_told(tmp_path):
    (tmp_path / "rules.json").write_text('{"thickness": [0, 3]}')
    with pytest.raises(ConfigError, match="thickness_mm"):
        read_selection(str(tmp_path / "rules.json"))
    (tmp_path / "rules.json").write_text('{"description": "("}')
    with pytest.raises(ConfigError, match="regular expression"):
        read_selection(str(tmp_path / "rules.json"))
    with pytest.raises(InputError, match="--select"):
        read_selection(str(tmp_path / "none.json"))


def test_other_forms_of_output(archive, tmp_path):
    run(archive, tmp_path / "zip", output="zip", limit=2)
    for path in (tmp_path / "zip/series").glob("*.zip"):
        with zipfile.ZipFile(path) as package:
            assert len(package.namelist()) == 6
            first = pydicom.dcmread(io.BytesIO(package.read("0001.dcm")))
            assert first.SeriesInstanceUID == path.stem
    run(archive, tmp_path / "nifti", output="nifti")
    assert len(list((tmp_path / "nifti/series").glob("*.nii.gz"))) == 3
    run(archive, tmp_path / "png", output="png")
    pictures = list((tmp_path / "png/series").glob("*.png"))
    assert len(pictures) == 3 and pictures[0].read_bytes().startswith(b"\x89PNG")


def test_a_package_is_an_archive_and_bytes_are_the_same(archive, tmp_path):
    package = shutil.make_archive(str(tmp_path / "packed"), "zip", archive)
    os.environ["DYEFREENET_SALT"] = "one"
    try:
        run(archive, tmp_path / "a", selection=Selection(slices=(6, 6)))
        shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=lambda *_: ["records", "series"])
        run(package, tmp_path / "b", selection=Selection(slices=(6, 6)))
    finally:
        del os.environ["DYEFREENET_SALT"]
    dicom = {name: made for name, made in contents(tmp_path / "a").items() if "/2.25." in name}
    assert dicom and dicom.items() <= contents(tmp_path / "b").items()


def test_the_spread_is_a_series_of_its_own_that_is_no_scan(archive, tmp_path):
    run(archive, tmp_path / "out", uncertainty=True, limit=9)
    kinds = [folder.name for folder in (tmp_path / "out/spread").iterdir()]
    assert len(kinds) == 3
    folder = next(path for path in (tmp_path / "out/spread").iterdir() if path.is_dir())
    image = pydicom.dcmread(folder / "0001.dcm")
    assert "SPREAD" in image.SeriesDescription and image.ImageComments.startswith("NOT A SCAN")
    volume = read_series(sorted(folder.iterdir())).volume
    assert (volume.hu[:, 8, 8] == 7).all() and (volume.hu[:, 0, 0] == 0).all()


def test_a_trunk_is_judged_and_blood_with_contrast_is_refused(tmp_path):
    for name, level in (("plain", 45), ("lit", 320)):
        write_nifti(scan(level), tmp_path / f"in/{name}.nii.gz")
    account = run(tmp_path / "in", tmp_path / "out")
    assert account["refused"] == {"has-contrast": 1}
    rows = {row["status"]: row for row in read_ledger(Folder(str(tmp_path / "out")))}
    done = rows["done"]
    assert done["aorta_plain_hu"] == pytest.approx(45, abs=8)
    assert done["aorta_hu"] is None  # 50 HU everywhere: no aorta stands out
    assert done["soft_hu"] == 50 and done["outside_hu"] == 0 and done["flicker_hu"] < 0.1
    assert set(done["flags"].split()) == {"no-aorta", "soft-tissue"} and done["check"] == "flag"
    again = run(tmp_path / "in", tmp_path / "all", any_phase=True)
    assert again["done"] == 2
    flags = [row["flags"] for row in read_ledger(Folder(str(tmp_path / "all")))]
    assert sum("contrast-before" in one for one in flags) == 1


# ---- slices in their own places ------------------------------------------------------------------


def test_a_triplet_reaches_across_no_gap():
    assert [neighbours(z, 5, (1,)) for z in range(5)] == [
        [0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4], [3, 4, 4],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "breaks"),
    [
        (lambda z: (0, 0, 2.5 * z + 5 * (z > 2)), 1),  # two slices are missing
        (lambda z: (0, 1.2 * z, 2.5 * z), 0),  # the gantry leans, or slices are sheared
        (lambda z: (0, 0, 2.5 * z + 0.3 * (z % 2)), 0),  # steps differ
    ],
)
def test_slices_keep_their_own_places(tmp_path, write_ct, place, breaks):
    def moved(ds, number):
        ds.ImagePositionPatient = [f"{value:.3f}" for value in place(number)]

    write_ct(tmp_path / "in", BODY, changes=moved)
    run(tmp_path / "in", tmp_path / "out")
    (row,) = read_ledger(Folder(str(tmp_path / "out")))
    assert (row["status"], row["breaks"]) == ("done", breaks)
    for name in sorted(path.name for path in (tmp_path / "in").iterdir()):
        source = pydicom.dcmread(tmp_path / "in" / name)
        made = pydicom.dcmread(tmp_path / "out" / row["output"] / name)
        assert made.ImagePositionPatient == source.ImagePositionPatient
        first = made.SourceImageSequence[0]
        assert first.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert run(tmp_path / "in", tmp_path / "n", output="nifti")["done"] == 0  # no block to lay out


# ---- the networks --------------------------------------------------------------------------------


def cascade(average=False, steps=(0.0, 0.1, 0.2), lean=0.0):
    """A method that adds 0, 40 and 80 HU to a triplet; ``lean``: more to the right."""
    recipe = recipes.load("demo", [f"grid.average_overlap={str(average).lower()}"])

    def predict(plain, phase):
        ramp = lean * plain.new_tensor(range(plain.shape[3]))
        return plain + plain.new_tensor(steps)[None, :, None, None] + ramp

    return Cascade(recipe, {"refine": Method("refine", predict, 2, "ab" * 32)})


def test_a_phase_that_was_not_learnt_is_refused():
    volume = Volume(np.full((4, 16, 16), 40, np.int16), (3.0, 1.5, 1.5))
    with pytest.raises(InputError, match="phase portal: refine has learnt arterial"):
        cascade().predict(volume, phase="portal")
    with pytest.raises(InputError, match="phase portal: refine has learnt arterial"):
        model_of(("shipped",), GenerateConfig(phase="portal"))


def test_overlapping_predictions_are_averaged_where_asked():
    volume = Volume(np.full((4, 16, 16), 40, np.int16), (3.0, 1.5, 1.5))
    assert (cascade().predict(volume).hu == 80).all()
    for made in (cascade(average=True).predict(volume), cascade().predict(volume, average=True)):
        # Slice 0 is the middle of one triplet and the first of the next, and so on.
        assert made.hu[:, 8, 8].tolist() == [60, 80, 80, 100]
    apart = cascade().predict(volume, average=True, breaks=(1,))
    assert apart.hu[:, 8, 8].tolist() == [
        60,
        100,
        60,
        100,
    ]  # two pairs that know nothing of another


def test_the_spread_is_that_of_mirror_triplets_and_networks():
    volume = Volume(np.full((5, 16, 16), 40, np.int16), (3.0, 1.5, 1.5))
    same = spread([cascade(steps=(0.1, 0.1, 0.1))], volume).hu
    assert (same == 0).all()
    middle = spread([cascade()], volume).hu[2]
    assert (middle == 33).all()  # of 0, 40 and 80 HU, each twice
    leaning = spread([cascade(steps=(0.1, 0.1, 0.1), lean=0.01)], volume).hu[2, 0]
    assert leaning[0] == leaning[-1] == 30  # 0.15 of 400 HU to one side or the other: half apart
    two = [cascade(steps=(0.0, 0.0, 0.0)), cascade(steps=(0.1, 0.1, 0.1))]
    assert (spread(two, volume).hu == 20).all()


def test_from_python(tmp_path):
    plain = Volume(np.pad(BODY, ((0, 0), (20, 20), (20, 20)), mode="edge"), (3.0, 1.5, 1.5))
    made = dyefreenet.generate(plain)
    assert made.hu.shape == plain.hu.shape and made.spacing == plain.spacing
    write_nifti(plain, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(dyefreenet.generate(tmp_path / "ct.nii.gz").hu, made.hu)


# ---- on Ray --------------------------------------------------------------------------------------


@pytest.mark.ray
def test_an_actor_reads_one_series_while_another_is_with_the_network(archive, tmp_path, cluster):
    def patient(device):  # all of it in here: actors do not find this file
        class Patient:
            """Waits until this process has two that read and write."""

            def predict(self, volume, breaks):
                place = f"/proc/{os.getpid()}/task"
                for _ in range(300):
                    readers = 0
                    for task in os.listdir(place):
                        with open(f"{place}/{task}/children") as listing:
                            readers += len(listing.read().split())
                    if readers > 1:
                        return volume.hu
                    time.sleep(0.1)
                raise RuntimeError("alone")

        return Patient()

    workers = Workers(False, 1.0, 1)
    account = run(archive, tmp_path, patient, workers=lambda series: workers)
    assert account["done"] == 3 and not account["failed"]


@pytest.mark.ray
def test_actors_do_the_same_even_if_one_is_killed(archive, tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("DYEFREENET_SALT", "one")
    run(archive, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there", ignore=lambda *_: ["records", "series"])
    mark = tmp_path / "killed"

    def deadly(device):  # all of it in here: actors do not find this file
        class Deadly:
            """Kills its process at the first series of all."""

            def predict(self, volume, breaks):
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return volume.hu + np.int16(50)

        return Deadly()

    workers = Workers(False, 1.0, 2)
    account = run(archive, tmp_path / "there", deadly, workers=lambda series: workers)
    assert mark.exists() and account["done"] == 3 and not account["failed"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    figures = served("ray_dyefreenet_series_total", 'job="generate",status="done"')
    assert sum(figures) >= 3  # of both actors; what the killed one counted is gone with it


def served(name, labels):
    """Values that Ray's node serves to Prometheus, as soon as there are some."""
    import ray

    node = ray.nodes()[0]
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    for _ in range(60):
        with urllib.request.urlopen(place, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [
            line
            for line in lines
            if line.startswith(name) and all(label in line for label in labels.split(","))
        ]
        if found:
            return [float(line.rpartition(" ")[2]) for line in found]
        time.sleep(0.5)
    raise AssertionError([line for line in lines if "dyefreenet" in line])
