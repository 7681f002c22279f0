"""What has to be said below the table of a comparison, so that nobody reads more out of it than there is."""

from collections.abc import Mapping
from typing import Any

from segdistill._printing import number_of
from segdistill.comparison.labels import named_places, place_name
from segdistill.comparison.statistics import MOST_SEEDS, POWER
from segdistill.engine.presets import in_words

Comparison = Mapping[str, Any]

FEW_SEQUENCES = 5
"""With fewer of them, an interval over sequences says little."""


def notes(result: Comparison, *, costs: bool = True) -> list[str]:
    """What the table needs said below it, and the line of each run that failed.

    Args:
        result: what `gather` returned.
        costs: whether the table has the columns of costs.
    """
    seeds = result["seeds"]
    drawn = "whole sequences" if any(result["sequences"].values()) else "images"
    lines = [
        f"mIoU: mean ± standard deviation over {number_of(len(seeds), 'seed')} of the student that was best "
        f"on val. Difference from {result['baseline']} in points, with two intervals: over seeds, Student's t on pairs "
        f"of one seed; over images, bootstrap of {result['resamples']} resamples of {drawn}.",
        *_on_verdicts(result),
        *_on_tests(result),
        *_on_teachers(result),
        *_on_sequences(result),
        *_on_further(result),
    ]
    protocols = {in_words(protocol) for protocol in result.get("protocols", {}).values()}  # none in an older file
    lines += [f"{line[0].upper()}{line[1:]}." for line in sorted(protocols)]
    if result["budget"] == "seconds":
        lines.append(f"Budget: {result['seconds']:g} s of training per run, as steps of the time measured before.")
    if costs and result["jobs"] > 1:
        lines.append(f"Times and memory with {result['jobs']} runs at a time.")
    few = {row["pairs"] for row in result["rows"] if 0 < row["pairs"] < len(seeds)}
    if few:
        lines.append(f"Differences are over the seeds that both finished, in some rows {min(few)} only.")
    sizes = {tuple(row["flops_size"]) for row in result["rows"] if row["flops_size"] and costs}
    lines += [f"GFLOPs of one image of {height}×{width}." for height, width in sorted(sizes)]
    return lines + [f"failed: {error}" for row in result["rows"] for error in row["errors"]]


def verdict(difference: Mapping[str, Any], confidence: float) -> str:
    """What may be said of a difference over the seeds, in a word or two.

    Args:
        difference: of a row of a comparison.
        confidence: of the comparison.
    """
    if difference["within_noise"] is None:
        return "one seed"
    if difference["within_noise"]:
        return "within noise"
    if difference["holm"] >= 1 - confidence:
        return "not after Holm"
    return "better" if difference["difference"] > 0 else "worse"


def _on_verdicts(result: Comparison) -> list[str]:
    """Which methods are better, and which worse, than the one that they are held against."""
    places = named_places(result["rows"])
    lines = []
    for other, side in ((result["baseline"], None), (result["against"], "against")):
        if other is None:
            continue
        told: dict[str, list[str]] = {}
        for row in result["rows"]:
            found = row["difference"] if side is None else row[side]["difference"]
            if found is not None:
                where = place_name(row, places)
                name = row["method"] + (f" ({where})" if where else "")
                told.setdefault(verdict(found, result["confidence"]), []).append(name)
        told.pop("one seed", None)  # it has no verdict; the others have
        if not told:
            continue
        better, worse = (", ".join(told.get(word, ["no method"])) for word in ("better", "worse"))
        lines.append(f"After Holm's correction better than {other}: {better}; worse: {worse}.")
    return lines


def _on_tests(result: Comparison) -> list[str]:
    """What the p values are, how many there are, and whether the seeds are enough."""
    rows = [row for row in result["rows"] if row["difference"] is not None]
    tested = [row for row in rows if row["difference"]["p"] is not None]
    if not rows:
        return []
    limit = f"{1 - result['confidence']:g}"
    fewer = f" ({len(tested)} over seeds)" if 0 < len(tested) < len(rows) else ""
    lines = [
        f"p: of the paired t test over seeds and of the bootstrap over images, after Holm's correction for "
        f"{number_of(len(rows), 'comparison')} with {result['baseline']}{fewer}. The verdict is over seeds: better or "
        f"worse where p is below {limit}; “not after Holm” where the interval alone would say so; else within noise."
    ]
    if not tested:
        return [*lines, "One seed says nothing of the spread over seeds, so there is no verdict: set seeds=3 or more."]
    pairs = min(row["pairs"] for row in tested)
    if 2 / 2**pairs > 1 - result["confidence"]:
        lines.append(
            f"Student's t takes differences over seeds for normal. The sign-flip test does not, and with {pairs} seeds "
            f"its p cannot be below {2 / 2**pairs:g} (in compare.json)."
        )
    short = [row for row in tested if (row["difference"]["seeds_needed"] or MOST_SEEDS + 1) > row["pairs"]]
    if short:
        most = max(row["difference"]["seeds_needed"] or MOST_SEEDS + 1 for row in short)
        number = f"more than {MOST_SEEDS}" if most > MOST_SEEDS else str(most)
        lines.append(
            f"Too few seeds to see a difference of 1 point with a probability of {100 * POWER:g} % in {len(short)} of "
            f"{len(tested)} rows, which would take up to {number} (“seeds for +1”, from the spread of these "
            "differences, before Holm's correction)."
        )
    return lines


def _on_teachers(result: Comparison) -> list[str]:
    """Which teachers are the mean of several."""
    lines = []
    for data, teacher in result["teachers"].items():
        if teacher.get("looks", 1) > 1:  # an older file does not say
            where = f" on {data}" if len(result["teachers"]) > 1 else ""
            mean = f"the mean of {teacher['looks']} networks or views: {teacher['network']}"
            lines.append(f"The teacher{where} is {mean}. Its figures are those of the mean.")
    return lines


def _on_sequences(result: Comparison) -> list[str]:
    lines = []
    for data, count in result["sequences"].items():
        if count is None:
            continue
        line = f"Images of {data} {result['split']} are {number_of(count, 'sequence')}, drawn as wholes"
        if count < FEW_SEQUENCES:
            line += (
                f"; that is fewer than {FEW_SEQUENCES}: the interval over images and its p can be far too small, and "
                "are no evidence"
            )
        lines.append(f"{line}.")
    return lines


def _on_further(result: Comparison) -> list[str]:
    """How the table of further metrics is read, where there is one."""
    told = result.get("metrics")  # none in an older file
    if not told:
        return []
    figures = [[row["metrics"][line["metric"]][line["key"]] for row in result["rows"]] for line in told]
    tests = max(sum(found["difference"] is not None for found in column) for column in figures)
    line = "Further metrics: mean ± standard deviation over seeds; an arrow says which way a figure is better"
    if tests:
        line += f"; in parentheses the difference from {result['baseline']}, paired by seed"
    if tests and len(result["seeds"]) > 1:
        line += (
            f", with a star where its p, of the t test after Holm's correction for the "
            f"{number_of(tests, 'comparison')} of its column, is below {1 - result['confidence']:g}. Nothing is "
            "corrected for the number of columns: choose beforehand which one counts"
        )
    return [f"{line}."]
