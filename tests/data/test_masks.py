"""Label maps that users bring: whose they are, what their numbers mean, and what is refused."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dyefreenet.config import GridConfig, IngestConfig
from dyefreenet.data import masks
from dyefreenet.data.archive import scan
from dyefreenet.data.dicom import read_series
from dyefreenet.data.ingest import ingest
from dyefreenet.data.phantom import LABELS
from dyefreenet.data.shards import read_slab
from dyefreenet.data.volume import Volume
from dyefreenet.errors import ConfigError, InputError, SeriesError
from dyefreenet.store import Folder

GRID = GridConfig(size=48)


def volume(shape=(4, 40, 48), spacing=(2.0, 1.0, 1.0)):
    return Volume(np.zeros(shape, np.int16), spacing)


def drawn(path: Path, numbers: np.ndarray, like: Volume, kind=np.uint8) -> None:
    image = sitk.GetImageFromArray(numbers.astype(kind))
    z, y, x = like.spacing
    image.SetSpacing((x, y, z))
    image.SetOrigin(like.origin)
    image.SetDirection(like.direction.T.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def blocks() -> np.ndarray:
    """Aorta and right kidney as TotalSegmentator numbers them, and what has no name here."""
    numbers = np.zeros((4, 40, 48))
    numbers[:, 18:22, 20:24] = 52
    numbers[:, 10:14, 10:20] = 2
    numbers[:, 30:32, 10:20] = 69
    return numbers


def test_a_map_belongs_to_the_series_whose_key_or_uid_it_bears(tmp_path, write_ct):
    write_ct(tmp_path / "ct", np.zeros((4, 16, 16), int), SeriesInstanceUID="1.2.3")
    (row,) = scan(str(tmp_path / "ct"))
    for name in (f"{row.key}.nii.gz", "sub/1.2.3.nrrd"):
        folder = tmp_path / name.replace("/", "-")
        drawn(folder / name, blocks(), volume())
        found = masks.of_series(Folder(str(folder)))
        assert masks.mask_of(row, found)[0] == name
        (folder / name).rename(folder / "another.nii.gz")
        assert masks.mask_of(row, masks.of_series(Folder(str(folder)))) == ("", "")


def test_a_folder_without_maps_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"expected label maps named by the key or the UID"):
        masks.of_series(Folder(str(tmp_path)))


def test_numbers_become_those_of_the_structures_of_the_phantom():
    found = masks.numbered(blocks().astype(np.int32), {})
    assert set(np.unique(found)) == {0, LABELS["aorta"], LABELS["kidney_cortex"]}
    assert (found == LABELS["aorta"]).sum() == 4 * 4 * 4
    own = masks.numbered(np.array([[[7, 300]]], np.int32), {"liver": (300,), "aorta": (7,)})
    assert own.tolist() == [[[LABELS["aorta"], LABELS["liver"]]]]


def test_unknown_structures_and_a_missing_package_are_told_before_the_work():
    with pytest.raises(ConfigError, match=r"ingest\.structures: expected names of .*'kidneys'"):
        masks.require(IngestConfig(structures={"kidneys": (2, 3)}))
    with pytest.raises(ConfigError, match="pip install TotalSegmentator"):
        masks.require(IngestConfig(masks="totalsegmentator"))


def test_a_map_on_another_grid_is_brought_onto_the_series(tmp_path):
    coarse = np.zeros((2, 20, 24))
    coarse[:, 5:10, 6:12] = 5
    drawn(tmp_path / "a.nii.gz", coarse, volume((2, 20, 24), (4.0, 2.0, 2.0)))
    found = masks.read_mask(Folder(str(tmp_path)), "a.nii.gz", volume())
    assert found.shape == (4, 40, 48)
    assert (found[1] == 5).sum() == pytest.approx(10 * 12, abs=24)


def test_a_map_that_lies_elsewhere_or_is_none_is_refused_without_its_name(tmp_path):
    away = Volume(np.zeros((4, 40, 48), np.int16), (2.0, 1.0, 1.0), (900.0, 900.0, 900.0))
    drawn(tmp_path / "1.2.3.nii.gz", blocks(), away)
    drawn(tmp_path / "1.2.4.nii.gz", blocks() + 0.5, volume(), np.float32)
    (tmp_path / "1.2.5.nii.gz").write_bytes(b"no image")
    for name, why in (
        ("1.2.3", "expected labels on the grid of their series"),
        ("1.2.4", "expected whole numbers of structures"),
        ("1.2.5", "SimpleITK cannot read"),
    ):
        with pytest.raises(SeriesError, match=f"mask: its label map: .*{why}") as told:
            masks.read_mask(Folder(str(tmp_path)), f"{name}.nii.gz", volume())
        assert name not in str(told.value) and "/tmp" not in str(told.value)


def test_totalsegmentator_is_given_the_plain_series_where_it_is_installed(monkeypatch):
    """With a package of its name that answers as it does: the real one was not at hand."""
    asked = {}

    def totalsegmentator(given, made, **options):
        asked.update(options)
        image = sitk.ReadImage(str(given))
        numbers = sitk.GetImageFromArray(blocks().astype(np.uint8))
        numbers.CopyInformation(sitk.DICOMOrient(image, "LPS"))
        sitk.WriteImage(numbers, str(made))

    module = types.ModuleType("totalsegmentator.python_api")
    module.totalsegmentator = totalsegmentator
    monkeypatch.setitem(sys.modules, "totalsegmentator", types.ModuleType("totalsegmentator"))
    monkeypatch.setitem(sys.modules, "totalsegmentator.python_api", module)
    np.testing.assert_array_equal(masks.segmented(volume()), blocks())
    assert asked["ml"] is True


def archive(root: Path, write_ct) -> np.ndarray:
    """Six patients with plain and arterial series, whose hashes fall on every side of the split."""
    rng = np.random.default_rng(0)
    hu = np.full((4, 40, 48), -1000)
    hu[:, 4:-4, 4:-4] = rng.integers(0, 80, (4, 32, 40))
    lit = hu.copy()
    lit[:, 18:22, 20:24] += 250
    for number, name in enumerate("ABCDEF"):
        for phase, (values, words) in enumerate([(hu, "NATIV"), (lit, "ART")]):
            write_ct(
                root / name / str(phase),
                values,
                PatientID=name,
                StudyInstanceUID=f"1.{number}",
                SeriesInstanceUID=f"1.{number}.{phase}",
                SeriesDescription=words,
                PixelRepresentation=1,
            )
    return hu


def labels_of(target: Folder) -> list[np.ndarray]:
    slabs = [read_slab(target.read(one["path"])) for one in json.loads(target.read("slabs.json"))]
    return [slab.labels for slab in slabs if slab.labels is not None]


def test_ingest_takes_maps_into_the_shards_and_refuses_a_pair_whose_map_is_wrong(
    tmp_path, write_ct
):
    archive(tmp_path / "ct", write_ct)
    plain = read_series(sorted((tmp_path / "ct/A/0").glob("*.dcm"))).volume
    drawn(tmp_path / "maps/1.0.0.nii.gz", blocks(), plain)
    (tmp_path / "maps/1.1.0.nii.gz").write_bytes(b"no image")
    config = IngestConfig(validation=0.3, test=0.3, masks=str(tmp_path / "maps"))
    target = Folder(str(tmp_path / "run"))

    def run():
        return ingest(config, GRID, paired=[Folder(str(tmp_path / "ct"))], target=target)

    account = run()
    assert account["refused"] == {"mask": 2} and account["pairs"] == {"arterial": 5}
    labelled = labels_of(target)
    assert len(labelled) == 1
    assert set(np.unique(labelled[0])) == {0, LABELS["aorta"], LABELS["kidney_cortex"]}

    changed = blocks()
    changed[changed == 2] = 0
    drawn(tmp_path / "maps/1.0.0.nii.gz", changed, plain)
    drawn(tmp_path / "maps/1.1.0.nii.gz", changed, plain)
    assert run()["pairs"] == {"arterial": 6}
    labelled = labels_of(target)
    assert [set(np.unique(one)) for one in labelled] == [{0, LABELS["aorta"]}] * 2
