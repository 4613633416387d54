"""Workflow definitions and their versions, shared by every SQL store."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from spanloom.engine.errors import StaleVersion, UnknownWorkflow
from spanloom.engine.store.models import Page, WorkflowSummary, WorkflowVersion
from spanloom.engine.store.port import WorkflowVersions
from spanloom.engine.store.requests import END
from spanloom.engine.store.texts import check_exact
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import edges
from spanloom.stores.schema import workflow_edges, workflow_versions, workflows
from spanloom.stores.sql.base import SqlStoreBase
from spanloom.stores.sql.lists.paging import page, sort_key

__all__ = ["SqlVersions"]


class SqlVersions(SqlStoreBase, WorkflowVersions):
    """The port's WorkflowVersions in SQLAlchemy Core."""

    def save_workflow(
        self,
        workflow: Workflow,
        *,
        change_notes: str | None = None,
        created_by: str | None = None,
        expected_version: int | None = None,
        now: datetime | None = None,
    ) -> int:
        """See WorkflowVersions.save_workflow."""
        check_exact("workflow id", workflow.id)
        check_exact("workflow name", workflow.name)
        check_exact("change notes", change_notes)
        check_exact("name in created_by", created_by)
        with self._writing() as connection:
            at = self._at(connection, now)
            latest = _locked_latest(connection, workflow.id)
            if latest == 0 and expected_version in (None, 0):
                connection.execute(
                    self._insert(workflows)
                    .values(id=workflow.id, active=True, latest_version=0, created_at=at, updated_at=at)
                    .on_conflict_do_nothing()
                )
                latest = _locked_latest(connection, workflow.id)  # another registration may have been first
            newest = _newest(connection, workflow.id) if latest else None
            if expected_version is not None and expected_version != latest:
                current = None if newest is None else _version(newest)
                raise StaleVersion(f"workflow {workflow.id!r}", expected_version, latest, current)
            digest = workflow.digest()
            if newest is not None and newest.digest == digest:
                return latest
            _add_version(connection, workflow, latest + 1, digest, change_notes, created_by, at)
            return latest + 1

    def get_workflow(self, workflow_id: str, version: int | None = None) -> Workflow | None:
        """See WorkflowVersions.get_workflow."""
        found = self.get_workflow_version(workflow_id, version)
        return None if found is None else found.definition

    def get_workflow_version(self, workflow_id: str, version: int | None = None) -> WorkflowVersion | None:
        """See WorkflowVersions.get_workflow_version."""
        check_exact("workflow id", workflow_id)
        with self._reading() as connection:
            row = _newest(connection, workflow_id, version)
        return None if row is None else _version(row)

    def list_workflow_versions(
        self, workflow_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[WorkflowVersion]:
        """See WorkflowVersions.list_workflow_versions."""
        check_exact("workflow id", workflow_id)
        columns = workflow_versions.c
        query = sa.select(workflow_versions).where(columns.workflow_id == workflow_id)
        if cursor is not None:
            query = query.where(columns.version < sort_key(cursor, int)[0])
        with self._reading() as connection:
            rows = connection.execute(query.order_by(columns.version.desc()).limit(limit + 1)).all()
        return page(rows, limit, _version, lambda row: [row.version])

    def list_workflows(
        self, *, active: bool | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[WorkflowSummary]:
        """See WorkflowVersions.list_workflows."""
        columns, versions = workflows.c, workflow_versions.c
        newest = sa.and_(versions.workflow_id == columns.id, versions.version == columns.latest_version)
        query = sa.select(workflows, versions.name).select_from(workflows.join(workflow_versions, newest))
        if active is not None:
            query = query.where(columns.active == active)
        if cursor is not None:
            query = query.where(columns.id > sort_key(cursor, str)[0])
        with self._reading() as connection:
            rows = connection.execute(query.order_by(columns.id).limit(limit + 1)).all()
        return page(rows, limit, _summary, lambda row: [row.id])

    def deactivate_workflow(self, workflow_id: str) -> None:
        """See WorkflowVersions.deactivate_workflow."""
        self._set_active(workflow_id, False)

    def activate_workflow(self, workflow_id: str) -> None:
        """See WorkflowVersions.activate_workflow."""
        self._set_active(workflow_id, True)

    def _set_active(self, workflow_id: str, active: bool) -> None:
        check_exact("workflow id", workflow_id)
        with self._writing() as connection:
            changed = connection.execute(
                sa.update(workflows).where(workflows.c.id == workflow_id).values(active=active)
            )
            if changed.rowcount == 0:
                raise UnknownWorkflow(workflow_id)


def _locked_latest(connection: sa.Connection, workflow_id: str) -> int:
    """Return the newest version's number, 0 if there is none, and block other registrations of the workflow."""
    query = sa.select(workflows.c.latest_version).where(workflows.c.id == workflow_id).with_for_update()
    return connection.scalar(query) or 0


def _newest(connection: sa.Connection, workflow_id: str, version: int | None = None) -> sa.Row[Any] | None:
    columns = workflow_versions.c
    query = sa.select(workflow_versions).where(columns.workflow_id == workflow_id)
    if version is not None:
        query = query.where(columns.version == version)
    return connection.execute(query.order_by(columns.version.desc()).limit(1)).one_or_none()


def _add_version(
    connection: sa.Connection,
    workflow: Workflow,
    version: int,
    digest: str,
    change_notes: str | None,
    created_by: str | None,
    at: datetime,
) -> None:
    found = edges(workflow)
    connection.execute(
        sa.insert(workflow_versions).values(
            workflow_id=workflow.id,
            version=version,
            name=workflow.name,
            definition=workflow.to_json(),
            digest=digest,
            sinks=sum(edge.target == END for edge in found),
            change_notes=change_notes,
            created_by=created_by,
            created_at=at,
        )
    )
    rows = [
        {
            "workflow_id": workflow.id,
            "version": version,
            "source": edge.source,
            "target": edge.target,
            "kind": edge.on,
            "target_type": edge.target_type,
            "target_queue": edge.target_queue,
            "target_inputs": edge.target_inputs,
        }
        for edge in found
    ]
    connection.execute(sa.insert(workflow_edges), rows)
    connection.execute(
        sa.update(workflows).where(workflows.c.id == workflow.id).values(latest_version=version, updated_at=at)
    )


def _version(row: sa.Row[Any]) -> WorkflowVersion:
    return WorkflowVersion(
        workflow_id=row.workflow_id,
        version=row.version,
        name=row.name,
        change_notes=row.change_notes,
        created_by=row.created_by,
        created_at=row.created_at,
        definition=Workflow.from_json(row.definition),
    )


def _summary(row: sa.Row[Any]) -> WorkflowSummary:
    return WorkflowSummary(
        id=row.id,
        name=row.name,
        latest_version=row.latest_version,
        active=row.active,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
