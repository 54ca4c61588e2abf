"""A method of one's own by module:Class: it trains like any other, and its mistakes are told in words."""

import re
import sys
from pathlib import Path

import pytest
from test_every_method import records, train

BASE = """
import torch
from univip_stream.methods import Encoder, Method, ScenePlan, feature_std

class Fine(Method):
    terms = ("loss_own",)

    def __init__(self, config, plan):
        super().__init__(config, plan)
        self.online = Encoder(config)

    def forward(self, batch):
        z = self.encode(self.online, batch["scenes"])
        loss = (z[0] - z[1]).square().mean()
        return {"loss": loss, "loss_own": loss, "feature_std": feature_std(z)}
"""

MISTAKES = {
    "class Wrong(torch.nn.Module): pass": "is the class Wrong; expected a subclass of univip_stream.methods.Method",
    "Wrong = 3": "is an int; expected a subclass",
    "class Wrong(Method): pass": "has no forward; a method must define it",
    "class Wrong(Fine):\n    terms = ['own']": "terms is ['own']; expected a tuple of names that begin with loss_",
    "class Wrong(Fine):\n    settings = 3": "settings is an int; expected a dictionary of dotted settings",
    "class Wrong(Fine):\n    settings = {'views.sizes': 3}": "there is no setting 'views.sizes'",
    "class Wrong(Fine):\n    Settings = dict": "Settings is the class dict; expected a dataclass that inherits MethodConfig",
    "class Wrong(Fine):\n    def __init__(self): pass": "cannot be built with (config, plan): TypeError",
    "class Wrong(Fine):\n    def __init__(self, config, plan):\n        torch.nn.Module.__init__(self); self.config = config":
        "cannot be built with (config, plan): AttributeError",
    "class Wrong(Fine):\n    def forward(self, batch): return self.online(batch['scenes'][0]).mean()":
        "forward returned a Tensor; expected a dictionary",
    "class Wrong(Fine):\n    def forward(self, batch): return {'loss': super().forward(batch)['loss']}":
        "forward returned no 'loss_own' but loss",
    "class Wrong(Fine):\n    def forward(self, b): return super().forward(b) | {'loss': self.online(b['scenes'][0])}":
        "forward returned for 'loss' a Tensor of shape (4, 8)",
    "class Wrong(Fine):\n    def forward(self, batch): return super().forward(batch) | {'loss_own': 0.5}":
        "forward returned for 'loss_own' a float; expected a 0-dimensional tensor",
    "class Wrong(Fine):\n    def forward(self, batch): return super().forward(batch) | {'loss': torch.zeros(())}":
        "a loss without a gradient",
    "class Wrong(Fine):\n    def forward(self, batch):\n        return self.online(batch['views'])": "its step failed: KeyError",
    "class Wrong(Fine):\n    @classmethod\n    def plan(cls, config, views, augment): return views": "plan gave a ViewConfig",
    "class Wrong(Fine):\n    @classmethod\n    def plan(cls, *all): return 1 / 0": "its plan failed: ZeroDivisionError",
    "class P(ScenePlan):\n    def add(self, drawn, *more): drawn.windows['scenes'] = drawn.windows['scenes'] + 9999\n"
    "class Wrong(Fine):\n    @classmethod\n    def plan(cls, config, views, augment): return P(views, augment)":
        "not inside the image of 320 x 240 pixels",
    "class P(ScenePlan):\n    def add(self, drawn, *more): del drawn.draws['scenes']\n"
    "class Wrong(Fine):\n    @classmethod\n    def plan(cls, config, views, augment): return P(views, augment)":
        "P.draw gave as draws of scenes none; expected float32 (2, 12)",
    "class P(ScenePlan):\n    def add(self, drawn, *more): 1 / 0\n"
    "class Wrong(Fine):\n    @classmethod\n    def plan(cls, config, views, augment): return P(views, augment)":
        "P.draw failed: ZeroDivisionError: division by zero",
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module that can be imported by name."""
    monkeypatch.syspath_prepend(tmp_path)
    numbers = iter(range(100))

    def write(text):
        name = f"own_{tmp_path.name}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(BASE + text + "\n")
        return name

    return write


def test_a_class_of_ones_own_trains_and_is_exported(own, drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", f"{own('')}:Fine", "steps=2")
    assert done.exit_code == 0, done.output
    assert [row["loss"] == row["loss_own"] for row in records(tmp_path / "run")] == [True, True]
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_the_pages_methods_train(drawn_shards, tmp_path, monkeypatch):
    """docs/how-to/custom-method.md, word for word."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "custom-method.md"
    found = re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", page.read_text(), re.DOTALL)
    for name, text in found:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name, kind, settings in (
        ("my_simsiam", "SimSiam", []),
        ("my_multicrop", "MultiCrop", ["method.small_views=2", "method.small_size=24"]),
    ):
        assert name in dict(found)
        done = train(drawn_shards, tmp_path / name, f"{name}:{kind}", "steps=1", *settings)
        assert done.exit_code == 0, done.output
    for name, _ in found:
        sys.modules.pop(name)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_it_is_told_in_words(mistake, own, drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", f"{own(mistake)}:Wrong", "steps=1")
    assert (done.exit_code, MISTAKES[mistake] in done.output) == (2, True), done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Class", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("{own}:Nothing", "has no attribute 'Nothing'"),
        ("{own}:", "AttributeError"),
        (":Class", "ValueError: Empty module name"),
        ("mocov2", "did you mean moco-v2"),
    ],
)
def test_a_name_of_nothing_is_told(name, words, own, drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", name.format(own=own("")))
    assert (done.exit_code, words in done.output) == (2, True), done.output


def test_a_module_that_cannot_be_read_names_its_line(own, drawn_shards, tmp_path):
    name = own("1 / 0")
    done = train(drawn_shards, tmp_path / "run", f"{name}:Fine")
    assert done.exit_code == 2
    assert f"ZeroDivisionError: division by zero ({name}.py, line 16)" in done.output
