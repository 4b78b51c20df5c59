"""How far a compilation is, shown on a terminal and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

# step, how far, of how much (0: not known): parts of a step that take long enough to be worth showing.
Steps = Callable[[str, int, int], None]

LOOKS = 2  # a second: kernels may be timed meanwhile


def quiet(step: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class Bar:
    """A line for each step, and what is shown below them, while there is something. Call it as Steps."""

    def __init__(self, shown: bool = True) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.shown = shown and console.is_terminal
        self.below: RenderableType | None = None
        self._progress = Progress(*columns, console=console, auto_refresh=False, disable=not self.shown)
        self._live = Live(console=console, transient=True, refresh_per_second=LOOKS, get_renderable=self._all)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        name = step.split(":")[0]
        if name not in self._tasks:
            for task in self._tasks.values():
                self._progress.update(task, total=1, completed=1)
            self._tasks[name] = self._progress.add_task(step, total=None)
        self._progress.update(self._tasks[name], description=step, completed=done, total=total or None)

    def _all(self) -> RenderableType:
        parts: list[RenderableType] = [self._progress.get_renderable()]
        return Group(*parts, *([] if self.below is None else ["", self.below]))

    def __enter__(self) -> Self:
        if self.shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
