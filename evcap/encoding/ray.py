"""Work for the actors of a Ray cluster, or of a local one that is started for it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from math import ceil
from typing import TYPE_CHECKING

from evcap.errors import EvcapError

if TYPE_CHECKING:
    import numpy as np


class Engine(StrEnum):
    local = "local"
    ray = "ray"


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray while the `with` lasts: the cluster that RAY_ADDRESS names, or a local one, which is stopped at the end.

    Raises EvcapError when Ray is not installed, does not start, or a worker fails.
    """
    try:
        import ray.data
    except ImportError as error:
        raise EvcapError(f"--engine ray needs Ray ({error}): pip install -e '.[cluster]'") from None
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(
                os.environ.get("RAY_ADDRESS", "local"),
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EvcapError(f"Ray does not start or answer: {' '.join(str(error).split())}") from None
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = re.search(r"^[\w.]*(Error|Exception): .+$", str(error), re.MULTILINE)  # under the first traceback
        raise EvcapError(f"a Ray worker failed: {cause[0] if cause else ' '.join(str(error).split())}") from None
    finally:
        if own:
            ray.shutdown()


def map_by_actors(
    columns: dict[str, Sequence], worker: Callable, arguments: Sequence, on_gpu: bool, batch: int, batches_a_task: int
) -> Iterator[dict[str, np.ndarray]]:
    """What workers make of the rows of a table, task by task, in the order of the rows; within a `ray_session`.

    columns: the table, n values each. worker: a class; each actor makes one of `arguments`, then calls it with the columns of
    each task: `batches_a_task` times `batch` rows, or less where there is little to do. There is an actor for each GPU of the
    cluster if the model runs on one (on_gpu), else for each CPU.
    """
    import pyarrow
    import ray

    table = pyarrow.table(columns)
    kind = "GPU" if on_gpu else "CPU"
    workers = max(1, int(ray.cluster_resources().get(kind, 1)))
    # tasks of whole batches, so that these are cut where one process cuts them
    size = batch * min(batches_a_task, ceil(len(table) / (batch * workers * 4)))
    blocks = [table.slice(start, size) for start in range(0, len(table), size)]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = ray.data.from_arrow(blocks).map_batches(
        worker,
        fn_constructor_args=tuple(arguments),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        **{f"num_{kind.lower()}s": 1},
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells each plan and its progress
    return rows.iter_batches(batch_size=None)
