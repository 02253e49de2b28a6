"""Workers as actors of a Ray cluster: an optional extra, for more machines than one.

Nodes need this package and the images under the same paths as here; bundles travel through the object store.
"""

import logging
import os
import queue
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from visionapps import __version__
from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.dispatch import Worker, WorkerDied, Workers
from visionapps.inference.serving import Failure, Inbox, Message, Ready, Ticket, serve
from visionapps.inference.sources import Source
from visionapps.inference.work import Answer, Computing, Part, Reading, Task
from visionapps.runtime import keep_freed_memory

_BEHIND = 2  # bands of a worker that may lie in the object store until somebody takes them
_PATIENCE_S = 60  # without a sign of any worker, after which the reason is worth a line
log = logging.getLogger(__name__)

Files = dict[str, bytes]  # of one bundle, by name


class RayWorkers(Workers):
    """Workers on a Ray cluster, one GPU each if the cluster has GPUs; a context manager."""

    def __init__(self, computing: Computing, reading: Reading, *, workers: int, address: str | None = None) -> None:
        """
        Args:
            computing: what each worker builds its engine from. Device "auto" means a GPU each if the cluster has any.
            reading: how images are opened.
            workers: how many.
            address: of a running cluster; "auto": the one that this machine belongs to; None: one on this machine for
                the time being. A cluster that this process has joined already is used as it is.

        Raises:
            ConfigError: fewer than one worker, or Ray is not installed.
        """
        super().__init__(workers)
        self._ray = _import_ray()
        self._computing, self._address = computing, address
        self._reading = replace(reading, area=reading.area.absolute()) if reading.area else reading
        self._joined = False

    def __enter__(self) -> Self:
        ray = self._ray
        if not ray.is_initialized():
            self._join()
        try:
            self._share = self._fair_share()
            folders = self._computing.bundles
            self._bundles = [ray.put(_read_bundle(folder)) for folder in folders]
            return super().__enter__()
        except BaseException:
            self._leave()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, at)
        finally:
            self._leave()

    def run(self, tasks: Iterable[Task]) -> Iterator[Answer]:
        """See Workers.run. Local paths may be relative: the nodes get absolute ones."""
        return super().run(Task(tuple(map(_absolute, task.parts))) for task in tasks)

    def _join(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        local: dict[str, Any] = {"include_dashboard": False, "num_cpus": max(self.count, os.cpu_count() or 1)}
        try:
            self._ray.init(self._address, **quiet, **({} if self._address else local))
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = self._address or "a cluster of this machine"
            raise ConfigError(
                f"ray: {where} cannot be reached or started ({_first_line(error)}); check the address, and that "
                "`ray status` answers there"
            ) from error
        self._joined = True

    def _leave(self) -> None:
        self._bundles = []
        if self._joined:
            self._ray.shutdown()
            self._joined = False

    def _fair_share(self) -> dict[str, float]:
        """What each worker asks the cluster for."""
        have = self._ray.cluster_resources()
        cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
        wants_gpu = self._computing.device.startswith("cuda") or (self._computing.device == "auto" and gpus > 0)
        most = gpus if wants_gpu else cpus
        if self.count > most:
            raise ConfigError(
                f"ray: {self.count} workers want {'a GPU' if wants_gpu else 'a processor'} each, but the cluster has "
                f"{most}; use at most that many workers{', or --device cpu' if wants_gpu else ''}"
            )
        if wants_gpu:
            return {"num_cpus": 1, "num_gpus": 1}
        # As many processors each as leave room for all: none is split between two nodes.
        nodes = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        sizes = range(cpus // self.count, 1, -1)
        return {"num_cpus": next((n for n in sizes if sum(node // n for node in nodes) >= self.count), 1)}

    def _hire(self, number: int) -> Worker:
        device = "cuda" if "num_gpus" in self._share else "cpu"
        return _Actor(
            self._ray,
            self._share,
            computing=replace(self._computing, device=device),
            reading=_NodeReading(self._reading),
            bundles=self._bundles,
            name=f"Ray worker {number + 1} of {self.count}",
        )

    def _wait(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        streams = {worker.stream: worker for worker in workers if isinstance(worker, _Actor)}
        while True:
            heard, _ = self._ray.wait(list(streams), num_returns=1, timeout=_PATIENCE_S)
            if heard:
                return [streams[stream] for stream in heard]
            log.warning("ray: no sign of any worker for %d s; `ray status` shows what they wait for", _PATIENCE_S)


class _Actor:
    """The driver's end of a worker on the cluster."""

    def __init__(
        self,
        ray: Any,
        share: dict[str, float],
        *,
        computing: Computing,
        reading: "_NodeReading",
        bundles: Sequence[Any],
        name: str,
    ) -> None:
        self._ray, self.name = ray, name
        # Not restarted by Ray: who replaces it must know, to hand out again what it had. Two calls run at a time:
        # serve, which lasts as long as the worker, and hand.
        remote = ray.remote(_Server).options(**share, max_restarts=0, max_concurrency=2)
        self._actor = remote.remote()
        method = self._actor.serve.options(num_returns="streaming", _generator_backpressure_num_objects=_BEHIND)
        self.stream = method.remote(computing, reading, __version__, *bundles)

    def hand(self, tickets: Sequence[Ticket]) -> None:
        self._actor.hand.remote(list(tickets))

    def take(self) -> Ready | Message | Failure:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            message: Ready | Message | Failure = self._ray.get(next(self.stream))
        except RayTaskError as error:
            raise ConfigError(
                f"{self.name} cannot start ({_first_line(error)}); every node needs Python and visionapps "
                f"{__version__} as they are here"
            ) from error
        except StopIteration as error:
            raise WorkerDied("it ended") from error
        except RayError as error:
            lost = isinstance(error, RayActorError)
            raise WorkerDied("its process or node died" if lost else _first_line(error)) from error
        if isinstance(message, Ready):
            self.name = f"{self.name} (process {message.process} on {message.host})"
        if isinstance(message, Message) and not isinstance(message.outcome, DataError):
            # What ray.get gives lies in the object store and is read-only; a copy frees the place at once.
            band = message.outcome
            message = message._replace(outcome=band._replace(planes=band.planes.copy()))
        return message

    def end(self) -> None:
        self._ray.kill(self._actor, no_restart=True)


class _Server:
    """The cluster's end: an actor."""

    def __init__(self) -> None:
        self._tickets: queue.SimpleQueue[list[Ticket]] = queue.SimpleQueue()

    def hand(self, tickets: list[Ticket]) -> None:
        """Queue a task."""
        self._tickets.put(tickets)

    def serve(
        self, computing: Computing, reading: "_NodeReading", version: str, *bundles: Files
    ) -> Iterator[Ready | Message | Failure]:
        """See visionapps.inference.serving.serve; the bundles replace those that ``computing`` names."""
        if version != __version__:
            text = f"ray: node {socket.gethostname()} has visionapps {__version__}, but the driver {version}"
            yield Failure(ConfigError(f"{text}; install the same version on every node"), "")
            return
        keep_freed_memory()
        if computing.device == "cpu":
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))  # Ray sets it to num_cpus
        with tempfile.TemporaryDirectory(prefix="visionapps-") as folder:
            folders = []
            for number, (original, files) in enumerate(zip(computing.bundles, bundles, strict=True)):
                folders.append(Path(folder) / str(number) / original.name)
                _write_bundle(folders[-1], files)
            yield from serve(replace(computing, bundles=tuple(folders)), reading, _QueueInbox(self._tickets))


class _QueueInbox(Inbox):
    def __init__(self, tickets: "queue.SimpleQueue[list[Ticket]]") -> None:
        self._tickets = tickets

    def get(self, *, wait: bool) -> Sequence[Ticket] | None:
        try:
            return self._tickets.get(block=wait)
        except queue.Empty:
            return None


@dataclass(frozen=True)
class _NodeReading:
    """A Reading that says whose fault it is when a node does not see an image that the driver has seen."""

    reading: Reading

    def open(self, image: str) -> Source:
        try:
            return self.reading.open(image)
        except DataError as error:
            if not _is_local(image) or Path(image).exists():
                raise
            raise DataError(
                f"{image}: node {socket.gethostname()} of the Ray cluster has no such file; images must lie where "
                "every node reads them under the same path, such as on a shared file system or behind /vsi"
            ) from error

    def shown(self, source: Source) -> Source:
        return self.reading.shown(source)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere; read when Ray starts
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # and no warning about a variable of the future
    try:
        import ray
    except ImportError as error:
        raise ConfigError('ray is not installed; pip install "visionapps[ray]", or leave out --ray') from error
    return ray


def _absolute(part: Part) -> Part:
    return part._replace(image=os.path.abspath(part.image)) if _is_local(part.image) else part


def _is_local(image: str) -> bool:
    return not image.startswith("/vsi") and "://" not in image


def _read_bundle(folder: Path) -> Files:
    try:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read as a bundle ({error.strerror or error})") from error


def _write_bundle(folder: Path, files: Files) -> None:
    try:
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(f"{folder}: a bundle cannot be unpacked on {socket.gethostname()} ({error})") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
