"""The command `eval detect` on the four drawn images, as small as it goes."""

from click.testing import CliRunner

from univip_stream.cli import cli


def command(run, drawn, out, *more):
    sets = [
        "--train-json",
        drawn / "boxes.json",
        "--train-images",
        drawn,
        "--val-json",
        drawn / "boxes.json",
        "--val-images",
        drawn,
    ]
    how = ["--model", "retinanet", "--iterations", 8, "--batch-size", 2, "--short-side", 32, "--lr", "0.005", "--workers", 0]
    arguments = ["eval", "detect", run, *sets, *how, "--save-every", 3, "--out", out, *more]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
