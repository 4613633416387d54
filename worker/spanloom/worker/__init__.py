"""Workers: claim node runs, run their handlers, record the outcomes, and sweep up everything that is due or lost."""

from spanloom.worker.local import start_workers, worker_options
from spanloom.worker.options import WorkerOptions
from spanloom.worker.process.endpoints import Listen
from spanloom.worker.process.serve import serve
from spanloom.worker.process.supervised import supervise
from spanloom.worker.worker import Worker

__all__ = ["Listen", "Worker", "WorkerOptions", "serve", "start_workers", "supervise", "worker_options"]
