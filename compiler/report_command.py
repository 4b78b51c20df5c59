"""`moec log report`: tuning as a page to look at."""

from __future__ import annotations

from pathlib import Path

import click

from .cli import with_log
from .log_commands import chosen, example, opened, warn, with_cpu, with_kernel, writing


@click.command(epilog=example("report -o tuning.html", "report --kernel grouped --cpu EPYC -o experts.html"))
@with_log
@with_kernel
@with_cpu
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="HTML file to write.")
def report(log: Path | None, out: Path, kernel: str, cpu: str) -> None:
    """A page about each kernel's tuning: history, what matters, the winner beside the default, its noise.

    It is made from the log alone, needs no other file and runs no script. A file of that name is replaced.
    """
    from .tuning_report import page

    found = opened(log)
    text = page(chosen(found, kernel, cpu))
    warn(found)
    with writing(found, out):
        write_whole(out, text)


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
