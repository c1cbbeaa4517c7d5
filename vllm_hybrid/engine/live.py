"""Settings that change while the engine runs.

A change comes between two steps, so every step sees one version of the settings, whole. It is a JSON merge patch on
the settings in force; what it makes is checked like a file, and only the clients and their groups, the targets and the
lanes may differ, because everything else is built into what already runs. Each change has a number and can be reverted.
Nothing is written anywhere: a restart begins with the file again.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from vllm_hybrid.config import ConfigError, HybridConfig, load_config
from vllm_hybrid.config.live import LIVE, check_patch
from vllm_hybrid.policy.limits import limits_of
from vllm_hybrid.policy.presets import PRESETS, shares

if TYPE_CHECKING:
    from vllm_hybrid.engine.scheduler import HybridMixin

_KEPT_VERSIONS = 32


class LiveSettings:
    """The settings of one scheduler, their versions, and how they change."""

    def __init__(self, scheduler: HybridMixin) -> None:
        self._s = scheduler
        self.version = 1
        self._versions: OrderedDict[int, HybridConfig] = OrderedDict({1: scheduler.hybrid_config})

    def show(self) -> dict[str, Any]:
        """The settings in force, their version, and the versions that can be reverted to."""
        config = self._s.hybrid_config
        return {
            "version": self.version,
            "versions": list(self._versions),
            "live": list(LIVE),
            "config": config.model_dump(mode="json"),
        }

    def change(self, patch: str, version: int | None = None) -> dict[str, Any]:
        """Apply a merge patch (JSON), if `version` is still the one in force (None: whatever it is).

        Returns the new settings, or `{"refused": why, "conflict": bool}`: an exception would lose its kind on the way
        to the other process. conflict: the patch may be right, but not on the settings in force.
        """
        try:
            check_patch(json.loads(patch))
        except ConfigError as error:
            return {"refused": str(error), "conflict": False}
        return self._become(
            lambda: load_config(merged(self._s.hybrid_config.model_dump(exclude_defaults=True), json.loads(patch))),
            version,
        )

    def revert(self, to: int, version: int | None = None) -> dict[str, Any]:
        """Go back to the settings of version `to`, as a new version."""
        if to not in self._versions:
            return {"refused": f"version {to} is not kept: {list(self._versions)} are", "conflict": True}
        return self._become(lambda: self._versions[to], version)

    def _become(self, make: Any, version: int | None) -> dict[str, Any]:
        if version is not None and version != self.version:
            return {"refused": f"version {version} is not in force, {self.version} is", "conflict": True}
        try:
            config = make()
            self._check_limits(config)
        except ConfigError as error:
            return {"refused": str(error), "conflict": True}
        self._apply(config)
        self.version += 1
        self._versions[self.version] = config
        while len(self._versions) > _KEPT_VERSIONS:
            self._versions.popitem(last=False)
        return self.show()

    def _check_limits(self, config: HybridConfig) -> None:
        """What is kept where requests arrive cannot change from here."""
        now = self._s.hybrid_config
        if config.lanes.offline.order != now.lanes.offline.order:
            raise ConfigError("lanes.offline.order: cannot change while the engine runs")
        for client in sorted(now.clients.keys() | config.clients.keys()):
            if limits_of(now, client).at_the_front != limits_of(config, client).at_the_front:
                raise ConfigError(f"clients.{client}.limits: only max_running can change while the engine runs")

    def _apply(self, config: HybridConfig) -> None:
        s = self._s
        before, s.hybrid_config = s.hybrid_config, config
        s.ledger.settle()
        s.counters.set_shares(*shares(config))
        s.waiting_requests.regroup()
        s.limit_running()
        s.viewer.timed = config.follows_outputs
        if (config.slo, config.lanes) != (before.slo, before.lanes):
            s.planner = PRESETS[config.preset].make_planner(config, s.counters, s.predictor)
        s._planned_membership = -1  # the last plan was made under the old settings


def merged(settings: Any, patch: Any) -> Any:
    """`settings` with a JSON merge patch (RFC 7396): null removes a key, mappings are merged, the rest replaced."""
    if not isinstance(patch, dict):
        return patch
    result = dict(settings) if isinstance(settings, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
