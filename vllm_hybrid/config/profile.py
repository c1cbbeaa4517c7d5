"""A profile: what the steps of one model took on one machine, measured by `vllm-hybrid profile`.

It holds the measurements themselves, so that any predictor can be fitted to them, beside the coefficients that they
gave. It is valid for the model, the hardware and the vLLM it was measured with; anything else is refused with the
reason, because deadlines kept by another machine's times are not kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from vllm_hybrid.config.section import Count, Section

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SAMPLE = ("decodes", "prefill_tokens", "context_tokens", "pairs", "prefills", "done_tokens", "seconds")


class ProfileError(ValueError):
    """A profile that cannot be used, said in one line."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a profile is valid for."""

    model: str
    dtype: str
    hardware: str
    vllm: str


class Profile(Section):
    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(alias="schema")
    model: str
    dtype: str
    hardware: str
    vllm: str
    kv_tokens: Count
    """Tokens that the KV pool held."""
    max_seqs: Count
    step_tokens: Count
    max_model_len: Count
    coefficients: dict[str, NotNegative]
    """Seconds per unit of each feature, in the predictor's order."""
    errors: dict[str, NotNegative]
    """Mean relative error by kind of step, on steps that were not fitted."""
    samples: list[Annotated[list[NotNegative], Field(min_length=len(SAMPLE), max_length=len(SAMPLE))]]
    """Steps: decodes, prefill tokens, context read by decodes, query-key pairs, chunks, tokens before them, seconds."""

    def mismatch(self, machine: Machine) -> str | None:
        """Why the profile does not hold for `machine`; None if it does."""
        for name in ("model", "dtype", "hardware", "vllm"):
            own, other = getattr(self, name), getattr(machine, name)
            if own != other:
                return f"was measured with {name} {own!r}, this engine has {other!r}: measure again"
        return None


def load_profile(path: str | Path) -> Profile:
    """The profile in a file."""
    try:
        return Profile.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ProfileError(f"profile {str(path)!r}: {field}: {problem['msg']}") from None
    except ValueError as error:
        raise ProfileError(f"profile {str(path)!r}: not JSON: {error}") from None
