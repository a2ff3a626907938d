"""What an inspection finds, and its report for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """One fact; a warning works, slower or with a risk, a fault does not work, or must not be used."""

    topic: str  # what was looked at
    state: State
    text: str  # one sentence
    remedy: str = ""  # what to do, one line; empty for "ok"


def warning_if(problem: bool, topic: str, text: str, remedy: str) -> Finding:
    """A warning with its remedy where there is a problem, else a fact that is in order."""
    return Finding(topic, "warning", text, remedy) if problem else Finding(topic, "ok", text)


def report(
    findings: Sequence[Finding],
    verdicts: tuple[str, str] = ("training and prediction can run", "training and prediction could not run"),
) -> str:
    """The findings as text for a terminal: a line each, below it the remedy, and at the end counts and verdict.

    Args: verdicts: the closing words without and with a fault.
    """
    width = max((len(finding.topic) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.topic:<{width}}  {finding.text}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    faults, warnings = (sum(finding.state == state for finding in findings) for state in ("fault", "warning"))
    lines.append(f"{faults} faults, {warnings} warnings: {verdicts[faults > 0]}")
    return "\n".join(lines)
