"""What an operator asks of a server."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def hybrid(server: Any, path: str, key: str, body: Any = None, method: str = "GET") -> Any:
    """What the status endpoints answer."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v1/hybrid/{path}", data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
