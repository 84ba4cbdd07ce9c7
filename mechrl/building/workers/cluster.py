"""Shards swept by many workers at once: processes on this machine, or a running Dask cluster."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from mechrl.building.workers.worker import Recipe, Shard, Swept, Worker
from mechrl.errors import FileError, MachineError, MechrlError, UsageError
from mechrl.process import keep_freed_memory

TRIES = 3  # of a shard, before its error stops the build
CONNECT_SECONDS = 10
WORKER_SECONDS = 60  # until the first worker must be there

_worker: tuple[tuple[Any, ...], Worker] | None = None  # of this process: the model is loaded once
_gpu_lock: Any = None


def connect(workers: int | None, scheduler: str | None, threads: int | None = None) -> Any:
    """A context of a Dask client: of `workers` processes here, of the cluster at `scheduler`, or None for neither."""
    if workers:
        return local_cluster(workers, threads)
    return remote_cluster(scheduler) if scheduler else contextlib.nullcontext()


@contextlib.contextmanager
def local_cluster(workers: int, threads: int | None = None) -> Iterator[Any]:
    """A Dask client of as many worker processes on this machine, which end with it.

    :param threads: of all workers together; by default all cores.
    :raises UsageError: Dask is not installed.
    """
    distributed = _dask()
    import dask

    each = str(max(1, (threads or os.cpu_count() or 1) // workers))
    settings = {
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each},
        "distributed.scheduler.allowed-failures": TRIES - 1,
        "distributed.worker.multiprocessing-method": "spawn",
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def remote_cluster(scheduler: str) -> Iterator[Any]:
    """A Dask client of a running scheduler, such as tcp://HOST:8786.

    :raises UsageError: Dask is not installed, or that is no address.
    :raises MachineError: nothing answers there, or it has no workers.
    """
    distributed = _dask()
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_SECONDS)
    except ValueError as error:
        raise UsageError(f"{scheduler!r} is not an address such as tcp://HOST:8786 ({error})") from error
    except OSError as error:
        raise MachineError(
            f"no Dask scheduler answers at {scheduler} within {CONNECT_SECONDS} s; `dask scheduler` starts one"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise MachineError(
                f"the scheduler at {scheduler} has no workers; `dask worker {scheduler} --nthreads 1` starts one"
            ) from error
        yield client


def sweep_shards(client: Any, recipe: Recipe, device: str, shards: Sequence[Shard]) -> Iterator[Swept]:
    """All shards, as they become ready. What a dead worker had in hand is given to another.

    :param device: `auto`, `cuda` or `cpu`; each worker makes out for itself which one it has.
    :raises MechrlError: a shard failed three times, or a worker has another mechrl or model.
    """
    distributed = _dask()

    futures = {
        client.submit(sweep_shard, recipe, device, shard, pure=False, retries=TRIES - 1): shard for shard in shards
    }
    try:
        for future in distributed.as_completed(futures):
            piece = futures[future].piece
            try:
                result = future.result()
            except MechrlError:
                raise
            except Exception as error:
                raise MachineError(
                    f"{piece.name}, rows from {piece.first_row} on, failed {TRIES} times: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if isinstance(result, MechrlError):
                raise result
            yield result
    finally:
        client.cancel(list(futures))


def sweep_shard(recipe: Recipe, device: str, shard: Shard) -> Swept | MechrlError:
    """What a worker runs. An error that a second try cannot mend is handed back, not raised."""
    global _worker  # noqa: PLW0603  (a worker is a process)
    key = (*(value for name, value in vars(recipe).items() if name not in ("check", "pass_tokens")), device)
    try:
        if _worker is None or _worker[0] != key:
            _worker = None  # one model at a time
            _worker = key, _load(recipe, device)
        if recipe.pass_tokens:
            _worker[1].forward.pass_tokens = recipe.pass_tokens
        return _worker[1](shard)
    except (UsageError, FileError) as error:
        return type(error)(f"the worker on {socket.gethostname()} (process {os.getpid()}): {error}")
    except MachineError as error:
        raise MachineError(f"the worker on {socket.gethostname()} (process {os.getpid()}): {error}") from error


def _load(recipe: Recipe, device: str) -> Worker:
    from mechrl.models import load_model, pick_device

    keep_freed_memory()
    device = pick_device(device)
    if device == "cuda":
        device = f"cuda:{_own_gpu()}"
    return Worker(load_model(recipe.model, device=device, revision=recipe.revision), recipe)


def _own_gpu() -> int:
    """The first GPU of this machine that no other worker has; the operating system frees it when the process ends.

    :raises UsageError: all are taken.
    """
    global _gpu_lock  # noqa: PLW0603  (a worker is a process)
    import torch
    from filelock import FileLock, Timeout

    count = torch.cuda.device_count()
    for index in range(count):
        name = f"mechrl-{os.getuid()}-{torch.cuda.get_device_properties(index).uuid}.lock"
        lock = FileLock(os.path.join(tempfile.gettempdir(), name), timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            _gpu_lock = lock  # held as long as the process lives
            return index
    raise UsageError(f"there are {count} GPUs and each has a worker already: start one worker per GPU")


def _dask() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise UsageError("this needs Dask: pip install 'mechrl[cluster]'") from error
    return distributed
