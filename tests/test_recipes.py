"""Recipes: the paper's values, changes by name, and errors that name the right one."""

import pytest

from dyefreenet import recipes
from dyefreenet.errors import ConfigError


def test_paper_recipe_holds_the_papers_values():
    recipe = recipes.load("paper")
    ssl, primary, refine = recipe.ssl, recipe.primary, recipe.refine
    assert ssl.coefficients == (0.5, 1.0, 1.5, 2.0)
    assert (ssl.lr, ssl.decay, ssl.decay_epoch, ssl.gamma) == (1e-6, "step", 5, 0.1)
    assert (ssl.epochs, ssl.batch, ssl.head) == (10, 8, "paper")
    assert (primary.lr, primary.decay_epoch, primary.epochs, primary.batch) == (1e-5, 20, 25, 4)
    assert (refine.lr, refine.decay_epoch, refine.epochs, refine.batch) == (5e-5, 17, 20, 4)
    for stage in (primary, refine):
        assert (stage.gamma, stage.weight_decay, stage.mse_weight) == (0.1, 5e-4, 0.01)
        assert (stage.init, stage.perceptual_features) == ("previous", "ssl")
        assert (stage.adversarial_weight, stage.d_mse_weight) == (1.0, 1.0)
        assert stage.discriminator_lr_factor == 1.0 and stage.crop is None
        assert stage.l1_weight == stage.vessel_weight == 0.0
    generator = recipe.generator
    assert (generator.base, generator.levels, generator.norm) == (32, 5, "batch")
    assert not generator.residual
    assert (recipe.grid.size, recipe.grid.window) == (512, (-200.0, 600.0))
    assert (recipe.grid.upsample, recipe.grid.pixel_mm) == ("image", None)
    assert recipe.phantom is None


@pytest.mark.parametrize("name", ["demo", "best", "paper", "real"])
def test_a_recipe_survives_the_way_through_json(name):
    recipe = recipes.load(name)
    assert recipes.validate(recipe.model_dump(mode="json")) == recipe


def test_set_changes_one_field():
    recipe = recipes.load("demo", ["primary.lr=1e-4", "ingest.paired=[a, b]", "refine.crop=null"])
    assert (recipe.primary.lr, recipe.ingest.paired, recipe.refine.crop) == (1e-4, ("a", "b"), None)
    assert recipe.refine.lr == recipes.load("demo").refine.lr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("primary.lrr=1", "primary.lrr: no such field; did you mean 'primary.lr'"),
        ("prmary.lr=1", "did you mean 'primary.lr'"),
        ("primary.lr=-1", "primary.lr: Input should be greater than 0, found -1"),
        ("primary.lr=fast", "primary.lr: Input should be a valid number"),
        ("primary.lr", "expected field=value"),
        (
            "primary.perceptual_blocks=[1, 2]",
            "expected 7 weights for the blocks of generator.levels=4",
        ),
        ("ssl.crop=100", "expected a multiple of 16 pixels for 4 levels, found 100"),
        ("ssl.crop=512", "expected at most grid.size=256, found 512"),
        ("grid.window=[5, 5]", "expected low < high"),
    ],
)
def test_a_wrong_change_is_told_in_one_line(change, message):
    with pytest.raises(ConfigError) as error:
        recipes.load("demo", [change])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_names_its_base_and_what_differs(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: demo\nname: mine\nprimary: {lr: 0.5, epochs: 7}\n")
    recipe = recipes.load(str(file))
    demo = recipes.load("demo")
    assert (recipe.name, recipe.primary.lr, recipe.primary.epochs) == ("mine", 0.5, 7)
    assert recipe.primary.mse_weight == demo.primary.mse_weight
    file.write_text("base: demo\nprimary: {rl: 0.5}\n")
    with pytest.raises(ConfigError, match=r"primary\.rl: no such field"):
        recipes.load(str(file))
    with pytest.raises(ConfigError, match="expected a file, found none"):
        recipes.load(str(tmp_path / "none.yaml"))


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        recipes.load("dmo")


def test_a_packed_generator_is_judged_at_the_size_that_it_makes():
    with pytest.raises(ConfigError, match=r"primary\.judged_at: expected full where"):
        recipes.load("demo", ["generator.packed=true"])
