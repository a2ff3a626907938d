"""What a conversion did, whether its masks agree on how they were stored, and both in words."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_anomaly.conversion.mapping import CLEAR_MARGIN, CLEAR_SCORE, AxisMapping
from nnunetv2_anomaly.conversion.release import Options
from nnunetv2_anomaly.errors import counted, listed


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
    """A run's outcome in words, without what failed."""
    verb = "would be converted" if options.dry_run else "converted"
    lines = [f"{counted(len(summary.converted), 'case')} {verb}, {len(summary.kept)} kept from an earlier run."]
    if options.dry_run:
        for name in summary.converted:
            row = summary.rows[name]
            side = f"side {row['side'] or 'unknown'}{', mirrored' if row['mirrored'] == 'yes' else ''}"
            mapping = f"mapping {row['mapping']} (evidence {row['mapping_evidence']})"
            lines.append(f"  {name}: {row['image_source']} + {row['label_source']}, {side}, {mapping}")
    elif summary.rows:
        training = sum(row["subset"] == "training" for row in summary.rows.values())
        test = counted(len(summary.rows) - training, "test case")
        lines.append(f"{options.dataset_dir} holds {training} training and {test}.")
    mappings = Counter(row["mapping"] for row in summary.rows.values())
    if summary.rows:
        found = (f"{text} in {counted(number, 'case')}" for text, number in mappings.most_common())
        lines.append(f"Axis mappings: {', '.join(found)}")
    return "\n".join([*lines, *summary.notes])


def described_failures(summary: Summary) -> str:
    """What failed, with a table of cases; empty if nothing did."""
    lines = list(summary.faults)
    kept = {name: problem for name, problem in summary.problems.items() if name in summary.rows}
    failed = {name: problem for name, problem in summary.problems.items() if name not in kept}
    for problems, became in ((kept, "still there from an earlier run, with differences"), (failed, "failed")):
        lines += [f"{counted(len(problems), 'case')} {became}:"] if problems else []
        width = max(map(len, problems), default=0)
        for name, problem in sorted(problems.items()):
            wrapped = textwrap.wrap(problem, 118 - width, break_long_words=False, break_on_hyphens=False)
            lines += [f"  {name if i == 0 else '':{width}}  {line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


def refuse_differing_mappings(summary: Summary, record: dict, options: Options) -> None:
    """Take out the cases whose masks are stored otherwise than those of the rest: mask and image may not match.

    The same way may be in space, or in the order of the slices' names, as whoever stored the mask had read them. What
    a run that came to its end found stands; otherwise the majority does.
    """
    if not summary.rows:
        return
    ways = [{name: _stored_mapping(row, by_name) for name, row in summary.rows.items()} for by_name in (False, True)]
    agreed = record.get("agreed_mapping")
    if agreed is not None:
        way, mapping, tied = ways[agreed["by_name"]], agreed["mapping"], False
    else:
        rankings = [Counter(way.values()).most_common() for way in ways]
        by_name = max((False, True), key=lambda k: rankings[k][0][1])  # in space where both agree
        way, ranking = ways[by_name], rankings[by_name]
        mapping, tied = ranking[0][0], len(ranking) > 1 and ranking[0][1] == ranking[1][1]
        if not tied:
            record["agreed_mapping"] = {"by_name": by_name, "mapping": mapping}
    others = "; ".join(f"{text} in {counted(count, 'case')}" for text, count in Counter(way.values()).most_common())
    for name, found in way.items():
        if found == mapping and not tied:
            continue
        row = summary.rows.pop(name)
        own = f"{row['mapping']} by the voxels (evidence {row['mapping_evidence']})"
        summary.problems[name] = (
            f"its mask's axes are {own}, and the release has {others}; expected all masks of a release to be stored "
            "alike; check that mask and image belong together, or give --differing_mappings if they really differ"
        )
        for done in (summary.converted, summary.kept):
            if name in done:
                done.remove(name)
        for file in () if options.dry_run else (row["image_file"], row["label_file"], f"previews/{name}.png"):
            if not Path(file).is_absolute():
                (options.dataset_dir / file).unlink(missing_ok=True)


def note_unconfirmed(summary: Summary) -> None:
    """Masks with a pose are believed; where the voxels do not bear it out clearly, the user should look."""
    doubtful = [
        f"{name} ({row['mapping_evidence']})"
        for name, row in summary.rows.items()
        if float(row["mapping_evidence"]) < CLEAR_MARGIN or float(row["mapping_score_bits"]) < CLEAR_SCORE
    ]
    if doubtful:
        note = f"The voxels of {counted(len(doubtful), 'case')} do not clearly bear out that the mask is the image's"
        summary.notes.append(f"{note} own, as their headers say; look at them (--previews): {listed(doubtful)}")


def _stored_mapping(row: Mapping[str, str], by_name: bool) -> str:
    """Mapping from the mask to the image in space, or to the image with its slices in the order of their names."""
    if not by_name or row["slices_named_towards"] not in ("L", "P", "I"):
        return row["mapping"]
    axis = {"I": 0, "P": 1, "L": 2}[row["slices_named_towards"]]  # of the array (z, y, x)
    mapping = AxisMapping.parse(row["mapping"])
    return str(AxisMapping(mapping.order, tuple(sorted(set(mapping.flips) ^ {axis}))))
