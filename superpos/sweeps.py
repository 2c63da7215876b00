"""Running many trainings as one program: progress, seen from outside of it."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[], Callable[[int], None]]]:
    """A progress bar over loops inside compiled programs; quiet where standard error is not a terminal.

    Args:
        total: steps of all loops together.
        description: shown in front.

    Yields:
        A function that makes one `report` for each loop: see `sp.fit`.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit="step", unit_scale=True, disable=None, smoothing=0.05) as bar:

        def reporter():
            done = 0

            def report(step):
                nonlocal done
                # Loops may run side by side, and callbacks may arrive late.
                advance, done = max(int(step) - done, 0), max(int(step), done)
                bar.update(advance)

            return report

        yield reporter
