"""Object storage that fails: the right bytes or one error in one line, and never a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.session
import numpy as np
import pytest
from fault_proxy import FaultProxy

from dyefreenet.errors import DyeFreeNetError, InputError, StoreError
from dyefreenet.store import Folder

CONTENT = np.random.default_rng(0).bytes(600_000)
OTHER = CONTENT[::-1]


@pytest.fixture
def direct(s3, monkeypatch):
    """The store as it is; patience is short, so that a server may be silent for 0.25 s."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DYEFREENET_STORE_PATIENCE", "1")
    return s3


@pytest.fixture
def proxy(direct, monkeypatch):
    with FaultProxy(int(direct["AWS_ENDPOINT_URL"].rpartition(":")[2])) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


@pytest.fixture
def folder(proxy, request):
    """A folder with a file, a finished step and one to be cleared."""
    made = Folder(f"s3://scans/faults/{abs(hash(request.node.name))}")
    made.write("a.bin", CONTENT)
    (made / "done").publish("mark", {"lr": 1})
    (made / "old").write("b.bin", b"b")
    yield made
    proxy.faults.clear()
    proxy.always, proxy.share, proxy.latency = "ok", 0.0, 0.0
    made.clear()


# Every operation, and what it gives when nothing fails.
OPERATIONS: dict[str, tuple[Callable[[Folder], Any], Any]] = {
    "read": (lambda folder: folder.read("a.bin"), CONTENT),
    "head": (lambda folder: folder.read("a.bin", first=1000), CONTENT[:1000]),
    "write": (lambda folder: folder.write("c.bin", OTHER) and None, None),
    "exists": (lambda folder: folder.exists("a.bin"), True),
    "absent": (lambda folder: folder.exists("z.bin"), False),
    "names": (lambda folder: [n for n in folder.names() if n == "a.bin"], ["a.bin"]),
    "clear": (lambda folder: (folder / "old").clear(), None),
    "manifest": (lambda folder: (folder / "done").manifest()["fingerprint"], "mark"),
    "publish": (lambda folder: (folder / "new").publish("mark", {}), None),
    "again": (lambda folder: (folder / "done").publish("mark", {"lr": 1}), None),
    "probe": (lambda folder: folder.require_writable(), None),
}


def outcome(call: Callable[[Folder], Any], folder: Folder) -> tuple[Any, float]:
    """What an operation gave, or its error, and the seconds that it took."""
    began = time.monotonic()
    try:
        return call(folder), time.monotonic() - began
    except DyeFreeNetError as error:
        assert "\n" not in str(error)
        return error, time.monotonic() - began


def outcomes(folder: Folder) -> dict[str, tuple[Any, float]]:
    """All operations at a time."""
    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        calls = {name: pool.submit(outcome, OPERATIONS[name][0], folder) for name in OPERATIONS}
        return {name: call.result() for name, call in calls.items()}


@pytest.mark.parametrize("fault", ["503", "500", "reset", "lost", "half", "hang", "stall"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_that_passes_is_not_seen(folder, proxy, name, fault):
    call, expected = OPERATIONS[name]
    proxy.faults.extend([fault, fault])
    found, seconds = outcome(call, folder)
    assert found == expected and seconds < 5
    if name == "write":
        assert folder.read("c.bin") == OTHER


def test_a_busy_store_is_not_asked_twice_at_once(folder, proxy):
    folder.read("a.bin")
    for call in (lambda: folder.read("a.bin"), lambda: folder.write("d.bin", OTHER)):
        before = proxy.asked
        proxy.faults.append("503")
        call()
        assert proxy.asked - before == 2


@pytest.mark.parametrize(
    ("region", "endpoint", "base"),
    [
        ("eu-central-1", "", "https://scans.s3.eu-central-1.amazonaws.com/"),
        ("cn-north-1", "", "https://scans.s3.cn-north-1.amazonaws.com.cn/"),
        ("us-east-1", "http://store:9000", "http://store:9000/scans/"),
    ],
)
def test_own_requests_go_where_the_clients_go(monkeypatch, region, endpoint, base):
    from dyefreenet import bucket

    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if not endpoint:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    connection = bucket._connection()
    assert connection._base("scans") == base
    sent = []

    def keep(request, **_):
        sent.append(request.url)
        raise RuntimeError("far enough")

    connection.client.meta.events.register_first("before-send.s3", keep)
    with pytest.raises(RuntimeError):
        connection.client.get_object(Bucket="scans", Key="k")
    assert sent == [f"{base}k"]


@pytest.mark.parametrize("fault", ["503", "500", "reset", "lost", "stall"])
def test_a_fault_that_lasts_is_an_error_in_time(folder, proxy, fault):
    proxy.always = fault
    for name, (found, seconds) in outcomes(folder).items():
        assert isinstance(found, InputError), name
        assert "no good answer" in str(found) and "AWS_ENDPOINT_URL" in str(found)
        assert seconds < 6, name
    proxy.always = "ok"
    assert folder.read("a.bin") == CONTENT
    assert not folder.exists("c.bin") or folder.read("c.bin") == OTHER


@pytest.mark.parametrize("fault", ["half", "hang"])
def test_bodies_cut_short_again_and_again_give_no_byte(folder, proxy, fault):
    proxy.always = fault
    found = outcomes(folder)
    for name in ("read", "head", "names", "manifest", "probe", "publish"):
        assert isinstance(found[name][0], InputError), name
    for name, (value, seconds) in found.items():  # what has no body in its answer may go well
        assert isinstance(value, InputError) or value == OPERATIONS[name][1], name
        assert seconds < 6, name


@pytest.mark.parametrize("name", ["read", "manifest", "publish", "probe"])
def test_a_flipped_bit_is_read_once_more_and_then_refused(folder, proxy, name):
    call, expected = OPERATIONS[name]
    proxy.faults.append("flip")
    assert outcome(call, folder)[0] == expected
    proxy.always = "flip"
    found, seconds = outcome(call, folder)
    assert isinstance(found, DyeFreeNetError) and seconds < 6


@pytest.mark.parametrize("flips", [1, 3])
def test_a_flipped_bit_of_what_another_wrote_is_seen_by_its_etag(folder, proxy, direct, flips):
    client = botocore.session.Session().create_client("s3")
    client.put_object(Bucket="scans", Key="foreign", Body=CONTENT)
    proxy.faults.extend(["flip"] * flips)
    assert Folder("s3://scans").read("foreign") == CONTENT


def test_a_digest_of_ones_own_needs_no_help_from_the_store(folder, proxy):
    """What somebody else put there has no digest but the one that we keep ourselves."""
    digest = folder.write("own.bin", CONTENT)
    folder.write("own.bin", OTHER)
    with pytest.raises(StoreError, match=r"own\.bin: expected SHA-256 .* found .* twice"):
        folder.read("own.bin", digest)


def test_a_bit_flipped_on_the_way_up_is_not_stored(folder, proxy):
    proxy.faults.append("flip-up")
    found, _ = outcome(lambda f: f.write("c.bin", OTHER), folder)
    assert isinstance(found, DyeFreeNetError) or folder.read("c.bin") == OTHER
    proxy.always = "flip-up"
    found, seconds = outcome(lambda f: f.write("d.bin", OTHER), folder)
    assert isinstance(found, DyeFreeNetError) and seconds < 6
    proxy.always = "ok"
    assert not folder.exists("d.bin")


def test_a_store_that_says_no_checksum_is_read_back(folder, proxy):
    before = proxy.asked
    proxy.always = "unsaid"
    folder.write("c.bin", OTHER)
    assert proxy.asked - before == 2
    proxy.faults.extend(["unsaid", *["flip"] * 30])
    found, _ = outcome(lambda f: f.write("c.bin", OTHER), folder)
    assert isinstance(found, InputError)


def test_a_store_without_conditions_still_publishes_once(folder, proxy):
    proxy.faults.append("501")
    (folder / "new").publish("mark", {})
    proxy.faults.append("501")
    with pytest.raises(StoreError, match="another run published this step first"):
        (folder / "new").publish("other", {})
    assert (folder / "new").manifest()["fingerprint"] == "mark"


def test_a_slow_store_is_waited_for(folder, proxy, monkeypatch):
    monkeypatch.setenv("DYEFREENET_STORE_PATIENCE", "4")  # silent for 1 s at most
    proxy.latency = 0.5
    for name, (found, _) in outcomes(folder).items():
        assert found == OPERATIONS[name][1], name
    assert folder.read("c.bin") == OTHER


def test_one_request_in_a_hundred_fails_and_nobody_notices(folder, proxy):
    proxy.share = 0.01
    for number in range(100):
        content = CONTENT[number : number + 2000]
        assert folder.read("n.bin", folder.write("n.bin", content)) == content


def test_large_uploads_to_a_server_that_reads_nothing_end(folder, proxy):
    """More than the sockets between the two hold, so that sending itself waits."""
    proxy.always = "stall"
    found, seconds = outcome(lambda f: f.write("large.bin", bytes(30_000_000)), folder)
    assert isinstance(found, InputError) and seconds < 6


# ---- who may do what -----------------------------------------------------------------------------


def test_a_wrong_secret(direct, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match=r"s3://scans/a: .*AWS_SECRET_ACCESS_KEY"):
        Folder("s3://scans/a").require_writable()


def test_an_unknown_key(direct, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(InputError, match=r"AWS_ACCESS_KEY_ID"):
        Folder("s3://scans/a").names()


def test_no_credentials(direct, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"no credentials; set AWS_ACCESS_KEY_ID"):
        Folder("s3://scans/a").require_writable()


def test_whoever_may_only_read_reads(direct, monkeypatch):
    folder = Folder("s3://scans/readers")
    folder.write("a.bin", CONTENT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    assert folder.read("a.bin") == CONTENT and folder.names() == ["a.bin"]
    for call in (folder.require_writable, folder.clear, lambda: folder.publish("mark", {})):
        with pytest.raises(InputError, match="AccessDenied; these credentials may not"):
            call()
    assert folder.names() == ["a.bin"]


@pytest.mark.parametrize("name", ["read", "absent", "names"])  # this server makes what is written
def test_an_unknown_bucket(direct, name):
    found, _ = outcome(OPERATIONS[name][0], Folder("s3://nowhere/a"))
    assert isinstance(found, InputError) and "make the bucket, or name another" in str(found)


def test_nobody_listens(direct, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found, seconds = outcome(OPERATIONS["read"][0], Folder("s3://scans/a"))
    assert isinstance(found, InputError) and "look whether the store is up" in str(found)
    assert seconds < 6


@pytest.mark.parametrize(
    ("name", "value"), [("DYEFREENET_STORE_PATIENCE", "soon"), ("AWS_ENDPOINT_URL", "no address")]
)
def test_settings_that_mean_nothing_are_named(direct, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(DyeFreeNetError, match=name):
        Folder("s3://scans/a").names()
