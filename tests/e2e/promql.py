"""Whether the series that PromQL expressions name exist on a metrics page, with the labels they match and group by."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

_SELECTOR = re.compile(r"\b(vllm(?:_hybrid)?[_:]\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)")
SCRAPED = {"instance", "job"}  # labels that Prometheus adds


def unresolved(page: str, expressions: list[str]) -> list[str]:
    """The expressions that name a series, a label or a value that the page lacks. $variables match anything."""
    series: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    return [expression for expression in expressions if not _resolves(series, expression)]


def _resolves(series: dict[str, list[dict[str, str]]], expression: str) -> bool:
    groups = {name.strip() for names in _GROUPING.findall(expression) for name in names.split(",")} - SCRAPED
    selectors = _SELECTOR.findall(expression)
    for name, matchers in selectors:
        wanted = [(label, ".*" if "$" in value else value) for label, _, value in _MATCHER.findall(matchers)]
        found = [
            labels
            for labels in series.get(name, ())
            if all(label in labels and re.fullmatch(value, labels[label]) for label, value in wanted)
        ]
        if not any(groups <= labels.keys() for labels in found):
            return False
    return bool(selectors)
