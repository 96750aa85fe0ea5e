"""prompts: reading and rendering a prompt of 2 KB with ten variables (benches/prompts.rs, criterion). Microseconds, with criterion's
95 % interval."""

import json
import os
import pathlib
import subprocess
import sys

from harness import note, result

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def figure(name):
    """Median and its interval, from nanoseconds."""
    median = json.loads((TARGET / "criterion" / name / "new/estimates.json").read_text())["median"]
    interval = median["confidence_interval"]
    value, low, high = (round(number / 1000, 2) for number in (median["point_estimate"], interval["lower_bound"], interval["upper_bound"]))
    return {"median": value, "low": low, "high": high}


def main():
    # Without the feature `local`: nothing of it is measured, and it takes long to build.
    command = ["cargo", "bench", "--profile", "ci", "--no-default-features", "--bench", "prompts", "--", "--noplot"]
    note(" ".join(command))
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode != 0:
        raise SystemExit("the benchmark failed")
    render, parse = figure("render"), figure("parse")
    result("prompts", {"render_us": render, "parse_us": parse}, {}, {"render_us": (render["median"], "<=", 50)})


if __name__ == "__main__":
    main()
