"""The forms of the cache that an operator can ask for."""

from __future__ import annotations

from typing import Literal

CacheMode = Literal["off", "auto", "hidden", "fp8"]
