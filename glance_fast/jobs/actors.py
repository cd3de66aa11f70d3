"""Workers as actors of Ray: a cluster reached, and blocks of photographs handed to it by Ray Data."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from glance_fast.data.table import printable
from glance_fast.errors import UserError, excerpt
from glance_fast.jobs.table import Odd
from glance_fast.jobs.worker import Done, Job, Worker

# The cluster that is started on this machine.
LOCAL = "local"
# Processors of a worker, where nobody says how many.
THREADS = 4
# Times that a block is begun: where so many workers died over it, it is the block and not the machines.
ATTEMPTS = 4
# Nothing is sent to Ray's makers. What goes on inside stays in its files: what fails, we say ourselves.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
# Of Ray Data. To it, a worker that it takes back while that waits for room has died as well; those that die
# as they load the model, ``_Attempts`` counts.
SETTINGS = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "max_consecutive_actor_init_deaths": 50,
}
# Seconds in which the head of a cluster must answer.
PATIENCE = 10.0
# Bytes of Ray's store of objects on this machine: it holds a model, and names of photographs.
OBJECTS = 1 << 29


class Place(NamedTuple):
    """What one worker takes of a machine.

    Attributes
    ----------
    device : str
        "cpu" or "cuda".
    threads : int
        Processors.
    fitting : int
        How many workers the machines of the cluster have room for; others may be at work there.
    """

    device: str
    threads: int
    fitting: int

    @property
    def gpus(self) -> int:
        """Whole GPUs."""
        return int(self.device == "cuda")


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[None]:
    """Ray, started on this machine or joined, for as long as the context lasts.

    Parameters
    ----------
    cluster : str
        As for ``score_cluster``.

    Raises
    ------
    UserError
        Ray is not installed, or the cluster cannot be reached.
    """
    # Not Ray's own words, such as auto: Ray Data 2.60 loses the workers of a cluster that was joined so.
    head = re.fullmatch(r"\[?([^/\s]+?)\]?:([0-9]{1,5})", cluster)
    if not head and cluster != LOCAL:
        raise UserError(f"`cluster={cluster}`: expected local, or HOST:PORT of a cluster's head")
    # Read as Ray is imported, or starts.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("`cluster` needs Ray: pip install 'glance-fast[cluster]'") from error
    if ray.is_initialized():
        yield
        return
    _silence()
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if cluster == LOCAL:
        how |= {"include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        if head:  # Ray would try for minutes
            socket.create_connection((head[1], int(head[2])), PATIENCE).close()
        with _own_signals(), _no_stderr():
            ray.init(cluster, **how)
    except (OSError, OverflowError, RuntimeError, ValueError, AssertionError) as error:
        reason = excerpt(str(error).strip().partition("\n")[0].partition(". ")[0])
        if cluster == LOCAL:
            raise UserError(f"`cluster=local`: Ray cannot be started on this machine ({reason})") from error
        raise UserError(
            f"`cluster={cluster}`: cannot be reached ({reason}); this machine must be part of the cluster, "
            "and the address that of its head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def place_of(cluster: str, device: str, threads: int | None) -> Place:
    """What a worker is to take of the machines that are there.

    Raises
    ------
    UserError
        There is no such device, or a cluster that cannot grow has no room for a worker.
    """
    import ray

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device}: workers take auto, cpu or cuda")
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if device == "auto":
        device = "cuda" if any(gpus) else "cpu"
    if threads is None:
        threads = 1 if device == "cuda" else min([THREADS, *filter(None, cpus)])
    room = (own // threads for own in cpus)
    if device == "cuda":
        room = (min(pair) for pair in zip(room, gpus, strict=True))
    return Place(device, threads, sum(room))


def ask(files: Any, job: Job, place: Place) -> tuple[dict[str, Any], int]:
    """How workers of such a place score, as ``run.json`` has it, and how many photographs at a time.

    Parameters
    ----------
    files : ObjectRef
        Of what ``run_files`` gives.
    job : Job
    place : Place

    Raises
    ------
    UserError
        As for ``Worker``.
    """
    import ray

    def look(files: dict[str, bytes], job: Job) -> tuple[str, dict[str, Any], int]:
        try:
            worker = Worker(files, job)
            return "", worker.how(), worker.together()
        except UserError as error:
            return str(error), {}, 0

    asked = ray.remote(look).options(num_cpus=place.threads, num_gpus=place.gpus)
    with _in_one_line():
        fault, how, together = ray.get(asked.remote(files, job))
    if fault:
        raise UserError(fault)
    return how, together


def score_blocks(
    files: Any,
    job: Job,
    place: Place,
    workers: int,
    provenance: dict[str, Any],
    blocks: Sequence[Sequence[str]],
) -> Iterator[Done]:
    """Have blocks of photographs scored; what came of each, as they are done.

    Parameters
    ----------
    files, job, place
        As for ``ask``.
    workers : int
        No more than there is room for: Ray Data does not wait for room.
    provenance : dict
        As of ``provenance_of``; already written.
    blocks : sequence of sequences of str
        Names of photographs; one at least.

    Raises
    ------
    UserError
        As for ``score_cluster``.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    # Names as JSON: Arrow takes no text that is no UTF-8.
    most = min(workers, len(blocks))
    items = [{"number": i, "names": json.dumps(list(names))} for i, names in enumerate(blocks)]
    with _in_one_line(), _set(DataContext.get_current(), SETTINGS):
        attempts = (
            ray.remote(_Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(most)
        )
        # One block of Ray's each: a worker that is done takes the next, and one that died costs one. Ray
        # replaces those that die, and hands on what they had, as often as it takes.
        rows = from_items(items, override_num_blocks=len(items)).map(
            _Actor,
            fn_constructor_args=(files, job, provenance, attempts),
            # Fewer where a machine is lost, and as many again where another comes.
            compute=ActorPoolStrategy(
                min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=place.threads,
            num_gpus=place.gpus,
        )
        for row in rows.iter_rows():
            if row["fault"]:
                raise UserError(row["fault"])
            yield Done(row["scored"], row["errors"], Odd(**{name: row[name] for name in asdict(Odd())}))


class _Attempts:
    """Counts how often each block was begun, and a model loaded with no block begun after it."""

    def __init__(self, workers: int) -> None:
        self._begun: dict[int, int] = {}
        self._workers, self._loads = workers, 0

    def load(self) -> bool:
        """Whether a worker may load the model: not where as many as there are have done so in vain."""
        self._loads += 1
        return self._loads < self._workers + ATTEMPTS

    def begin(self, number: int) -> bool:
        """Whether a worker may begin a block."""
        self._loads = 0
        self._begun[number] = self._begun.get(number, 0) + 1
        return self._begun[number] <= ATTEMPTS


class _Actor:
    """A worker as Ray Data calls it: a row with names in, a row with numbers out.

    What a user can cause comes as a row, too: Ray would try again, and report where its own code stood.
    """

    def __init__(self, files: Any, job: Job, provenance: dict[str, Any], attempts: Any) -> None:
        import ray

        self._provenance, self._attempts, self._fault = provenance, attempts, ""
        try:
            if not ray.get(attempts.load.remote()):
                raise UserError(_deaths("loading the model"))
            self._worker = Worker(ray.get(files), job)
            self._worker.check(provenance)
        except UserError as error:
            self._fault = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        names, fault, done = json.loads(row["names"]), self._fault, Done(0, 0, Odd())
        if not fault and not ray.get(self._attempts.begin.remote(row["number"])):
            fault = _deaths(f"{printable(names[0])!r} to {printable(names[-1])!r}")
        if not fault:
            try:
                done = self._worker.score(names, self._provenance)
            except UserError as error:
                fault = str(error)
        return {"fault": fault, "scored": done.scored, "errors": done.errors, **asdict(done.odd)}


def _deaths(what: str) -> str:
    return (
        f"one worker after the other died over {what}, most likely for lack of memory: give fewer `workers` "
        "or a smaller `memory_mib`; `resume=True` goes on"
    )


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Raise what became of workers as a ``UserError``."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

    try:
        yield
    except (OutOfMemoryError, RayActorError, WorkerCrashedError) as error:
        raise UserError(_deaths("the work")) from error
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = excerpt(lines[-1] if lines else type(error).__name__)
        raise UserError(f"a worker failed ({reason}); `resume=True` goes on") from error


@contextlib.contextmanager
def _set(settings: Any, values: dict[str, Any]) -> Iterator[None]:
    """Have settings changed for as long as the context lasts."""
    before = {name: getattr(settings, name) for name in values}
    try:
        for name, value in values.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does here: Ray takes it over as it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Have nothing written to it, not by compiled code either, which asks no logger."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _silence() -> None:
    """Have Ray Data write to its files alone: what fails, we say."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL + 1)
