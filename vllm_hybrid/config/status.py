"""Who may ask the running server what it does."""

from __future__ import annotations

from pydantic import StrictBool

from vllm_hybrid.config.section import Section


class StatusConfig(Section):
    open: StrictBool = False
    """Answer GET /v1/hybrid/... without an admin's key: everybody who reaches the port then sees all clients. Changes
    always need one."""
