"""Devices by name or file: what a simulated GPU costs per step and how much it holds.

The data files are JSON, validated against the classes of `device_models` and `device_tables`; `docs/devices.md`
explains them. A file that is wrong is refused with one line that names the file, the field and what is allowed there.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vllm_hybrid.sim.device_models import Device, LinearDevice, RooflineDevice, StepLinearDevice, TwoRegimeDevice
from vllm_hybrid.sim.device_tables import TableDevice

__all__ = ["Device", "DeviceError", "device_names", "load_device"]

DATA_DIR = Path(__file__).parent / "data" / "devices"

AnyDevice = Annotated[
    TableDevice | RooflineDevice | LinearDevice | TwoRegimeDevice | StepLinearDevice, Field(discriminator="kind")
]
_TAGS = {"table", "roofline", "linear", "two_regime", "step_linear", "grid", "additive"}  # pydantic names them in paths
_SCHEMA: TypeAdapter[AnyDevice] = TypeAdapter(AnyDevice)


class DeviceError(ValueError):
    """A device that cannot be used; the message is one line."""


def device_names() -> list[str]:
    """The devices that ship with the package."""
    return sorted(path.stem for path in DATA_DIR.glob("*.json"))


def load_device(name_or_path: str) -> Device:
    """A shipped device by name, or one from a JSON file of the user."""
    shipped = DATA_DIR / f"{name_or_path}.json"
    if name_or_path in device_names():
        return _load_shipped(shipped)
    path = Path(name_or_path)
    if path.suffix != ".json":
        raise DeviceError(
            f"device {name_or_path!r}: neither a .json file nor one of the shipped devices {', '.join(device_names())}"
        )
    return _load(path)


@cache
def _load_shipped(path: Path) -> Device:
    return _load(path)


def _load(path: Path) -> Device:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DeviceError(f"{path}: not JSON: {error}") from None
    return parse_device(content, str(path))


def parse_device(content: Any, origin: str) -> Device:
    """A device from decoded JSON. origin: how an error calls where it came from."""
    try:
        return _SCHEMA.validate_python(content)
    except ValidationError as error:
        raise DeviceError(f"{origin}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as `field: what is allowed, got value`."""
    problem = error.errors(include_url=False)[0]
    location = list(problem["loc"])
    context = problem.get("ctx", {})
    if problem["type"].startswith("union_tag"):
        field = ".".join(str(part) for part in [*location, "kind"] if part not in _TAGS)
        allowed = context.get("expected_tags", "a kind of device or attention")
        return f"{field}: one of {allowed}, got {context.get('tag', 'nothing')!r}"
    field = ".".join(str(part) for part in location if part not in _TAGS) or "file"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error"):
        return f"{field}: {message}"
    return f"{field}: {message}, got {_short(problem['input'])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
