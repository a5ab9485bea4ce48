"""The workers of a Dask cluster as an engine: on this machine, behind an address, or as jobs of Slurm.

A study, or a case, is a task. Each worker process makes what it needs once and holds one study at a time: a worker that
is lost thus tells which study it was lost with, and another does that again. Names of tasks are digests under a secret
of the run, what a task holds is sealed, and errors travel as answers: neither logs nor the dashboard tell whose it is.
Needs Dask (``pip install 'cgdpm-med[cluster]'``).
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import secrets
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError
from cgdpm_med.runtime.engines import Answer, Item, Made, Progress

TRIES = 3
"""How many workers a study may cost before it is left."""

LOOK = 2.0
"""Seconds after which a scheduler is asked again for its workers, when no study was finished meanwhile."""

WITHOUT_WORKERS = 600.0
"""Seconds that a run waits for a worker to come back when all are gone."""

_AGAIN = "and run this again: cgdpm-med segment with --continue does the rest, other commands the whole"

_OWN_SCHEDULER = {
    "distributed.scheduler.allowed-failures": 0,  # tries are counted here
    # a worker that is slow to start again would be closed, with the study that it just took
    "distributed.deploy.lost-worker-timeout": f"{WITHOUT_WORKERS:.0f}s",
    "distributed.worker.memory.target": False,  # nothing of a study is spilled to disk
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.profile.enabled": False,  # what follows takes CPU time all the while, from the studies
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.tick.interval": "500ms",
}


# --- where the workers are --------------------------------------------------------------------------------------------


@contextmanager
def open_cluster(
    address: str, config: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Iterator[DaskEngine]:
    """The engine behind ``--dask``; workers that it started end with it.

    Args:
        address: ``local:N`` for N processes here, the address of a scheduler (``tcp://host:8786``), or ``slurm``.
        config: a YAML file with ``jobs``, their number, and ``cluster``, the arguments of
            ``dask_jobqueue.SLURMCluster``; for Slurm.
        say: is told the dashboard's address, and what is waited for.

    Raises:
        InputError: Dask is missing, the address is none, nobody answers there, or the configuration does not fit.
    """
    _require_dask(address)
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(dask.config.set({**_OWN_SCHEDULER, "distributed.worker.multiprocessing-method": _start()}))
        place, threads = _place(address, config, stack)
        client = stack.enter_context(_client(Client, place, address))
        say(f"dashboard: {client.dashboard_link}")
        _wait_for_worker(client, address, say)
        yield DaskEngine(client, threads)


def _require_dask(address: str) -> None:
    needed = ("distributed", "dask_jobqueue") if address == "slurm" else ("distributed",)
    if any(find_spec(name) is None for name in needed):
        raise InputError("--dask needs Dask", remedy="Install it: pip install 'cgdpm-med[cluster]'")


def _place(address: str, config: Path | None, stack: ExitStack) -> tuple[Any, int | None]:
    """What a client connects to, and the threads of each worker where that is ours to say."""
    if config is not None and address != "slurm":
        raise InputError("--dask-config is for --dask slurm", remedy="Leave it out")
    if address == "slurm":
        return _slurm(config, stack)
    if re.match(r"(tcp|tls|ws|wss|ucx)://.", address):
        return address, None
    count = re.fullmatch(r"local:([1-9]\d*)", address)
    if count is None:
        raise InputError(f"--dask {address!r} is no cluster", remedy="Give local:2, tcp://HOST:PORT or slurm")
    return _local(int(count[1]), stack)


def _start() -> str:
    """How processes here start: those of a fork server share its imports, where there are fork servers."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _local(workers: int, stack: ExitStack) -> tuple[Any, int]:
    import logging

    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    if _start() == "forkserver":
        get_mp_context().set_forkserver_preload(["distributed", "cgdpm_med.apps.pipeline"])
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,  # as large as one process may be
        silence_logs=logging.CRITICAL,
    )
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else max(1, _cores() // workers)
    return stack.enter_context(cluster), threads


def _slurm(config: Path | None, stack: ExitStack) -> tuple[Any, int]:
    with _own_interrupt():
        from dask_jobqueue.slurm import SLURMCluster

    jobs, arguments = read_slurm_config(config)
    try:
        cluster = stack.enter_context(SLURMCluster(**arguments))
        cluster.scale(jobs=jobs)
    except (TypeError, ValueError) as error:
        remedy = "Give arguments of dask_jobqueue.SLURMCluster under cluster"
        raise InputError(f"does not fit: {error}", path=config, remedy=remedy) from error
    return cluster, max(1, arguments["cores"] // arguments["processes"])


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keeps what an interrupt does: dask_jobqueue, once imported, would end the program with exit code 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def read_slurm_config(path: Path | None) -> tuple[int, dict[str, Any]]:
    """Number of jobs, and the arguments of ``SLURMCluster``: a process for each job unless ``processes`` says more.

    Raises:
        InputError: there is no such file, or it says no number of jobs, cores and memory.
    """
    import yaml  # type: ignore[import-untyped]

    remedy = "See docs/scaling.md for one"
    if path is None:
        raise InputError("--dask slurm needs to know what its jobs are", remedy="Give --dask-config FILE")
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError("cannot be read as YAML", path=path, remedy=remedy) from error
    jobs = told.get("jobs") if isinstance(told, dict) else None
    cluster = told.get("cluster") if isinstance(told, dict) else None
    if not (isinstance(jobs, int) and jobs > 0 and isinstance(cluster, dict) and set(told) == {"jobs", "cluster"}):
        raise InputError("needs jobs, a number above 0, and cluster, and nothing else", path=path, remedy=remedy)
    if not all(isinstance(cluster.get(name), kind) for name, kind in (("cores", int), ("memory", str))):
        raise InputError("needs cores, a number, and memory, such as 32GB, under cluster", path=path, remedy=remedy)
    # the last one given counts: a worker does one study at a time, with all threads of its own
    extra = [*cluster.get("worker_extra_args", ()), "--nthreads", "1"]
    return jobs, {"processes": 1, **cluster, "worker_extra_args": extra}


@contextmanager
def _client(make: Callable[..., Any], place: Any, address: str) -> Iterator[Any]:
    try:
        client = make(place, set_as_default=False, timeout=20)
    except (OSError, ValueError) as error:
        remedy = "Start it, or check the address: dask scheduler"
        raise InputError(f"no scheduler answers at {address}", remedy=remedy) from error
    with client:
        yield client


def _wait_for_worker(client: Any, address: str, say: Callable[[str], None]) -> None:
    """Jobs may stand in a queue for hours; a scheduler of one's own should have workers."""
    if not client.scheduler_info().get("workers", {}):
        say("waiting for the first worker")
    try:
        client.wait_for_workers(1, timeout=None if address == "slurm" else 120)
    except TimeoutError as error:
        remedy = f"Start one: dask worker {address} --nthreads 1"
        raise InputError(f"the scheduler at {address} has no worker", remedy=remedy) from error


# --- what workers do --------------------------------------------------------------------------------------------------

_MADE: dict[str, Any] = {}
"""What this process made once, of the latest run only."""


@dataclass(frozen=True)
class _Once:
    make: Callable[[], Any]
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    def __call__(self) -> Any:
        if self.run not in _MADE:
            _MADE.clear()  # a network of an earlier run would keep its memory
            _MADE[self.run] = self.make()
        return _MADE[self.run]


@dataclass(frozen=True, repr=False)
class _Task:
    """A piece of work for a worker. Logs show the arguments of a task that fails: this one shows nothing of its own."""

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    threads: int | None

    def __repr__(self) -> str:
        return "<work>"


@dataclass(frozen=True, repr=False)
class _Answer:
    """What became of a task: the value or the error, and what the package warned of."""

    value: Any
    error: InputError | None
    notes: tuple[Warning, ...]


def _do(parcel: bytes) -> _Answer:
    """Runs in a worker. No error leaves it but as an answer: the worker's log would quote it.

    Args:
        parcel: a task, which a scheduler thus need not understand, nor import what it takes to.
    """
    from distributed.protocol.pickle import loads

    task: _Task = loads(parcel)
    _settle(task.threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value, error = _attempt(task)
    return _Answer(value, error, tuple(_own_warnings(caught)))


def _attempt(task: _Task) -> tuple[Any, InputError | None]:
    try:
        return task.work(*task.arguments), None
    except InputError as error:
        return None, error.with_traceback(None)
    except Exception as error:  # whatever a library raises costs one study, and is told where the run was started
        return None, InputError(f"{type(error).__name__}: {error}", remedy="Run it alone without --dask to see more")


def _own_warnings(caught: Iterable[warnings.WarningMessage]) -> Iterator[Warning]:
    """Those of this package: other libraries may quote a header."""
    for said in caught:
        if isinstance(said.message, Warning) and said.category.__module__.startswith("cgdpm_med."):
            yield said.message


def _settle(threads: int | None) -> None:
    """Threads, freed memory and the device of this worker."""
    import torch
    from distributed import get_worker

    from cgdpm_med.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    number = device_number(str(get_worker().name))
    if number is not None:
        os.environ.setdefault("LOCAL_RANK", number)  # which choose_device counts among the devices there are


def device_number(name: str) -> str | None:
    """The last number in a worker's name: 0, 1, … on one machine, or of a job's processes; an address names none."""
    found = None if "://" in name else re.search(r"\d+$", name)
    return None if found is None else found[0]


def _silent(key: str, fraction: float) -> None:
    """Progress within a study is not told across machines."""


# --- the engine -------------------------------------------------------------------------------------------------------


class DaskEngine:
    """Work done by the workers of a cluster; see :class:`~cgdpm_med.runtime.engines.Engine`.

    Args:
        client: connected to the scheduler.
        threads: that the arithmetic of a worker uses; by default whatever it was started with.
    """

    def __init__(self, client: Any, threads: int | None = None) -> None:
        self.client, self.threads = client, threads
        self._secret = secrets.token_bytes(32)

    def once(self, make: Callable[[], Made]) -> Callable[[], Made]:
        """See :class:`~cgdpm_med.runtime.engines.Engine`."""
        return _Once(make)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """See :class:`~cgdpm_med.runtime.engines.Engine`."""
        for _ in range(TRIES):
            try:
                answer = self._answer(self._submit("question", secrets.token_hex(8), _Task(question, (), self.threads)))
                break
            except _LostWorker:
                continue
        else:
            raise _deadly(TRIES)
        if isinstance(answer, InputError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def do(
        self, work: Callable[[Item, Progress], Answer], items: Mapping[str, Item], progress: Progress
    ) -> Iterator[tuple[str, Answer | InputError]]:
        """See :class:`~cgdpm_med.runtime.engines.Engine`."""
        waiting, tries = deque(items), Counter[str]()
        at_work: dict[Any, str] = {}
        try:
            while waiting or at_work:
                for _ in range(min(len(waiting), self._room(len(at_work)))):
                    key = waiting.popleft()
                    at_work[self._submit("study", f"{key}#{tries[key]}", self._task(work, items[key]))] = key
                for future in self._finished(list(at_work)):
                    key = at_work.pop(future)
                    try:
                        answer = self._answer(future)
                    except _LostWorker as lost:
                        tries[key] += lost.tries
                        if tries[key] < TRIES:
                            waiting.appendleft(key)
                            continue
                        answer = _deadly(tries[key])
                    yield key, answer
        finally:
            for future in at_work:
                future.release()  # whoever stops here wants no more of them

    def _task(self, work: Callable[..., Any], item: Any) -> _Task:
        return _Task(work, (item, _silent), self.threads)

    def _room(self, at_work: int) -> int:
        """How many more studies the workers can take, one for each thread of theirs.

        Raises:
            InputError: there has been no worker for long, or the scheduler is gone.
        """
        deadline = time.monotonic() + WITHOUT_WORKERS
        while (threads := self._threads()) == 0:
            if time.monotonic() > deadline:
                raise InputError("the cluster has had no worker for long", remedy=f"Start workers, {_AGAIN}")
            time.sleep(LOOK / 10)
        return max(0, threads - at_work)

    def _threads(self) -> int:
        with _while_connected():
            told = self.client.scheduler_info(n_workers=-1)
            if "workers" not in told:  # what a client remembers of a scheduler that is gone
                raise OSError("no answer")
        return sum(worker["nthreads"] for worker in told["workers"].values())

    def _finished(self, futures: list[Any]) -> list[Any]:
        """Those that are, as soon as one is, or none after a while."""
        from distributed import wait

        with _while_connected(), self.client.as_current():
            try:
                return list(wait(futures, timeout=LOOK, return_when="FIRST_COMPLETED").done) if futures else []
            except TimeoutError:
                return []

    def _submit(self, kind: str, key: str, task: _Task) -> Any:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), key=self._secret, digest_size=12).hexdigest()
        from distributed.protocol.pickle import dumps

        return self.client.submit(_do, dumps(task), key=f"{kind}-{digest}", pure=False)

    def _answer(self, future: Any) -> Any:
        """The value of a task, or the InputError that stands for it.

        Raises:
            _LostWorker: the worker was.
            InputError: the scheduler is gone.
        """
        from distributed.scheduler import KilledWorker

        try:
            with _while_connected():
                answer = future.result()
        except KilledWorker as error:
            raise _LostWorker(error.allowed_failures + 1) from None
        except (ImportError, AttributeError, RuntimeError) as error:
            what = f"a worker cannot read its task ({type(error).__name__})"
            return InputError(what, remedy="Install the same versions on every machine")
        finally:
            future.release()
        for note in answer.notes:
            warnings.warn(note, stacklevel=2)
        return answer.value if answer.error is None else answer.error


class _LostWorker(Exception):
    """A task whose worker was lost, or several one after the other.

    Args:
        tries: how many.
    """

    def __init__(self, tries: int) -> None:
        super().__init__(tries)
        self.tries = tries


def _deadly(tries: int) -> InputError:
    what = f"ended each worker that tried it, {tries} times"
    return InputError(what, remedy="Run it alone without --dask; the machine's memory may be too small for it")


@contextmanager
def _while_connected() -> Iterator[None]:
    """Raises InputError where the scheduler went away."""
    from distributed import CancelledError

    try:
        yield
    except TimeoutError:
        raise
    except (CancelledError, OSError) as error:
        remedy = f"Start the cluster, {_AGAIN}"
        raise InputError("the connection to the scheduler was lost", remedy=remedy) from error
