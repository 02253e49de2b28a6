"""How a model remembers the way it was built, as plain data, and is built again from that."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from visionapps.classification.base import Classifier
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, WeightsError
from visionapps.segmentation.base import Segmentor

P = ParamSpec("P")
M = TypeVar("M", Segmentor, Detector, Classifier)


def remember(wire: Callable[P, M]) -> Callable[P, M]:
    """Let a wiring function put its name and arguments, as plain data, on the model it returns."""
    signature = inspect.signature(wire)

    @functools.wraps(wire)
    def wired(*args: P.args, **kwargs: P.kwargs) -> M:
        model = wire(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # The spec that the weights brought, and no weights: whoever builds it again has trained ones to load.
        known = {"weights": None, "checkpoint": None, "spec": model.spec.to_dict()}
        arguments = {name: plain(name, known.get(name, value)) for name, value in bound.arguments.items()}
        model.recipe = {"model": wire.__name__, "arguments": arguments}
        return model

    return wired


def rebuild(
    recipe: Mapping[str, Any], wirings: Mapping[str, Callable[..., Segmentor | Detector | Classifier]]
) -> Segmentor | Detector | Classifier:
    """Build the model that a recipe describes, with random weights.

    Only the functions in wirings can be named: a recipe comes from a file, and must not choose what code runs.

    Args:
        recipe: {"model": name, "arguments": {...}} as in Segmentor.recipe, Detector.recipe and Classifier.recipe.
        wirings: functions by name.

    Raises:
        WeightsError: the recipe is malformed, or names a model or an argument that this version does not have.
        ConfigError: an argument has a value that the model cannot take.
    """
    name, arguments = recipe.get("model"), recipe.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise WeightsError('recipe: expected {"model": a name, "arguments": a mapping}; export the bundle again')
    if name not in wirings:
        raise WeightsError(
            f"recipe: unknown model {name!r}, this version of visionapps has {', '.join(wirings)}; "
            "use the version that wrote it"
        )
    wire = wirings[name]
    try:
        hints = typing.get_type_hints(wire)
        return wire(**{key: _revived(value, hints.get(key)) for key, value in arguments.items()})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"recipe: {name} cannot be built: {error}; use the version that wrote it") from error


def _revived(value: Any, hint: Any) -> Any:
    """What ``plain`` made of a dataclass as that dataclass again, where the type of an argument says so."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kind = next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)
    if kind is None or not isinstance(value, Mapping):
        return value
    hints = typing.get_type_hints(kind)
    return kind(**{key: _revived(item, hints.get(key)) for key, item in value.items()})


def plain(name: str, value: Any) -> Any:
    """The value as JSON and YAML can hold it; tuples become lists, dataclasses mappings of their arguments."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {key: plain(f"{name}.{key}", getattr(value, key)) for key in fields}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    raise ConfigError(
        f"argument {name}: {type(value).__name__} cannot be kept in a bundle; give numbers, text, lists or mappings"
    )
