"""What the doctor finds: faults made on purpose, and a machine that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dyefreenet import doctor, runtime
from dyefreenet.cli import main
from dyefreenet.data.codecs import SYNTAXES
from dyefreenet.doctor import FAIL, OK, WARN
from dyefreenet.errors import ResourceError
from dyefreenet.store import Folder

GIB = 2**30
MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.11.7
This process on node 10.0.0.5 was started with:
    Ray: 2.61.0
    Python: 3.12.1
"""  # as Ray 2.60 says it


def levels(findings):
    return [one.level for one in findings]


# ---- packages, devices, codecs -------------------------------------------------------------------


def test_packages_out_of_range_and_missing_are_named():
    requires = ["ray[data]>=2.60", "torch>=2.6", "pyarrow>=16", 'pytest>=8; extra == "test"']
    versions = {"ray": "2.60.0", "torch": "2.5.1+cpu"}
    old, missing = doctor.compare(requires, versions.get)
    assert (old.level, old.found) == (FAIL, "torch 2.5.1+cpu, expected >=2.6")
    assert (
        missing.line() == "FAIL packages       pyarrow is not installed; pip install 'pyarrow>=16'"
    )


def test_packages_in_range_are_one_line():
    requires = ["ray>=2.60", "numpy>=1.26"]
    (found,) = doctor.compare(requires, {"ray": "2.60.0", "numpy": "2.1"}.get)
    assert (found.level, found.found) == (OK, "ray 2.60.0 and 1 others")


def test_a_python_out_of_range():
    assert doctor.python(">=3.10", "3.9.18").level == FAIL
    assert doctor.python(">=3.10", "3.13.0rc1").level == OK


@pytest.mark.parametrize(
    ("built_for", "driver", "level", "word"),
    [
        (None, False, OK, "CPU"),
        (None, True, WARN, "built for CPUs"),
        ("12.8", True, WARN, "finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(built_for, driver, level, word):
    found = doctor.no_gpu(built_for, driver)
    assert found.level == level and word in found.found


def test_bf16_of_a_cpu(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse avx512_bf16 amx_bf16\n")
    assert "bf16 by amx_bf16 and avx512_bf16" in doctor.cpu(cpuinfo).found
    cpuinfo.write_text("flags\t\t: fpu sse avx2\n")
    assert "none has bf16" in doctor.cpu(cpuinfo).found


def test_codecs():
    assert doctor.codecs().level == OK  # here, with the wheels that are pinned
    none = doctor.decoders(lambda name: False)
    assert none.level == FAIL and all(syntax.name in none.found for syntax in SYNTAXES)
    no_jpeg_ls = doctor.decoders(lambda name: name != "JPEGLS")
    assert "JPEG-LS Lossless" in no_jpeg_ls.found and "RLE" not in no_jpeg_ls.found
    assert doctor.decoders(lambda name: name != "HTJ2K").level == WARN


# ---- store, disks, memory ------------------------------------------------------------------------


def test_a_store_that_works_is_left_as_it_was(tmp_path):
    store = tmp_path / "runs"
    assert levels(doctor.storage(Folder(str(store)))) == [OK]
    assert not store.exists()
    store.mkdir()
    assert levels(doctor.storage(Folder(str(store)))) == [OK]
    assert list(store.iterdir()) == []


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = doctor.storage(Folder(str(tmp_path / "file")))
    assert found.level == FAIL and "cannot be written: Not a directory" in found.found


@pytest.fixture
def bucket(s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DYEFREENET_STORE_PATIENCE", "1")
    return Folder("s3://scans/doctor")


def test_rights_at_a_bucket(bucket, monkeypatch):
    assert levels(doctor.storage(bucket)) == [OK]
    assert bucket.names() == []
    assert doctor.room_at(bucket) == []  # a bucket does not tell
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    (found,) = doctor.storage(bucket)
    assert found.level == FAIL and "can be listed but not written (AccessDenied)" in found.found
    assert "use others" in found.cure


def test_a_wrong_secret_is_not_repeated(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-wrong-secret")
    (found,) = doctor.storage(bucket)
    assert found.level == FAIL and "AWS_SECRET_ACCESS_KEY" in found.cure
    assert "my-wrong-secret" not in found.line()


def test_no_credentials_and_nobody_there(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    (found,) = doctor.storage(bucket)
    assert found.level == FAIL and "no good answer" in found.found
    assert "AWS_ENDPOINT_URL" in found.cure
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    (found,) = doctor.storage(bucket)
    assert "no credentials" in found.found and "AWS_ACCESS_KEY_ID" in found.cure


def test_a_store_that_is_silent_is_not_waited_for(bucket, monkeypatch):
    monkeypatch.delenv("DYEFREENET_STORE_PATIENCE")
    doctor.storage(bucket)
    assert "DYEFREENET_STORE_PATIENCE" not in os.environ


def test_shared_memory_of_a_container_nobody_thought_of():
    found = doctor.shared(64 * 2**20, 32 * GIB)
    assert found.level == FAIL and found.found.startswith("64 MiB, Ray's object store takes 9.6")
    assert "emptyDir" in found.cure and "--shm-size" in found.cure
    assert doctor.shared(8 * GIB, 32 * GIB).level == WARN
    assert doctor.shared(10 * GIB, 32 * GIB).level == OK


def test_rays_disk():
    found = {free: doctor.ray_disk("/there", free, 100) for free in (50, 6, 4)}
    assert levels(found.values()) == [OK, WARN, FAIL]


# ---- token and ports -----------------------------------------------------------------------------


def test_the_token_and_where_it_comes_from(tmp_path):
    remote = {"RAY_ADDRESS": "head:6379"}
    token = {"RAY_AUTH_MODE": "token"}

    def of(**environ):
        found = doctor.token(environ, tmp_path)
        assert "s3cret" not in found.line()
        return found.level, found.found

    assert of() == (OK, "each command makes one for the cluster that it starts")
    assert of(**remote)[0] == WARN
    assert of(RAY_AUTH_MODE="disabled")[0] == WARN
    assert of(**token, RAY_AUTH_TOKEN="s3cret") == (OK, "on, from RAY_AUTH_TOKEN")
    assert of(**token)[0] == OK
    assert of(**token, **remote) == (FAIL, "on, but ~/.ray/auth_token: No such file or directory")
    file = tmp_path / "token"
    file.touch(0o600)
    named = token | {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert of(**named) == (FAIL, "on, but the file of RAY_AUTH_TOKEN_PATH is empty")
    file.write_text("s3cret")
    assert of(**named) == (OK, "on, from the file of RAY_AUTH_TOKEN_PATH")
    file.chmod(0o644)
    assert of(**named)[0] == WARN


def test_what_listens_off_loopback():
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid ...\n"
    rest = "00000000:00000000 00:00000000 00000000     0        0"
    table = head + "".join(
        f"   {number}: {local} {remote} {state} {rest} {number} 1 0 100 0 0 10 0\n"
        for number, local, remote, state in [
            (1, "0100007F:1F90", "00000000:0000", "0A"),  # 127.0.0.1:8080
            (2, "00000000:18EB", "00000000:0000", "0A"),  # 0.0.0.0:6379
            (3, "0500000A:ACC3", "00000000:0000", "0A"),  # 10.0.0.5:44227
            (4, "0500000A:1F90", "0600000A:ACC3", "01"),  # a connection
            (5, f"{'0' * 24}01000000:0050", f"{'0' * 32}:0000", "0A"),  # [::1]:80
            (6, f"{'0' * 32}:0051", f"{'0' * 32}:0000", "0A"),  # [::]:81
            (7, f"{'0' * 16}FFFF00000100007F:0052", f"{'0' * 32}:0000", "0A"),  # ::ffff:127.0.0.1
        ]
    )
    assert doctor.off_loopback(table) == {"2": 6379, "3": 44227, "6": 81}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([b"/x/ray/core/src/ray/gcs/gcs_server", b"--log_dir=/tmp"], "gcs_server"),
        ([b"ray::IDLE"], "ray's python"),
        ([b"/usr/bin/python", b"/x/site-packages/ray/dashboard/dashboard.py"], "ray's python"),
        ([b"python", b"-m", b"dyefreenet.cli"], "dyefreenet"),
        ([b"/usr/sbin/sshd"], None),
    ],
)
def test_whose_process_it_is(words, name):
    assert doctor.name_of(words) == name


def test_ports_without_a_token():
    with_it = doctor.Port("raylet", 1, True)
    assert doctor.open_ports([]).level == OK
    assert doctor.open_ports([with_it, doctor.Port("ray's python", 2, None)]).level == OK
    found = doctor.open_ports([with_it, doctor.Port("gcs_server", 3, False)])
    assert found.level == WARN and found.found.endswith("gcs_server 1, raylet 1, without a token")


# ---- cluster -------------------------------------------------------------------------------------


def test_a_node_that_does_not_reach_the_store():
    bad = doctor.Finding(
        FAIL, "store", "s3://b/runs: cannot be written: no credentials", "set them"
    )
    answers = {"10.0.0.5": [doctor.Finding(OK, "store", "fine")], "10.0.0.6": [bad]}
    answers["10.0.0.7"] = ModuleNotFoundError("No module named 'packaging'")
    first, second, count = doctor.nodes(answers)
    assert first.what == "node 10.0.0.6" and first.found.startswith("store: s3://b/runs: cannot")
    assert second.level == FAIL and "No module named 'packaging'" in second.found
    assert (count.level, count.found[:6]) == (WARN, "1 of 3")


def test_a_store_that_nodes_do_not_share(tmp_path):
    found = doctor.examine_node(Folder(str(tmp_path)), "written by the driver")
    assert [one.what for one in found if one.level == FAIL] == ["store"]
    assert "all nodes share" in found[-1].cure


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MISMATCH, ["Ray 2.60.0 and Python 3.11.7", "found Ray 2.61.0 and Python 3.12.1 here"]),
        ("InvalidAuthToken: Authentication token is missing or incorrect", ["RAY_AUTH_MODE=token"]),
        (
            "Token authentication is enabled but no authentication token was found. Ensure ...",
            ["RAY_AUTH_TOKEN_PATH"],
        ),
        ("something else\nat length", ["found: something else (-v"]),
    ],
)
def test_what_ray_says_becomes_one_line(text, words):
    line = runtime.why_not("head:6379", text)
    assert "\n" not in line and line.startswith("RAY_ADDRESS=head:6379: expected")
    assert all(word in line for word in words)


def test_a_dashboards_address_is_told_from_a_clusters():
    assert "RAY_API_SERVER_ADDRESS" in runtime.why_not("http://head:8265", "2. Set RAY_ADDRESS to")


def test_what_a_node_lacks_is_told_with_its_cure():
    from ray.exceptions import RayTaskError, RuntimeEnvSetupError

    missing = ModuleNotFoundError("No module named 'imagecodecs'")
    lost = RayTaskError("work", "At: No module named 'imagecodecs'", missing)
    for error, words in (
        (lost.as_instanceof_cause(), ["expected the package imagecodecs", "cluster/Dockerfile"]),
        (RuntimeEnvSetupError("pip failed\nno such place"), ["found: no such place;"]),
    ):
        line = runtime.lacking_on_a_node(error)
        assert "\n" not in line and all(word in line for word in words)
    assert runtime.lacking_on_a_node(missing) is None  # here, where pip is at hand
    assert runtime.lacking_on_a_node(RayTaskError("work", "Traceback", ValueError("x"))) is None


STARVED = [  # as Ray 2.60 says it
    "The current node timed out during startup. This could happen because some of the raylet "
    "failed to startup or the GCS has become overloaded.",
    "\nThe last 20 lines of /tmp/ray/session_1/logs/dashboard.log (it contains the error message "
    "from the dashboard): \nLoaded 9 subprocess modules",
]


@pytest.mark.parametrize("said", STARVED)
def test_a_start_on_a_busy_machine_is_tried_once_more(said):
    tries = []

    def start():
        tries.append(1)
        if len(tries) == 1:
            raise Exception(said)

    runtime.start_or_say_why(start, None, verbose=False)
    assert len(tries) == 2

    def never():
        tries.append(1)
        raise Exception(said)

    with pytest.raises(ResourceError, match="this machine has too much to do"):
        runtime.start_or_say_why(never, None, verbose=False)
    assert len(tries) == 4


def test_another_error_is_not_tried_again():
    tries = []

    def start():
        tries.append(1)
        os.write(2, b"gcs_client.cc: Unauthenticated: RPC error: InvalidAuthToken\n")
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379")

    with pytest.raises(ResourceError, match="expected the cluster's token"):
        runtime.start_or_say_why(start, "10.0.0.5:6379", verbose=False)
    assert len(tries) == 1


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_without_a_cluster(capsys, tmp_path):
    assert main(["doctor", "--store", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {one["what"]: one for one in told["findings"]}
    assert told["ok"] and found["store"]["level"] == OK and "ray" in found["packages"]["found"]
    assert os.environ["RAY_AUTH_TOKEN"] not in json.dumps(told)


def test_a_failure_is_the_exit_status(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(  # this process may have joined the tests' own cluster
        [sys.executable, "-m", "dyefreenet.cli", "doctor", "--store", str(tmp_path / "file")],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:9"},  # nobody listens there
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "FAIL store" in done.stdout and "found nobody who answers" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("dyefreenet: error: 2 of ")


def doctors(cluster, tmp_path, **environment):
    import ray

    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-m", "dyefreenet.cli", "doctor", "--store", str(tmp_path / "runs")],
        env=os.environ | {"RAY_ADDRESS": address} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
    return done


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_and_its_nodes(cluster, tmp_path):
    done = doctors(cluster, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same versions there: Ray" in done.stdout
    assert "1 of 1 reach the store" in done.stdout
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token(cluster, tmp_path):
    done = doctors(cluster, tmp_path, RAY_AUTH_TOKEN="b" * 64)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "cluster " in line]
    assert "expected the cluster's token" in line and "b" * 64 not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
