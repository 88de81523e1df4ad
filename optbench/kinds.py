"""Kinds: the models, datasets and task sequences, built-in or user-defined, that a suite names with `kind:`.

A kind is a callable. The program passes its first arguments (`Registry.given`); the others are its settings, which a
pydantic model built from the signature validates strictly. Built-in kinds are registered below, one per line; a user's
kind is a target such as `./file.py:Class`. This module does not import torch.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import inspect
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from optbench import targets
from optbench.errors import KindError, unknown

AS_WRITTEN = {"as_written": True}
"""Validation context for suites whose kinds are not loaded, so that no user code is run and torch is not imported."""

Scalar = bool | int | float | str | None


def plain_value(value: Any) -> Any:
    """Return a copy of a value that JSON and YAML can represent: finite scalars, lists, and mappings with text keys.

    Raises:
        ValueError: JSON and YAML cannot represent the value.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("expected text as keys")
        return {key: plain_value(item) for key, item in value.items()}
    if not isinstance(value, Scalar):
        raise ValueError(f"expected a number, text, true, false, null, a list or a mapping, got {type(value).__name__}")
    return value


def _whole(value: Any) -> Any:
    """Return a float with an integral value, such as `1e5`, as an integer; return other values unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Text that needs no quotes in a name; anything else is quoted, so that different values give different names.
_BARE = re.compile(r"(?!(?:true|false|null)\Z)[A-Za-z_][A-Za-z0-9_.:/-]*", re.ASCII)


def value_name(value: Any) -> str:
    """Format a value for the name of a variant or metric; floats have the fewest digits that preserve their value."""
    if isinstance(value, float):
        exact = (text for digits in range(6, 18) if float(text := f"{value:.{digits}g}") == value)
        return next(exact)
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    if isinstance(value, list):
        return "[" + ",".join(value_name(item) for item in value) + "]"
    return json.dumps(value, separators=(",", ":"))


PlainValue = Annotated[Any, AfterValidator(plain_value)]
Whole = Annotated[int, BeforeValidator(_whole)]


@dataclass(frozen=True, eq=False)
class Registry:
    """A registry of the built-in kinds of one category, such as models, by name.

    Attributes:
        what: the category in words, such as `task sequence`.
        given: names of the arguments that the program passes first, by position.
        names: the target of each name; "" for a kind without settings that is constructed elsewhere.
    """

    what: str
    given: tuple[str, ...]
    names: Mapping[str, str]

    def is_users(self, kind: str) -> bool:
        return ":" in kind

    def load(self, kind: str) -> Callable[..., Any]:
        """Load the callable of a kind.

        Raises:
            KindError: the kind is neither registered nor a target, cannot be imported, is abstract, or is not callable.
        """
        if kind in self.names:
            module, _, attribute = self.names[kind].partition(":")
            return cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
        if ":" not in kind:
            what = "kind" if self.given else self.what
            own = "for a kind of your own, give module:attribute or ./file.py:attribute"
            raise KindError(f"{unknown(what, kind, self.names)}; {own}")
        try:
            found = targets.load(kind)
        except targets.TargetError as error:
            raise KindError(*error.args) from error.__cause__
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise KindError(f"{kind}: expected a concrete class, got an abstract class without {', '.join(missing)}")
        if callable(found):
            return cast(Callable[..., Any], found)
        raise KindError(f"{kind}: expected a class or a function, got a value of type {type(found).__name__}")

    def settings(self, kind: str) -> type[BaseModel]:
        """Return the pydantic model of a kind's settings, with fields in the order of the signature.

        Raises:
            KindError: as in `load`; or the signature cannot be read, lacks arguments that the program passes, or has a
                setting that cannot be passed by name.
        """
        return _own_settings(self, kind) if kind in self.names else self._settings(kind)

    def _settings(self, kind: str) -> type[BaseModel]:
        if not self.names.get(kind, kind):
            return create_model("Settings", __config__=ConfigDict(extra="forbid"))
        found = self.load(kind)
        try:
            parameters, scope = signature(found)
        except (ValueError, TypeError) as error:
            raise KindError(f"{kind}: its arguments cannot be read: {targets.said(error)}") from error
        given = self._given(kind, found, parameters)
        fields: dict[str, Any] = {}
        for p in parameters:
            if p.name in given or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            if p.kind is p.POSITIONAL_ONLY or p.name == "kind" or p.name.startswith("_"):
                rule = "accepted by name, is not called 'kind' and does not begin with '_'"
                raise KindError(f"{kind}: expected every setting to be an argument that is {rule}, got '{p.name}'")
            # JSON has no tuples, so a parameter without an annotation takes the type of its default.
            unsaid = p.annotation is p.empty and isinstance(p.default, tuple)
            annotation = tuple[PlainValue, ...] if unsaid else meant(p.annotation, scope)
            if (needed := instead_of_text(p)) is not None:
                annotation = Annotated[annotation, AfterValidator(functools.partial(_without_text, needed))]
            # `seed: int = None` makes None valid as well.
            annotation = Annotated[annotation, None] | None if p.default is None else annotation
            fields[p.name] = (annotation, ... if p.default is p.empty else p.default)
        config = ConfigDict(
            extra="allow" if any(p.kind is p.VAR_KEYWORD for p in parameters) else "forbid",
            allow_inf_nan=False,
            strict=True,
            arbitrary_types_allowed=True,
            protected_namespaces=(),
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a setting may have the name of a pydantic method
                model: type[BaseModel] = create_model("Settings", __config__=config, **fields)
        except Exception as error:
            raise KindError(f"{kind}: its annotations cannot be read: {targets.said(error)}") from error
        return model

    def _given(self, kind: str, found: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Collection[str]:
        """Return the names of the parameters that the program passes; raise KindError if one is missing."""
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(names) < len(self.given) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            form = f"({', '.join((*self.given, '**settings'))}), got ({', '.join(p.name for p in parameters)})"
            raise KindError(f"{kind}: expected a {self.what} {form}")
        return names[: len(self.given)]

    def complete(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings as plain values, including every default that can be written and read back unchanged.

        Raises:
            KindError: as in `settings`.
            ValidationError: the kind does not accept these settings.
        """
        model = self.settings(kind)
        written = validated(model, given).model_dump(mode="json", exclude_unset=True, warnings=False)
        everything = {}
        for name, field in model.model_fields.items():
            if name in written:
                everything[name] = written.pop(name)
                continue
            with contextlib.suppress(ValueError):  # the default may be an object, or not match its annotation
                default = field.get_default(call_default_factory=True)
                as_json = _as_json(default)
                if same(getattr(validated(model, {**given, name: as_json}), name), default):
                    everything[name] = as_json
        return everything | written

    def arguments(self, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Convert complete settings to keyword arguments for the kind's callable.

        Raises:
            KindError, ValidationError: as in `complete`.
        """
        value = validated(self.settings(kind), settings)
        return {name: getattr(value, name) for name in value.model_fields_set}


@functools.cache
def _own_settings(registry: Registry, kind: str) -> type[BaseModel]:
    return registry._settings(kind)


def validated(model: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    # Validated as JSON, where a list is accepted for a tuple and text for a member of an enumeration.
    return model.model_validate_json(json.dumps(_as_json(dict(given))))


def _as_json(value: Any) -> Any:
    """Return the value after a round trip through JSON; raise ValueError if JSON cannot represent it."""
    try:
        return plain_value(json.loads(json.dumps(value)))
    except TypeError as error:
        raise ValueError(str(error)) from None


def same(found: Any, default: Any) -> bool:
    """Return whether a default was read back unchanged; JSON changes nested tuples and numeric keys."""
    return bool(found == default) and (isinstance(found, type(default)) or type(default) is int)


def signature(found: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return a callable's parameters, without `self`, and the namespace of its annotations."""
    own = found.__init__ if inspect.isclass(found) and inspect.isfunction(found.__init__) else found
    parameters = list(inspect.signature(own).parameters.values())
    inside = inspect.unwrap(own)
    inside = getattr(inside, "func", inside)  # the function of a `functools.partial`
    return parameters[1:] if own is not found else parameters, getattr(inside, "__globals__", {})


def meant(annotation: Any, scope: dict[str, Any]) -> Any:
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, scope)
        except Exception:  # for example, a name that is imported only for type checkers
            return PlainValue
    return PlainValue if annotation in (inspect.Parameter.empty, Any, object) else annotation


ANNOTATE = "an argument that accepts text needs an annotation, such as `float | str`"
"""The remedy if the code does accept text for an argument with a number as its default."""


def instead_of_text(parameter: inspect.Parameter) -> str | None:
    """Return what a parameter expects instead of text, e.g. `a number`; None if it may accept text.

    A parameter without an annotation does not accept text if its default is a number, a boolean or a sequence of
    numbers. Text such as `1e-3x` or `off` would otherwise raise an error only in training, or count as true.
    """
    default = parameter.default
    if parameter.annotation is not parameter.empty or isinstance(default, enum.Enum):
        return None
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        return "a number"
    is_sequence = isinstance(default, list | tuple) and len(default) > 0
    return "numbers" if is_sequence and all(isinstance(item, int | float) for item in default) else None


def has_text(value: Any) -> bool:
    """Return whether a value is text or a sequence that contains text."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and any(map(has_text, value)))


def _without_text(needed: str, value: Any) -> Any:
    if has_text(value):
        raise ValueError(f"expected {needed}, got {value!r}; {ANNOTATE}")
    return value


class Kind(BaseModel):
    """`{kind: ..., setting: ...}` in a suite: a kind and its settings, defaults included."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)

    __pydantic_extra__: dict[str, PlainValue] = Field(init=False)

    registry: ClassVar[Registry]
    short: ClassVar[bool] = False
    """True if a bare name is accepted as an abbreviation for a kind with no settings."""

    kind: Annotated[str, Field(min_length=1, max_length=400)]

    @classmethod
    def of(cls, kind: str, **settings: Any) -> Self:
        """Construct a kind with these settings; raise ValidationError if the kind does not accept them."""
        return cls.model_validate({"kind": kind, **settings})

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.short and isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            if cls.short:
                raise PydanticCustomError("kind_type", "expected a name, or a mapping with the key 'kind'")
            return value
        if "kind" not in value:
            raise PydanticCustomError("kind_missing", "expected the key 'kind'")
        kind, given = value["kind"], {key: item for key, item in value.items() if key != "kind"}
        if not isinstance(kind, str) or not kind or (info.context or {}).get("as_written"):
            return value
        try:
            return {"kind": kind, **cls._kept(kind, given)}
        except KindError as error:
            raise PydanticCustomError("kind_refused", "{reason}", {"reason": str(error)}) from None

    @classmethod
    def _kept(cls, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the complete settings of a kind. Raises the errors of `Registry.complete`."""
        return cls.registry.complete(kind, given)

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any] | str:
        return self.kind if self.short and not self.settings else {"kind": self.kind, **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the kind: all keys except `kind`."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the callable.

        Raises:
            KindError: the kind cannot be loaded, or does not accept these settings.
        """
        try:
            return self.registry.arguments(self.kind, self._kept(self.kind, self.settings))
        except ValueError as error:
            raise KindError(f"{self.kind}: no longer accepts its settings: {targets.said(error)}") from error

    @property
    def is_users(self) -> bool:
        return self.registry.is_users(self.kind)

    def make(self, *given: Any, seed: int | None = None) -> Any:
        """Call the kind with the program's arguments and its settings.

        seed: see `calling`.

        Raises:
            KindError: the kind cannot be loaded, or no longer accepts its settings.
            Exception: any exception that the user's code raises.
        """
        found, arguments = self.registry.load(self.kind), self.arguments
        with calling(seed) if self.is_users else contextlib.nullcontext():
            return found(*given, **arguments)


@contextlib.contextmanager
def calling(seed: int | None) -> Iterator[None]:
    """Wrap a call to user code: redirect its standard output to standard error and restore process-wide settings.

    seed: seed for the global random generators; None leaves them as they are.

    Raises:
        KindError: the code tries to exit the program.
    """
    from optbench.isolation import isolated, seed_generators  # imported late, because it imports torch

    try:
        with isolated(), contextlib.redirect_stdout(sys.stderr):
            if seed is not None:
                seed_generators(seed % 2**31)
            yield
    except (SystemExit, GeneratorExit) as error:
        raise KindError(targets.said(error)) from error


DATASETS = Registry(
    "dataset",
    (),
    {
        "mnist": "optbench.data.shipped:mnist",
        "fashion-mnist": "optbench.data.shipped:fashion_mnist",
        "kmnist": "optbench.data.shipped:kmnist",
        "emnist": "optbench.data.shipped:emnist",
        "cifar10": "optbench.data.shipped:cifar10",
        "cifar100": "optbench.data.shipped:cifar100",
        "svhn": "optbench.data.shipped:svhn",
        "text-domains": "optbench.data.shipped:text_domains",
        "text-files": "optbench.data.shipped:text_files",
        "modular-addition": "optbench.data.shipped:modular_addition",
        "classes": "optbench.data.derived:classes",
        "imbalanced": "optbench.data.derived:imbalanced",
        "noisy-labels": "optbench.data.derived:noisy_labels",
        "spurious-patch": "optbench.data.derived:spurious_patch",
        "corrupted": "optbench.data.derived:corrupted",
    },
)
TASKS = Registry(
    "task sequence",
    ("data", "seed"),
    {
        "permuted": "optbench.tasks.permuted:Permuted",
        "class-incremental": "optbench.tasks.class_incremental:ClassIncremental",
        "rotated": "optbench.tasks.rotated:Rotated",
        "random-labels": "optbench.tasks.random_labels:RandomLabels",
        "domains": "optbench.tasks.domains:Domains",
        "permuted-vocabulary": "optbench.tasks.permuted_vocabulary:PermutedVocabulary",
    },
)
MODELS = Registry(
    "model",
    ("inputs", "outputs"),
    {
        "mlp": "optbench.models.mlp:Mlp",
        "cnn": "optbench.models.cnn:Cnn",
        "resnet": "optbench.models.resnet:ResNet",
        "vit": "optbench.models.vit:Vit",
        "gpt": "optbench.models.gpt:Gpt",
    },
)
