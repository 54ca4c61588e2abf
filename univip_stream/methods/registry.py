"""Find a method by its name, and check classes that users provide."""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.methods.base import Method, MethodConfig
from univip_stream.methods.byol import BYOL
from univip_stream.methods.densecl import DenseCL
from univip_stream.methods.moco import MoCo
from univip_stream.methods.multicrop import MultiCrop
from univip_stream.methods.orl import ORL
from univip_stream.methods.scrl import SCRL
from univip_stream.methods.simclr import SimCLR
from univip_stream.methods.soco import SoCo
from univip_stream.methods.univip import UniVIP
from univip_stream.plan import Plan, check_plan
from univip_stream.suggest import did_you_mean
from univip_stream.views import ViewConfig

METHODS: dict[str, type[Method]] = {
    "univip": UniVIP,
    "byol": BYOL,
    "simclr": SimCLR,
    "moco-v2": MoCo,
    "densecl": DenseCL,
    "scrl": SCRL,
    "soco": SoCo,
    "orl": ORL,
    "multicrop": MultiCrop,
}
"""Classes by the name of the method."""


def method_class(name: str) -> type[Method]:
    """Return the class for a name of `METHODS`, or for `module:Class`.

    A module is searched on Python's path, and in the working folder.

    Raises:
        UsageError: no method has that name, or the module or its class cannot be used; the message says why.

    """
    if name in METHODS:
        return METHODS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        guess = did_you_mean(name, METHODS) or ";"
        raise UsageError(f"there is no method {name!r}{guess} Methods: {', '.join(METHODS)}, and your own as module:Class")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # the installed command, unlike `python -m`, does not look there
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # including errors of the module itself
        raise UsageError(
            f"method {name}: {type(error).__name__}: {error}{_user_line(error)}; expected a module that Python can import here and "
            "a class in it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"method {name} is {_kind(found)}; expected a subclass of univip_stream.methods.Method")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UsageError(f"method {name} has no {', '.join(missing)}; a method must define it")
    terms = found.terms
    if not isinstance(terms, tuple) or not all(isinstance(term, str) and term.startswith("loss_") for term in terms):
        raise UsageError(f"method {name}: terms is {terms!r}; expected a tuple of names that begin with loss_")
    if not isinstance(found.settings, Mapping):
        raise UsageError(f"method {name}: settings is {_kind(found.settings)}; expected a dictionary of dotted settings")
    kind = found.Settings
    if not (isinstance(kind, type) and issubclass(kind, MethodConfig) and dataclasses.is_dataclass(kind)):
        raise UsageError(f"method {name}: Settings is {_kind(kind)}; expected a dataclass that inherits MethodConfig")
    return found


def build_plan(config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
    """Build the plan of the method that `config` names.

    Raises:
        UsageError: there is no such method, or it cannot work with these settings; the message says why.

    """
    kind = method_class(config.name)
    if config.name in METHODS:
        return kind.plan(config, views, augment)
    try:
        plan = kind.plan(config, views, augment)
    except InputError:
        raise
    except Exception as error:
        raise UsageError(
            f"method {config.name}: its plan failed: {type(error).__name__}: {error}{_user_line(error)}"
        ) from error
    check_plan(plan, f"method {config.name}: plan")
    return plan


def build_method(config: MethodConfig, plan: Plan) -> Method:
    """Build the method that `config` names, for its plan.

    Raises:
        UsageError: there is no such method, or it cannot be built; the message says why.

    """
    kind = method_class(config.name)
    if not isinstance(config, kind.Settings):
        raise UsageError(f"the settings of {config.name} are a {type(config).__name__}; expected a {kind.Settings.__name__}")
    if config.name in METHODS:
        return kind(config, plan)
    try:
        method = kind(config, plan)
        backbone = method.backbone
    except InputError:
        raise
    except Exception as error:
        raise UsageError(
            f"method {config.name} cannot be built with (config, plan): {type(error).__name__}: {error}{_user_line(error)}"
        ) from error
    if not isinstance(getattr(backbone, "trunk", None), nn.Module):
        raise UsageError(f"method {config.name}: its backbone is {_kind(backbone)}; expected what build_backbone gives")
    return method


def checked_losses(losses: object, method: Method) -> dict[str, Tensor]:
    """Check what `forward` returned, and return it.

    Raises:
        UsageError: it is not a dictionary of 0-dimensional tensors with `loss`, `feature_std` and the method's terms.

    """
    who = f"method {method.config.name}: forward returned"
    if not isinstance(losses, dict):
        raise UsageError(f"{who} {_kind(losses)}; expected a dictionary with loss, feature_std and its terms")
    for name in ("loss", *method.terms, "feature_std"):
        value = losses.get(name)
        if name not in losses:
            raise UsageError(f"{who} no {name!r} but {', '.join(map(str, losses))}")
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            shape = f" of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
            raise UsageError(f"{who} for {name!r} {_kind(value)}{shape}; expected a 0-dimensional tensor of real numbers")
    if torch.is_grad_enabled() and not losses["loss"].requires_grad:
        raise UsageError(f"{who} a loss without a gradient: nothing can be learned from it. Is it detached?")
    return losses


def explained(error: Exception, method: Method) -> UsageError | None:
    """Return a readable form of an error inside a user's own method; None if the method is ours or the error is an InputError."""
    if method.config.name in METHODS or isinstance(error, InputError):
        return None
    return UsageError(f"method {method.config.name}: its step failed: {type(error).__name__}: {error}{_user_line(error)}")


def _kind(thing: object) -> str:
    """Return what a thing is, in words, such as `a list`."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _user_line(error: BaseException) -> str:
    """Return where in the user's file an error occurred: the deepest line that is neither ours nor a library's."""
    ours = os.path.dirname(os.path.dirname(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((ours, sys.prefix, sys.base_prefix, "<")):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""
