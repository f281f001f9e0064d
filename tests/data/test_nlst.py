"""The plan for NLST: descriptions as the catalogue really has them, one series a study."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyefreenet.cli import main
from dyefreenet.data.nlst import NlstRules, described, read_catalogue, read_rules, select
from dyefreenet.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("text", "kind", "kernel", "thickness", "odd"),
    [
        ("0,OPA,GE,LSQX,STANDARD,340,2.5,120,60,0.1,1.5", "OPA", "STANDARD", 2.5, 0),
        ("2,OPL,GE,LSPLUS,STANDARD,null,na,120,0,0,na", "OPL", "STANDARD", None, 0),
        ("1,OPL,SE,SEN16,T20s,1,024,na,80,223.7,223,na", "OPL", "T20s", None, 1),
        ("1,OPA,GE,LS16,STANDARD,null,350.2,120,80,0,na", "OPA", "STANDARD", None, 1),
        ("1,OPA,TO,AQUL4,unkn,320,2,120,40,20,1.5", "OPA", "", 2.0, 0),
        ("0,DS,SE,VZOOM,B30f,320,2,120,40,20,1.5", "DS", "B30f", 2.0, 1),
        ("0,OPA,XX,NEW,B30f,320,two,120,40,20,1.5", "OPA", "B30f", None, 2),
    ],
)
def test_a_description_by_its_fields(text, kind, kernel, thickness, odd):
    told = described(text)
    assert (told.kind, told.kernel, told.thickness_mm, len(told.odd)) == (
        kind,
        kernel,
        thickness,
        odd,
    )


@pytest.mark.parametrize("text", ["", "CHEST", "1,2,3", "9,OPA,GE,M,K,1,2,3,4,5,6", "," * 10])
def test_another_description_is_unknown_and_not_guessed(text):
    assert described(text) is None


def series(uid, study="s", kernel="STANDARD", thickness="2.5", images=120, kind="OPA", **more):
    return {
        "series": uid,
        "study": study,
        "patient": f"p-{study}",
        "description": f"0,{kind},GE,LSQX,{kernel},340,{thickness},120,60,0.1,1.5",
        "images": images,
        "megabytes": images / 2,
        "url": "",
        "syntax": "1.2.840.10008.1.2.1",
    } | more


def chosen(rows, **rules):
    return [row["series"] for row in select(rows, NlstRules(**rules)).taken]


def test_soft_then_thin_then_long_then_by_uid():
    assert chosen([series("a", kernel="BONE", thickness="1"), series("b")]) == ["b"]
    assert chosen([series("a", thickness="5"), series("b", thickness="1.25")]) == ["b"]
    assert chosen([series("a", thickness="na"), series("b", thickness="5")]) == ["b"]
    assert chosen([series("a", images=100), series("b", images=150)]) == ["b"]
    assert chosen([series("b"), series("a")]) == ["a"]


def test_one_a_study_whatever_the_order_and_every_series_accounted_for():
    rows = [
        *[series(f"1.{n}", study="one", thickness=str(n)) for n in range(1, 6)],
        series("2.1", study="two", kind="OPL", images=2),
        series("2.2", study="two", images=30),
        series("2.3", study="two", kernel="BONE"),
        series("3.1", study="three", kind="DSR"),
        series("3.2", study="three", description="CHEST"),
        series("4.1", study="four", modality="MR"),
        series("5.1", study="five", collection="acrin"),
    ]
    plan = select(rows, NlstRules())
    told = plan.summary()
    assert [row["series"] for row in plan.taken] == ["1.1"]
    assert told["found"] == 12 == told["selected"] + sum(told["refused"].values())
    assert told["refused"] == {
        "derived": 1,
        "description": 1,
        "few-images": 1,
        "kernel": 1,
        "localizer": 1,
        "not-ct": 1,
        "not-nlst": 1,
        "other-series": 4,
    }
    assert told["odd"] == {"not the fields of NLST": {"series": 1, "examples": ["CHEST"]}}
    assert (told["studies"], told["studies_without"]) == (3, 2)  # of NLST, and CT
    random.Random(0).shuffle(rows)
    assert select(rows, NlstRules()).summary() == told
    assert chosen(rows, any_kernel=True) == ["1.1", "2.3"]
    assert chosen(rows, max_thickness_mm=0.5) == []


def test_what_needs_attention_is_told():
    odd = [
        series("a", study="a", syntax="1.2.840.10008.1.2.4.51"),
        series("b", study="b", syntax="1.2.840.10008.1.2,1.2.840.10008.1.2.1", sign="0,1"),
        series("c", study="c", thickness="350.2"),
    ]
    assert select(odd, NlstRules()).summary()["attention"] == {
        "compressed": 1,
        "several transfer syntaxes": 1,
        "signed and unsigned pixels": 1,
        "thickness unknown": 1,
    }


IDC_NAMES = {
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "patient": "PatientID",
    "description": "SeriesDescription",
    "images": "instanceCount",
    "megabytes": "series_size_MB",
    "url": "series_aws_url",
}


def test_catalogues_of_each_kind_give_one_plan(tmp_path, capsys):
    rows = [series("a"), series("b", thickness="1")]
    table = [{IDC_NAMES[k]: v for k, v in row.items() if k in IDC_NAMES} for row in rows]
    other = table[0] | {"collection_id": "acrin", "SeriesInstanceUID": "z", "StudyInstanceUID": "z"}
    table = [row | {"collection_id": "nlst"} for row in table] + [other]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "c.parquet")
    nbia = "Subject ID,Study UID,Series UID,Series Description,Number of Images\n" + "".join(
        f'p-s,s,{row["series"]},"{row["description"]}",{row["images"]}\n' for row in rows
    )
    (tmp_path / "metadata.csv").write_text(nbia)
    for name in ("c.parquet", "metadata.csv"):
        out = tmp_path / f"plan-{name}"
        assert main(["plan", "--catalogue", str(tmp_path / name), "-o", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["selected"], told["found"]) == (1, 2)
        assert [row["series"] for row in pq.read_table(out / "plan.parquet").to_pylist()] == ["b"]
        assert json.loads((out / "summary.json").read_text()) == told
        assert "b,s,p-s,train" in (out / "plan.csv").read_text()


def test_rules_are_a_file_to_edit(tmp_path, capsys):
    path = tmp_path / "rules.yaml"
    assert main(["plan", "--write-rules", str(path)]) == 0
    assert read_rules(str(path)) == NlstRules()
    path.write_text(path.read_text().replace("min_images: 60", "min_images: 10"))
    assert read_rules(str(path)).min_images == 10
    path.write_text("min_image: 10\n")
    with pytest.raises(ConfigError, match="min_image: no such field; did you mean 'min_images'"):
        read_rules(str(path))
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="expected fields with values"):
        read_rules(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "expected a catalogue, found none"),
        ("c.csv", b"a,b\n1,2\n", "expected a column SeriesInstanceUID or Series UID, found a, b"),
        ("e.csv", b"Series UID,Study UID,Subject ID,Series Description,Number of Images\n", "none"),
        ("b.csv", b"\xff\xfe\x00", "expected CSV in UTF-8"),
        ("c.parquet", b"no parquet", "expected a Parquet file"),
    ],
)
def test_a_catalogue_that_is_none_is_told_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_catalogue(str(tmp_path / name)))
