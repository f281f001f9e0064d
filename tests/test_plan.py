"""Which steps are done, which are not, and what happens when a config differs."""

import json

import pytest

from dyefreenet import recipes
from dyefreenet.errors import ConfigError, StoreError
from dyefreenet.plan import plan, steps_of
from dyefreenet.store import Folder, fingerprint


def finish(run, recipe, *names):
    for planned in plan(recipe, run):
        if planned.step.name in names:
            (run / planned.step.name).publish(planned.fingerprint, planned.step.config)


def test_every_step_comes_after_its_needs():
    seen = set()
    for step in steps_of(recipes.load("demo")):
        assert set(step.needs) <= seen
        seen.add(step.name)
    assert seen == {
        *("phantom", "ingest", "ssl", "primary", "refine", "unet", "pix2pix", "primary_scratch"),
        "evaluate",
    }


def test_what_is_published_is_done(tmp_path):
    recipe, run = recipes.load("demo"), Folder(str(tmp_path))
    finish(run, recipe, "phantom", "ingest")
    done = {planned.step.name for planned in plan(recipe, run) if planned.done}
    assert done == {"phantom", "ingest"}


def test_another_config_stops_with_the_fields_name(tmp_path):
    run = Folder(str(tmp_path))
    finish(run, recipes.load("demo"), "phantom", "ingest", "ssl")
    with pytest.raises(
        StoreError, match=r"ssl: was made with ssl\.lr=0\.001, the recipe says 0\.5"
    ):
        plan(recipes.load("demo", ["ssl.lr=0.5"]), run)


def test_a_step_of_an_older_version_is_done_where_what_is_new_has_its_default(tmp_path):
    recipe, run = recipes.load("demo"), Folder(str(tmp_path))
    marks = {}
    for planned in plan(recipe, run):
        if planned.step.name in ("phantom", "ingest", "ssl", "primary"):
            config = json.loads(json.dumps(planned.step.config))
            config.get("generator", {}).pop("packed", None)
            config.get("primary", {}).pop("judged_at", None)
            needs = {name: marks[name] for name in planned.needs}
            marks[planned.step.name] = fingerprint(config, needs)
            (run / planned.step.name).publish(marks[planned.step.name], config, needs=needs)
    found = {planned.step.name: planned for planned in plan(recipe, run)}
    assert [name for name, planned in found.items() if planned.done] == list(marks)
    assert found["refine"].needs["primary"] == marks["primary"]
    changed = ["generator.packed=true", "primary.judged_at=full"]
    with pytest.raises(StoreError, match=r"ssl: was made with generator\.packed=null"):
        plan(recipes.load("demo", changed), run)


def test_a_step_made_from_other_inputs_is_not_done_however_its_config_looks(tmp_path):
    recipe, run = recipes.load("demo"), Folder(str(tmp_path))
    finish(run, recipe, "phantom", "ingest")
    ssl = next(planned for planned in plan(recipe, run) if planned.step.name == "ssl")
    (run / "ssl").publish("another", ssl.step.config, needs={"ingest": "another"})
    with pytest.raises(StoreError, match="ssl: was made with other inputs"):
        plan(recipe, run)


def test_a_change_reaches_only_what_depends_on_it(tmp_path):
    run = Folder(str(tmp_path))
    finish(run, recipes.load("demo"), "phantom", "ingest", "ssl")
    todo = plan(recipes.load("demo", ["refine.lr=0.5"]), run)
    assert [p.step.name for p in todo if p.done] == ["phantom", "ingest", "ssl"]


def test_one_stage_alone_wants_its_needs_done(tmp_path):
    recipe, run = recipes.load("demo"), Folder(str(tmp_path))
    with pytest.raises(ConfigError, match="refine: it needs 'ingest', which is not done"):
        plan(recipe, run, ["refine"])
    finish(run, recipe, "phantom", "ingest", "ssl", "primary")
    assert [planned.step.name for planned in plan(recipe, run, ["refine"])] == ["refine"]
    with pytest.raises(ConfigError, match="--stage: expected phantom, ingest"):
        plan(recipe, run, ["refined"])


def test_no_data_is_said_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"ingest\.paired: expected a folder of plain and"):
        plan(recipes.load("paper"), Folder(str(tmp_path)))


def test_planning_imports_neither_ray_nor_torch():
    import subprocess
    import sys

    code = (
        "import sys; from dyefreenet import cli, plan, recipes, pipeline;"
        "sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
