"""What a person is told of the settings is what the code does: every setting, its bounds, and `train --set help`."""

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.methods import METHODS
from univip_stream.pretrain import RECIPES, PretrainConfig
from univip_stream.pretrain.meanings import group_meanings, settings_of
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import flat, with_settings

EVERY = settings_of()


def told(*settings):
    arguments = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(cli, ["train", *arguments])


def test_every_setting_is_told_once_with_a_whole_sentence():
    for name, kind in METHODS.items():
        mine = [setting.key for setting in EVERY if not setting.methods or name in setting.methods]
        assert sorted(mine) == sorted(flat(PretrainConfig(method=kind.Settings(name=name))))
    for setting in EVERY:
        text = setting.meaning
        # "Of the gradient." is no sentence to somebody who sees no code around it.
        assert text[:1].isupper() or text.startswith((setting.default, "b:", "c:", "h:", "s:")), setting
        assert text.endswith("."), setting
        assert not text.startswith(("Of ", "As `", "How long.")), setting
        assert setting.allowed, setting
    assert all(text.endswith(".") for text in group_meanings().values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_other_values_are_told_and_can_be_set(name):
    values, config = flat(recipe(name)), PretrainConfig()
    for setting in EVERY:
        if setting.key == "recipe" or (setting.methods and recipe(name).method.name not in setting.methods):
            continue
        text = setting.recipes.get(name, setting.default)
        assert (name in setting.recipes) == (values[setting.key] != flat(config)[setting.key])
        found = flat(with_settings(config, [f"{setting.key}={text}"]))[setting.key]
        assert found == values[setting.key] or found == pytest.approx(values[setting.key], abs=1e-4)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("optim.name", "sgd or lars or adamw"),
        ("optim.lr", "a number of at least 0"),
        ("views.scene_size", "a whole number, at least 8, at most 4096 pixels"),
        ("augment.blur_p", "a chance for each view, 0 to 1"),
        ("augment.mean", "3 numbers"),
        ("steps", "a whole number, at least 1 or null"),
        ("compile", "true or false"),
    ],
)
def test_what_is_allowed_is_what_the_checks_allow(key, allowed):
    [setting] = settings_of(key)
    assert setting.allowed == allowed


def test_help_in_the_terminal_needs_no_other_option():
    done = told("help")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    for setting in EVERY:
        same = [other for other in EVERY if other.key == setting.key]
        assert sum(line.startswith(f"  {setting.key}  [default: ") for line in lines) == len(same)
        assert len(same) == 1 or not set.intersection(*(set(other.methods) for other in same))
    assert "    Smallest and largest area of a view as a share of the image's." in done.output
    assert max(map(len, lines)) <= 120


def test_help_of_a_group_and_of_one_setting():
    views = told("optim.lr=1", "views.help").output
    assert "views.tries" in views
    assert "optim.lr" not in views
    one = told("optim.lr.help").output
    assert "optim.lr  [default: 0.4" in one
    assert "cpu-demo has 0.05" in one
    assert "optim.momentum" not in one


def test_help_of_what_is_not_there_names_the_groups():
    with pytest.raises(UsageError, match="no group or setting 'veiws'; the groups are method, views"):
        settings_of("veiws")
    assert told("veiws.help").exit_code != 0
