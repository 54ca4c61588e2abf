"""Where else a run's metrics go: TensorBoard, Weights & Biases, MLflow, behind one small interface. All are optional."""

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from univip_stream.errors import InputError, UsageError
from univip_stream.files import written_atomically

IDENTITIES = "loggers.json"
"""In the run folder: under which id each service knows the run, so that a run that continues goes on there."""
PROJECT = "univip-stream"
"""Name of project or experiment where the environment names none."""
_MOST_PARAMETERS = 100
"""That MLflow takes in one call."""
_LONGEST = 500
"""Characters of a value that MLflow takes everywhere."""


class Logger(Protocol):
    """A place that metrics go to beside `metrics.jsonl`. Any error that it raises ends its part, and not the run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Show a picture, float (3, H, W), 0 to 1."""

    def close(self, *, finished: bool) -> None:
        """Write what is left; the run is finished, or will be continued."""


class TensorBoard:
    """TensorBoard events in `tensorboard/` of the run folder."""

    package = "tensorboard"

    def __init__(self, folder: Path, resumed: int, settings: Mapping[str, Any], known: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.identity = None
        self.where = str(folder / "tensorboard")
        # Events are written in a thread, whose error would be printed with a traceback; `add_scalar` raises it too.
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            self._writer: Any = SummaryWriter(self.where, purge_step=resumed + 1 if resumed else 0)  # type: ignore[no-untyped-call]
        except BaseException:
            threading.excepthook = self._hook
            raise

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        self._writer.add_image(name, image, step)

    def close(self, *, finished: bool) -> None:
        try:
            self._writer.close()
        finally:
            if threading.excepthook == self._on_thread_error:
                threading.excepthook = self._hook

    def _on_thread_error(self, hook: threading.ExceptHookArgs) -> None:
        if not (isinstance(hook.exc_value, OSError) and type(hook.thread).__module__.startswith("tensorboard.")):
            self._hook(hook)


class WandB:
    """Weights & Biases, as its environment variables say (WANDB_MODE, WANDB_PROJECT, ...); `offline` needs no account."""

    package = "wandb"

    def __init__(self, folder: Path, resumed: int, settings: Mapping[str, Any], known: str | None) -> None:
        import wandb

        self.identity: str | None = known or uuid.uuid4().hex[:12]
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=os.environ.get("WANDB_NAME", folder.name),
                dir=str(folder), id=self.identity, resume="allow", config=dict(settings), settings=quiet,
            )  # fmt: skip
        except Exception as error:
            raise InputError(
                f"wandb cannot begin ({_first_line(error)}); `wandb login` first, or WANDB_MODE=offline keeps all in "
                f"{folder / 'wandb'}"
            ) from error
        # By our own step: a run that continues repeats some, which wandb's own counter would refuse.
        self._run.define_metric("*", step_metric="step")
        place = f"offline in {folder / 'wandb'}; `wandb sync` sends it" if self._run.offline else self._run.url
        self.where = f"wandb, run {self.identity}, {place}"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def picture(self, name: str, image: Tensor, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(_pixels(image)), "step": step})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI, or in the folder `mlflow` beside the run folder."""

    package = "mlflow"

    def __init__(self, folder: Path, resumed: int, settings: Mapping[str, Any], known: str | None) -> None:
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # which tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        local = folder.absolute().parent / "mlflow"
        address = os.environ.get("MLFLOW_TRACKING_URI") or _local_store(local)
        try:
            self._client = MlflowClient(tracking_uri=address)
            if known is None:
                self.identity: str | None = self._begun(folder, settings, local).info.run_id
            else:
                self.identity = known
                self._client.update_run(known, status="RUNNING")
        except Exception as error:
            raise InputError(
                f"mlflow cannot begin at {address} ({_first_line(error)}); MLFLOW_TRACKING_URI says where"
            ) from error
        self.where = f"mlflow, run {self.identity}, at {address}"

    def _begun(self, folder: Path, settings: Mapping[str, Any], local: Path) -> Any:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            experiment = found.experiment_id
        elif "MLFLOW_TRACKING_URI" in os.environ:
            experiment = self._client.create_experiment(name)
        else:  # else pictures would go to the folder that the command was called in
            experiment = self._client.create_experiment(name, artifact_location=(local / "artifacts").as_uri())
        run = self._client.create_run(experiment, run_name=folder.name)
        told = [Param(key, str(value)[:_LONGEST]) for key, value in settings.items()]
        for first in range(0, len(told), _MOST_PARAMETERS):
            self._client.log_batch(run.info.run_id, params=told[first : first + _MOST_PARAMETERS])
        return run

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        self._client.log_image(self.identity, _pixels(image), artifact_file=f"{name}/step-{step:09d}.png")

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.identity, "FINISHED" if finished else "KILLED")


LOGGERS: dict[str, Callable[..., Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""Names of `--log` -> what logs there."""


def check_loggers(names: Iterable[str]) -> None:
    """Look for the libraries of some loggers, before any work.

    Raises:
        UsageError: one is not installed, with what installs it.

    """
    for name in names:
        package = LOGGERS[name].package  # type: ignore[attr-defined]
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--log {name} needs {package}, which is not installed here: pip install {package}")


class Loggers:
    """All loggers of a run. One that fails is left out from then on, which is said once: `metrics.jsonl` has every value.

    Args:
        names: of those asked for. TensorBoard's events are written without being asked for too, where it is installed.
        folder: the run's.
        resumed: step that the run continues from.
        settings: the run's, by dotted names.
        say: gets a line where each logs to, and one for each that fails.

    Raises:
        InputError: one that was asked for cannot begin.

    """

    def __init__(
        self, names: Iterable[str], folder: Path, resumed: int, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say, self._open = say, dict[str, Logger]()
        path = folder / IDENTITIES
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):  # none yet, or damaged: then it begins as another run there
            known = json.loads(path.read_bytes())
        asked = list(dict.fromkeys(names))
        before = dict(known)
        try:
            for name in dict.fromkeys(["tensorboard", *asked]):
                if name not in asked and importlib.util.find_spec("tensorboard") is None:
                    continue
                try:
                    made = LOGGERS[name](folder, resumed, settings, known.get(name))
                except (OSError, ImportError) as error:
                    if name in asked and not isinstance(error, OSError):
                        raise
                    self._failed(name, error, quietly=name not in asked)
                    continue
                self._open[name] = made
                if made.identity is not None:
                    known[name] = made.identity
                if name in asked:
                    say(f"metrics go to {made.where}")
        except BaseException:
            self.close(finished=False)
            raise
        if known != before:
            with written_atomically(path) as file:
                file.write((json.dumps(known, indent=1) + "\n").encode())

    @property
    def open(self) -> bool:
        """Whether any takes pictures."""
        return bool(self._open)

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Add the numbers among some values to every logger's curves."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self._each(lambda logger: logger.scalars(numbers, step))

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Show a picture, float (3, H, W), 0 to 1, in every logger."""
        self._each(lambda logger: logger.picture(name, image, step))

    def close(self, *, finished: bool) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.close(finished=finished))
        self._open.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:  # of a network, a service, a full disk: none is worth a run
                del self._open[name]
                with contextlib.suppress(Exception):
                    logger.close(finished=False)
                self._failed(name, error)

    def _failed(self, name: str, error: Exception, *, quietly: bool = False) -> None:
        if not quietly:
            self._say(f"{name} takes no more metrics ({_first_line(error)}); the run goes on, metrics.jsonl has them all")


def _local_store(folder: Path) -> str:
    """A database in a folder where MLflow can make one; its small edition writes files, which it must be allowed to."""
    folder.mkdir(parents=True, exist_ok=True)
    if all(importlib.util.find_spec(name) is not None for name in ("sqlalchemy", "alembic")):
        return f"sqlite:///{folder / 'mlflow.db'}"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (folder / "files").as_uri()


def _pixels(image: Tensor) -> Any:
    """uint8 H x W x 3 of a picture."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
