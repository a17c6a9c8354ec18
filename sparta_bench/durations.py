"""Durations for people."""

from __future__ import annotations


def as_duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min` or `5 days`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{minutes / 1440:.1f} days"
