"""MLflow: one of its runs for each run, in `mlflow.db` of the run's folder or where MLFLOW_TRACKING_URI says; the step of a figure is its trial."""

import os
import time
from collections.abc import Sequence
from typing import Any

from archsearch.results import MLFLOW_FILE, MLFLOW_FOLDER, Row
from archsearch.search.engine.listener import State
from archsearch.search.trackers.base import About, figures, front_table

EXPERIMENT = "archsearch"
# Set before the library is imported, where the user has not: it reports its own use over the network, and tries a lost server again for minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_RUN_TAG = "archsearch.run_id"
_STATUS = {"complete": "FINISHED", "timeout": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST_TAG = 5000  # characters


class MlflowTracker:
    """Finds the run again by a tag, and asks MLflow which trials it has."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def start(self, about: About) -> set[int]:
        """The trials that were logged before."""
        self._about = about
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(about.folder / MLFLOW_FILE).absolute()}"
        self._client = self._library.MlflowClient(tracking_uri=uri)
        experiment = self._experiment(uri)
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_RUN_TAG}` = '{about.run_id}'")
        if not found:
            run = self._client.create_run(experiment, run_name=about.name, tags={_RUN_TAG: about.run_id})
            self._run_id = run.info.run_id
            entities = self._library.entities
            params = [entities.Param(name, str(value)) for name, value in about.settings.items()]
            self._client.log_batch(self._run_id, params=params)
            return set()
        self._run_id = found[0].info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        return {metric.step for metric in self._client.get_metric_history(self._run_id, "trial")}

    def _experiment(self, uri: str) -> str:
        """The id of the experiment, made where there is none; artifacts of our own database would else go to the working folder."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        place = (
            None if "MLFLOW_TRACKING_URI" in os.environ else (self._about.folder / MLFLOW_FOLDER).absolute().as_uri()
        )
        return str(self._client.create_experiment(name, artifact_location=place))

    def log(self, row: Row, front_size: int | None) -> None:
        """The figures of a trial, in one request; `trial` is among them, so that each has a point."""
        at = round(row["finished_at"].timestamp() * 1000)
        found = {"trial": float(row["trial"]), **figures(row, front_size)}
        metric = self._library.entities.Metric
        self._client.log_batch(self._run_id, metrics=[metric(name, found[name], at, row["trial"]) for name in found])

    def finish(self, state: State, front: Sequence[Row]) -> None:
        """The front as the run's description."""
        table = front_table(front, self._about.objectives)
        self._client.set_tag(self._run_id, "mlflow.note.content", table[:_LONGEST_TAG])
        self._client.set_tag(self._run_id, "archsearch.state", state)
        self._client.set_terminated(self._run_id, _STATUS[state], round(time.time() * 1000))
