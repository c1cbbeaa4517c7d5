"""What every part of the settings is made of: frozen sections that refuse what they do not know, and plain numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def no_bool(value: object) -> object:
    """pydantic reads true as 1.0; in a YAML file `ttft_s: yes` is a mistake, not one second."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def whole(value: object) -> object:
    """JSON knows no difference between 3 and 3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else no_bool(value)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(no_bool)]
Fraction = Annotated[float, Field(ge=0, le=1), BeforeValidator(no_bool)]
Count = Annotated[int, Field(gt=0, le=2**53), BeforeValidator(whole)]  # exact as a number of JSON's, too


class Section(BaseModel):
    """A part of the settings; the text under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def changed(section: Section) -> set[str]:
    """The fields that differ from their defaults."""
    return {name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default}
