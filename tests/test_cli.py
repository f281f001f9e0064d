"""Bad input: one line that says what, where, expected and found; exit code 1; no traceback."""

import json
import subprocess
import sys

import numpy as np
import pytest
import s3fs

from dyefreenet.cli import main


def fails(capsys, *words):
    """The one line of an error."""
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_missing_recipe(capsys):
    assert "did you mean 'demo'" in fails(capsys, "run", "--recipe", "dem")


def test_an_error_from_a_worker_is_our_one_line(capsys, monkeypatch):
    from ray.exceptions import RayTaskError

    from dyefreenet.errors import InputError

    inner = InputError("there: expected a folder, found none")
    wrapped = RayTaskError("draw", "Traceback of 20 lines", inner).as_instanceof_cause()

    def broken(options):
        raise wrapped

    monkeypatch.setattr("dyefreenet.cli._describe", broken)
    line = fails(capsys, "describe", "--recipe", "demo")
    assert line == "dyefreenet: error: there: expected a folder, found none"


def test_recipe_typo(capsys):
    line = fails(capsys, "run", "--recipe", "demo", "--set", "primary.ephocs=1")
    assert "primary.ephocs: no such field; did you mean 'primary.epochs'?" in line


def test_no_data_named(capsys, tmp_path):
    line = fails(capsys, "run", "--recipe", "paper", "--store", str(tmp_path))
    assert "ingest.paired: expected a folder of plain and contrast CT, found none" in line


def test_a_stage_whose_needs_are_missing(capsys, tmp_path):
    line = fails(capsys, "train", "--stage", "refine", "--store", str(tmp_path))
    assert "it needs 'ingest', which is not done" in line


def test_workers_below_one(capsys, tmp_path):
    assert "expected at least 1" in fails(capsys, "run", "--workers", "0", "--store", str(tmp_path))


def test_store_that_cannot_be_written(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    line = fails(capsys, "run", "--recipe", "demo", "--store", str(file))
    assert "expected a place that can be read and written" in line


def test_s3_without_credentials(capsys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()  # of a test that had credentials
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    line = fails(capsys, "run", "--recipe", "demo", "--store", "s3://bucket/runs")
    assert "s3://bucket/runs" in line and "AWS_ACCESS_KEY_ID" in line


def test_generate_from_nothing(capsys, tmp_path):
    out = str(tmp_path / "out")
    missing = fails(capsys, "generate", "-i", str(tmp_path / "none"), "-o", out)
    assert "none" in missing and "expected" in missing
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in fails(capsys, "generate", "-i", str(empty), "-o", out)


def test_generate_from_a_file_that_is_no_ct(capsys, tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(b"not DICOM")
    line = fails(capsys, "generate", "-i", str(folder), "-o", str(tmp_path / "out"))
    assert "expected" in line
    nifti = tmp_path / "a.nii.gz"
    nifti.write_bytes(b"not NIfTI")
    line = fails(capsys, "generate", "-i", str(nifti), "-o", str(tmp_path / "o"))
    assert "found 1 files: not gzip" in line


def test_generate_never_writes_over_a_nifti_source(capsys, tmp_path):
    source = tmp_path / "ct.nii"
    source.write_bytes(b"as it was")
    line = fails(capsys, "generate", "-i", str(source), "-o", f"{tmp_path}/x/../ct.nii")
    assert "outside of the archive, which is never written to" in line
    assert source.read_bytes() == b"as it was"


def test_generate_with_a_folder_that_is_no_run(capsys, tmp_path):
    line = fails(
        capsys, "generate", "-i", str(tmp_path), "-o", str(tmp_path / "o"), "--run", str(tmp_path)
    )
    assert "expected a run with recipe.json, found none" in line


def test_sweep_over_a_field_that_does_not_exist(capsys, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("primary.lamda: {log: [0.001, 100]}\n")
    line = fails(capsys, "sweep", "--space", str(space), "--store", str(tmp_path))
    assert "primary.lamda: no such field" in line
    space.write_text("primary.lr: {log: [1, 0.1]}\n")
    line = fails(capsys, "sweep", "--space", str(space), "--store", str(tmp_path))
    assert "space primary.lr: expected two numbers, low < high, found [1.0, 0.1]" in line


def test_describe_prints_the_papers_network(capsys):
    assert main(["describe", "--recipe", "paper"]) == 0
    out = capsys.readouterr().out
    assert "9,140,201" in out and "GFLOP" in out and "mse_weight: 0.01" in out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "research only" in capsys.readouterr().out
    assert main([]) == 0


def test_generate_with_the_shipped_weights(capsys, tmp_path):
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(40, 10, (4, 64, 64)).astype(np.int16))
    image.SetSpacing((1.7, 1.7, 3.0))
    image = sitk.DICOMOrient(image, "RAS")  # axes that run the other way
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    image = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))  # the header holds 32-bit numbers
    page = tmp_path / "page.html"
    words = ["-i", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out")]
    assert main(["generate", *words, "--report", str(page), "--json"]) == 0
    told = capsys.readouterr()
    assert "made-up CT" in told.err  # said loudly
    account = json.loads(told.out)
    assert (account["series"], account["done"], account["refused"]) == (1, 1, {})
    assert "1 series: 1 done, 0 refused, 0 failed" in page.read_text()
    (target,) = (tmp_path / "out/series").iterdir()
    made = sitk.ReadImage(str(target))
    assert made.GetSpacing() == image.GetSpacing() and made.GetSize() == image.GetSize()
    assert made.GetOrigin() == pytest.approx(image.GetOrigin())
    assert made.GetDirection() == image.GetDirection()


def test_all_protocols_of_a_run_that_is_not_trained(capsys, tmp_path):
    words = ["evaluate", "--all-protocols", "--json", "--store", str(tmp_path)]
    assert "it needs 'ingest', which is not done" in fails(capsys, *words)


@pytest.mark.parametrize("words", [["run"], ["run", "--tuned"], ["sweep"]], ids=" ".join)
def test_ray_is_not_imported_before_its_token_is_chosen(words, tmp_path):
    script = (
        "import sys\n"
        "from dyefreenet import cli, runtime\n"
        "def connect(verbose=False):\n"
        "    sys.exit('too late' if 'ray' in sys.modules else 'in time')\n"
        "runtime.connect = connect\n"
        "cli.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--store", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr.splitlines()[-1] == "in time"
