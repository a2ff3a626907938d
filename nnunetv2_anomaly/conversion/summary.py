"""What a conversion did, in words."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter

from nnunetv2_anomaly.conversion.release import Options


@dataclasses.dataclass
class Summary:
    """What a run did."""

    converted: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)  # from an earlier run
    problems: dict[str, str] = dataclasses.field(default_factory=dict)  # case -> why
    faults: list[str] = dataclasses.field(default_factory=list)  # what is wrong beside the cases
    notes: list[str] = dataclasses.field(default_factory=list)  # what the user should know, and is no fault
    rows: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # the manifest


def described(summary: Summary, options: Options) -> str:
    """A run's outcome in words, with a table of what failed."""
    verb = "would be converted" if options.dry_run else "converted"
    lines = [f"{len(summary.converted)} cases {verb}, {len(summary.kept)} were there from an earlier run."]
    if options.dry_run:
        for name in summary.converted:
            row = summary.rows[name]
            lines.append(
                f"  {name}: {row['image_source']} + {row['label_source']}, side {row['side'] or 'unknown'}"
                f"{', mirrored' if row['mirrored'] == 'yes' else ''}, mapping {row['mapping']} "
                f"(evidence {row['mapping_evidence']})"
            )
    elif summary.rows:
        training = sum(row["subset"] == "training" for row in summary.rows.values())
        lines.append(f"{options.dataset_dir} holds {training} training and {len(summary.rows) - training} test cases.")
    mappings = Counter(row["mapping"] for row in summary.rows.values())
    if summary.rows:
        lines.append("Axis mappings: " + ", ".join(f"{text} in {n} cases" for text, n in mappings.most_common()))
    lines += summary.notes
    lines += summary.faults
    if summary.problems:
        lines.append(f"{len(summary.problems)} cases failed:")
        width = max(len(name) for name in summary.problems)
        for name, problem in sorted(summary.problems.items()):
            wrapped = textwrap.wrap(problem, 118 - width, break_long_words=False, break_on_hyphens=False)
            lines += [f"  {name if i == 0 else '':{width}}  {line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)
