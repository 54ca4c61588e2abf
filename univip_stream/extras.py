"""Which part of an installation brings which library: a machine that mines needs no torch, one that trains no Ray."""

import importlib.util

EXTRAS: dict[str, dict[str, str]] = {
    "mine": {"numba": "numba", "ray": "ray"},
    "train": {
        "torch": "torch", "torchvision": "torchvision", "timm": "timm", "webdataset": "webdataset", "safetensors": "safetensors",
        "tensorboard": "tensorboard", "pycocotools": "pycocotools",
    },
}  # fmt: skip
"""Extra of pyproject.toml -> its modules, each with the name of its package."""


def cure_for(module: str) -> str | None:
    """How to get a module that is not there; None for one that no extra brings."""
    name = module.partition(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if name in modules]
    return f"pip install 'univip-stream[{extras[0]}]' ([all] for both jobs, mining and training)" if extras else None


def require(*modules: str) -> None:
    """See that modules are installed, without importing them: before work begins that would need them at its end.

    Raises:
        ModuleNotFoundError: one is not; `cure_for` says what brings it.

    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
