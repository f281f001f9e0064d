"""One series in, one series out: where it may be written, which phases are taken, and overlap."""

import numpy as np
import pytest

from dyefreenet import recipes
from dyefreenet.cascade import Cascade, Method
from dyefreenet.data.images import image_axes, read_image, write_nifti
from dyefreenet.data.phantom import write_one
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.generation.series import generate
from dyefreenet.store import Folder


def cascade(average=False, steps=(0.0, 0.1, 0.2)):
    """A method that adds the same to each channel: 0, 40 and 80 HU."""
    recipe = recipes.load("demo", [f"grid.average_overlap={str(average).lower()}"])

    def predict(plain, phase):
        return plain + plain.new_tensor(steps)[None, :, None, None]

    return Cascade(recipe, {"refine": Method("refine", predict, 2, "ab" * 32)})


def test_a_phase_that_was_not_learnt_is_refused():
    volume = Volume(np.full((4, 16, 16), 40, np.int16), (3.0, 1.5, 1.5))
    with pytest.raises(InputError, match="phase portal: refine has learnt arterial"):
        cascade().predict(volume, phase="portal")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A made-up patient: {phase: folder}."""
    folder = tmp_path_factory.mktemp("patient")
    recipe = recipes.load("demo", ["phantom.slices=6", "phantom.matrix=[64]"])
    write_one(recipe.phantom, 0, folder, "patient")
    found = {}
    import pydicom

    for file in sorted(folder.rglob("*.dcm")):
        image = pydicom.dcmread(file, stop_before_pixels=True)
        found["contrast" if "ContrastBolusAgent" in image else "plain"] = file.parent
    return found


def test_overlapping_predictions_are_averaged_where_asked():
    volume = Volume(np.full((4, 16, 16), 40, np.int16), (3.0, 1.5, 1.5))
    assert (cascade().predict(volume).hu == 80).all()
    averaged = cascade(average=True).predict(volume).hu[:, 8, 8]
    # Slice 0 is the middle of one triplet and the first of the next, and so on.
    assert averaged.tolist() == [60, 80, 80, 100]


def test_contrast_ct_is_refused_unless_asked_for(archive, tmp_path):
    target = str(tmp_path / "out")
    with pytest.raises(SeriesError, match=r"has-contrast.*--any-phase"):
        generate(str(archive["contrast"]), target, cascade())
    assert not (tmp_path / "out").exists()
    assert generate(str(archive["contrast"]), target, cascade(), any_phase=True).files == 6
    with pytest.raises(SeriesError, match="virtual"):
        generate(target, str(tmp_path / "again"), cascade())


def test_a_source_in_object_storage_is_never_written_to(archive):
    store = Folder("memory://ct")
    for file in sorted(archive["plain"].iterdir()):
        store.write(f"a/{file.name}", file.read_bytes())
    before = {name: store.read(name) for name in store.names()}
    for target in ("memory://ct/a", "memory://ct/a/virtual", "memory://ct/a/v.nii.gz"):
        with pytest.raises(InputError, match="never written to"):
            generate("memory://ct/a", target, cascade())
    assert {name: store.read(name) for name in store.names()} == before
    generate("memory://ct/a", "memory://ct/b", cascade())
    assert len((store / "b").names()) == len(before)


def test_nifti_goes_to_object_storage_with_the_source_s_axes(tmp_path):
    volume = Volume(np.full((5, 16, 12), 40, np.int16), (3.0, 1.5, 1.5))
    write_nifti(volume, tmp_path / "ct.nii.gz", "RAS")
    store = Folder("memory://nifti")
    store.write("ct.nii.gz", (tmp_path / "ct.nii.gz").read_bytes())
    generate("memory://nifti/ct.nii.gz", "memory://nifti/out/v.nii.gz", cascade())
    (tmp_path / "v.nii.gz").write_bytes(store.read("out/v.nii.gz"))
    assert image_axes(tmp_path / "v.nii.gz") == "RAS"
    assert (read_image(tmp_path / "v.nii.gz").hu == 80).all()
