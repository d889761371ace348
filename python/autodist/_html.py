"""Cards for notebooks: HTML without scripts, fonts or links, whose colours follow the notebook's."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from .comparison import ComparedCluster, Comparison
    from .documents import Candidate, Plan, Training

# Colours are the notebook's text colour, more or less transparent, so that dark themes need no others.
_CARD = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em .9em;max-width:60em;color:inherit"
_CELL = "text-align:left;vertical-align:top;padding:.15em .9em .15em 0;background:transparent;color:inherit"
_LINE = f"{_CELL};border-top:1px solid rgba(128,128,128,.25)"


def plan(one: Plan) -> str:
    """The answer in five lines, and the runners-up."""
    fits = "fits" if one.fits else "does NOT fit"
    lines = [
        ("plan", one.strategy.label),
        ("step time", _time_of(one)),
        ("memory", f"{fits}: {size(one.memory.peak_bytes)} at the peak of the fullest device"),
        ("for", f"{_name(one.model)} on {_name(one.cluster)}: {one.devices:,} devices"),
    ]
    if one.training is not None:
        lines.insert(2, ("training", training(one.training)))
    if one.assumptions:
        lines.append(("assumed", "; ".join(one.assumptions)))
    rows = [
        (each.strategy.label, spread(each.step_time_s, each.step_time_spread_s), size(each.memory.peak_bytes), each.reason)
        for each in one.alternatives
    ]
    table = _table("Runners-up", ("strategy", "step time", "peak memory", "against the first"), rows)
    return _card(lines, table)


def comparison(one: Comparison) -> str:
    lines = [("model", one.model)]
    for word, differences in (("faster", one.faster), ("cheaper", one.cheaper)):
        for each in differences:
            sure = "" if each.is_clear else "; within the error of both predictions: no clear winner"
            text = f"{each.cluster} than {each.than}: {each.times:.2f} times ({each.times_low:.2f} to {each.times_high:.2f}){sure}"
            lines.append((word, text))
    table = _table("Clusters", ("cluster", "devices", "step time", "tokens/s", "training", "best strategy"),
                   map(_compared, one.clusters))
    return _card(lines, table)


def _compared(one: ComparedCluster) -> tuple[str, ...]:
    best = one.best
    if best is None:
        return (one.cluster, f"{one.devices:,}", "", "", "", one.refused or "")
    return (
        one.cluster,
        f"{one.devices:,}",
        spread(best.step_time_s, best.step_time_spread_s),
        f"{best.tokens_per_s:,.0f}",
        "" if best.training is None else training(best.training),
        best.strategy,
    )


def training(one: Training) -> str:
    text = f"{one.days:,.1f} ± {one.time_spread_s / 86400:,.1f} days, {rounded(one.device_hours, 3)} device hours"
    if one.cost_usd is not None:
        # The error bar does not allow more digits.
        text += f", ${rounded(one.cost_usd, 3)}"
        if one.cost_spread_usd is not None:
            text += f" ± ${rounded(one.cost_spread_usd, 2)}"
    return text


def rounded(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits - 1}e}'):,.0f}" if value >= 10 ** (digits - 1) else f"{value:,.2f}"


def spread(seconds: float, half_width: float) -> str:
    return f"{time(seconds)} ± {time(half_width)}"


def _time_of(one: Candidate) -> str:
    return f"{spread(one.step_time_s, one.step_time_spread_s)} ({one.provenance}), {one.tokens_per_s:,.0f} tokens/s"


def _name(document: object) -> str:
    return str(document.get("name", "")) if isinstance(document, dict) else ""


def time(seconds: float) -> str:
    """Three digits, as the command prints times."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor or unit == "µs":
            value = seconds / factor
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{value:,.{digits}f} {unit}"
    raise AssertionError("unreachable")


def size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:,.1f} {units[0]}"


def _card(lines: Iterable[tuple[str, str]], table: str) -> str:
    rows = "".join(
        f'<tr style="background:transparent"><th style="{_CELL};opacity:.7;font-weight:normal">{escape(word)}</th>'
        f'<td style="{_CELL}">{escape(text)}</td></tr>'
        for word, text in lines
    )
    return f'<div style="{_CARD}"><table style="border-collapse:collapse;margin:0">{rows}</table>{table}</div>'


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [list(row) for row in rows]
    if not cells:
        return ""
    top = "".join(f'<th style="{_CELL};opacity:.7;font-weight:normal">{escape(word)}</th>' for word in head)
    body = "".join(
        '<tr style="background:transparent">' + "".join(f'<td style="{_LINE}">{escape(text)}</td>' for text in row) + "</tr>"
        for row in cells
    )
    return (
        f'<div style="overflow-x:auto;margin-top:.6em"><b>{escape(title)}</b>'
        f'<table style="border-collapse:collapse;margin:0"><tr style="background:transparent">{top}</tr>{body}</table></div>'
    )
