"""A comparison whose students are one network at several widths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segdistill.comparison.plan import Plan, load_plan
from segdistill.engine.config import read_config

WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""If nothing else is said."""


def load_curve(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), out: str | Path | None = None
) -> Plan:
    """Read and check a comparison of one network at several widths.

    Args:
        source: as for `load_plan`.
        overrides: `key.sub=value`; `widths=[0.25,0.5,0.75,1]` if neither they nor the file say any.
        out: folder (default: `runs/curve_<file>`).

    Raises:
        ValueError: with one line on the first thing that is wrong.
    """
    if not any(o.startswith("widths=") for o in overrides) and "widths" not in read_config(source):
        overrides = [f"widths={list(WIDTHS)}", *overrides]
    if out is None:
        out = Path("runs") / f"curve_{'grid' if isinstance(source, Mapping) else Path(source).stem}"
    plan = load_plan(source, overrides, out)
    if plan.options.widths is None:
        raise ValueError("students: a curve is of one student at several widths; `segdistill compare` takes any")
    if len({run.data for run in plan.runs}) > 1:
        raise ValueError("data: a curve is of one data set; run it once for each, or use `segdistill compare`")
    return plan
