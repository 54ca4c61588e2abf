"""Optional parts of an installation and their libraries: a machine that mines needs no torch, one that trains needs no Ray."""

import importlib.util

EXTRAS: dict[str, dict[str, str]] = {
    "mine": {"numba": "numba", "ray": "ray"},
    "train": {
        "torch": "torch", "torchvision": "torchvision", "timm": "timm", "webdataset": "webdataset", "safetensors": "safetensors",
        "tensorboard": "tensorboard", "pycocotools": "pycocotools",
    },
    "svm": {"sklearn": "scikit-learn"},
    "watershed": {"higra": "higra"},
}  # fmt: skip
"""Extras of pyproject.toml -> their modules, each with the name of its package."""


def cure_for(module: str) -> str | None:
    """Return the command that installs a missing module; None if no extra contains it."""
    name = module.partition(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if name in modules]
    if not extras:
        return None
    more = " ([all] for both jobs, mining and training)" if extras[0] in ("mine", "train") else ""
    return f"pip install 'univip-stream[{extras[0]}]'{more}"


def require(*modules: str) -> None:
    """Check that modules are installed, without importing them, before work begins that needs them only at its end.

    Raises:
        ModuleNotFoundError: one is not; `cure_for` says how to install it.

    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
