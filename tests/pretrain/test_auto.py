"""Recipe `auto`: what it chooses on made-up machines, and why."""

import math

import pytest

from univip_stream.errors import UsageError
from univip_stream.pretrain.auto import Images, Machine, bytes_of_an_image, choose, seconds_of
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

GIB = 1 << 30
LAPTOP = Machine(device="cpu", memory=8 * GIB, cpus=4)
H100 = Machine(device="cuda", memory=78 * GIB, cpus=16)
OLD_CARD = Machine(device="cuda", memory=8 * GIB, cpus=8)
COCO = Images(count=118_287, short_side=480)


def chosen(images, machine, **how):
    return {choice.key: choice.value for choice in choose(images, machine, **how)}


def test_coco_on_a_large_card_is_the_papers_recipe():
    found = chosen(COCO, H100)
    paper = recipe("coco")
    config = with_settings(paper, [f"{key}={value}" for key, value in found.items()])
    for part in ("backbone", "hidden", "width"):
        assert getattr(config.method, part) == getattr(paper.method, part)
    assert (config.stream.batch_size, config.optim.lr, config.epochs, config.ema) == (512, 0.4, 800, 0.99)
    assert (config.views.scene_size, config.views.instance_size, config.accumulate) == (224, 96, 1)
    assert config.optim.warmup_epochs == 4


def test_a_small_card_takes_the_batch_in_parts_that_fit():
    found = chosen(COCO, OLD_CARD)
    assert found["stream.batch_size"] == "512"
    own = bytes_of_an_image("resnet50", 224, 96, full_precision=False)
    part = 512 / int(found["accumulate"])
    assert part * own < 8 * GIB < 2 * part * own + 2 * GIB


def test_a_laptop_gets_a_small_network_and_an_hour():
    asked = []

    def rate(settings):
        asked.append(settings)
        return 50.0

    found = chosen(Images(count=2_000, short_side=480), LAPTOP, rate=rate)
    assert found["method.backbone"] == "resnet10t"
    assert found["views.scene_size"] == "64"
    # Eleven looks at 256 images, each of which takes what half an image of training does, come out of the hour.
    assert float(found["epochs"]) == pytest.approx((3600 * 50 - 11 * 256 / 2) / 2_000, abs=0.05)
    assert any(text.startswith("stream.batch_size=") for text in asked[0])


@pytest.mark.parametrize(
    ("seconds", "rate", "looks"), [(60, 2.0, 0), (60, 20.0, 2), (60, 40.0, 3), (600, 20.0, 11), (7200, 40.0, 11)]
)
def test_measures_take_a_tenth_of_the_run_at_most(seconds, rate, looks):
    """142 photographs and a minute: looks at all of them after each of three steps took longer than the run."""
    images = Images(count=142, short_side=427)
    found = {choice.key: choice for choice in choose(images, LAPTOP, seconds=seconds, rate=lambda settings: rate)}
    measured, batch = int(found["measures.images"].value), int(found["stream.batch_size"].value)
    assert (measured > 0) == (looks > 0)
    if measured:
        updates = round(float(found["epochs"].value) * images.count / batch)
        assert looks == 1 + math.ceil(updates / int(found["measures.every"].value))
        # Five forward passes each, and about eleven an image of training.
        assert looks * measured * 5 <= 0.12 * seconds * rate * 11
        assert measured >= 32
    with_settings(recipe("coco"), [choice.text for choice in found.values()])


@pytest.mark.parametrize("machine", [LAPTOP, H100])
@pytest.mark.parametrize(("seconds", "rate"), [(60, 40.0), (7200, 40.0), (7200, 4000.0)])
def test_a_budget_is_kept(machine, seconds, rate):
    images = Images(count=20_000, short_side=300)
    found = chosen(images, machine, seconds=seconds, rate=lambda settings: rate)
    epochs, batch = float(found["epochs"]), int(found["stream.batch_size"])
    looks = int(found["measures.images"]) and 1 + math.ceil(
        round(epochs * images.count / batch) / int(found["measures.every"])
    )
    trained = epochs * images.count + 0.5 * looks * int(found["measures.images"])
    assert trained / rate <= seconds * 1.01
    assert trained == pytest.approx(min(800 * images.count, seconds * rate), rel=0.03)


@pytest.mark.parametrize("count", [2, 3, 10, 31, 100, 1_000, 9_999, 10_000, 500_000, 10**9])
@pytest.mark.parametrize("machine", [LAPTOP, H100, OLD_CARD, Machine(device="cpu", memory=0, cpus=1)])
@pytest.mark.parametrize("side", [1, 64, 200, 4000])
def test_every_set_on_every_machine_gets_settings_that_hold_together(count, machine, side):
    found = chosen(Images(count=count, short_side=side), machine, rate=lambda settings: 100.0)
    config = with_settings(recipe("coco"), [f"{key}={value}" for key, value in found.items()])
    share = config.stream.batch_size / config.accumulate
    assert share >= 2
    assert config.stream.batch_size % config.accumulate == 0
    assert config.total_steps(count / config.stream.batch_size) >= 1
    assert config.views.scene_size % 32 == config.views.instance_size % 32 == 0
    assert config.stream.batch_size <= max(2, count)


def test_every_choice_has_a_reason():
    assert all(len(choice.why) > 5 for choice in choose(COCO, LAPTOP, seconds=7200, rate=lambda settings: 50.0))


def test_too_few_images_and_too_little_time():
    with pytest.raises(UsageError, match="too few to train on"):
        choose(Images(count=1, short_side=64), LAPTOP)
    with pytest.raises(UsageError, match="expected at least a second"):
        choose(COCO, LAPTOP, seconds=0.5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), ("10 min", 600)]
)
def test_times_as_people_write_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "two hours", "-1h", "0s", "1e9h"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="expected a time such as 2h"):
        seconds_of(text)
