"""How a model remembers the way it was built, as plain data, and is built again from that."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from visionapps.detection.base import Detector
from visionapps.errors import ConfigError, WeightsError
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec

P = ParamSpec("P")
M = TypeVar("M", Segmentor, Detector)


def remember(wire: Callable[P, M]) -> Callable[P, M]:
    """Let a wiring function put its name and arguments, as plain data, on the model it returns."""
    signature = inspect.signature(wire)

    @functools.wraps(wire)
    def wired(*args: P.args, **kwargs: P.kwargs) -> M:
        model = wire(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # The spec that the weights brought, and no weights: whoever builds it again has trained ones to load.
        known = {"weights": None, "spec": model.spec.to_dict()}
        arguments = {name: plain(name, known.get(name, value)) for name, value in bound.arguments.items()}
        model.recipe = {"model": wire.__name__, "arguments": arguments}
        return model

    return wired


def rebuild(
    recipe: Mapping[str, Any], wirings: Mapping[str, Callable[..., Segmentor | Detector]]
) -> Segmentor | Detector:
    """Build the model that a recipe describes, with random weights.

    Only the functions in wirings can be named: a recipe comes from a file, and must not choose what code runs.

    Args:
        recipe: {"model": name, "arguments": {...}} as in Segmentor.recipe and Detector.recipe.
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
    chosen = dict(arguments)
    try:
        if isinstance(chosen.get("spec"), Mapping):
            chosen["spec"] = InputSpec.from_dict(chosen["spec"])
        return wirings[name](**chosen)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"recipe: {name} cannot be built: {error}; use the version that wrote it") from error


def plain(name: str, value: Any) -> Any:
    """The value as JSON and YAML can hold it; tuples become lists."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, item) for item in value]
    raise ConfigError(
        f"argument {name}: {type(value).__name__} cannot be kept in a bundle; give numbers, text, lists or mappings"
    )
