"""The log of a worker process: one format on stderr, whichever way a line is written."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import unicodedata
from typing import Any

import pytest
import structlog

from spanloom.engine.logs import Logger
from spanloom.worker.process.log_setup import configure_logging

library = logging.getLogger("some.library")
Captured = pytest.CaptureFixture[str]


def nobody_listens() -> None:
    """Begin as a worker process does: pytest's own handlers are put back at the end."""
    logging.getLogger().handlers.clear()


def written(capsys: Captured) -> list[dict[str, object]]:
    printed = capsys.readouterr()
    assert printed.out == ""
    return [json.loads(line) for line in printed.err.splitlines()]


def test_structlog_and_logging_write_the_same_json(capsys: Captured) -> None:
    nobody_listens()
    configure_logging("json")
    structlog.get_logger("theirs").info("by structlog", order=3)
    library.info("by %s", "logging", extra={"order": 3})
    library.debug("too little")
    try:
        {}["gone"]
    except KeyError:
        structlog.get_logger("theirs").exception("failed")
        library.exception("failed")

    lines = written(capsys)

    assert [line["event"] for line in lines] == ["by structlog", "by logging", "failed", "failed"]
    assert [line["level"] for line in lines] == ["info", "info", "error", "error"]
    assert [line.get("order") for line in lines] == [3, 3, None, None]
    assert [line.get("logger") for line in lines] == [None, "some.library"] * 2
    assert all(str(line["timestamp"]).endswith("Z") for line in lines)
    assert all("KeyError: 'gone'" in str(line["exception"]) for line in lines[2:])


def test_in_a_terminal_it_is_readable(capsys: Captured) -> None:
    nobody_listens()
    configure_logging("console")
    structlog.get_logger("theirs").info("by structlog")
    library.warning("by logging")

    shown = capsys.readouterr().err.splitlines()

    assert [what in line for what, line in zip(("by structlog", "by logging"), shown, strict=True)] == [True, True]
    assert not shown[0].startswith("{")


def test_what_the_application_has_set_up_stays_but_for_a_second_way_to_the_terminal(capsys: Captured) -> None:
    nobody_listens()
    kept = io.StringIO()
    logging.basicConfig(level=logging.ERROR, handlers=[logging.StreamHandler(kept), logging.StreamHandler(sys.stderr)])
    for _ in range(2):  # it may be called again
        configure_logging("json")
    library.warning("not severe enough for this application")
    library.error("once")

    assert [line["event"] for line in written(capsys)] == ["once"]
    assert kept.getvalue() == "ERROR:some.library:once\n"


def test_a_stderr_that_nobody_reads_any_more_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_listens()
    configure_logging("json")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)

    structlog.get_logger("theirs").info("unheard")
    library.info("unheard")


ODD = "é\x1b]0;title\x07\x9b31m\x7f\u202e\u200b\ud83d"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_nothing_in_a_line_controls_the_terminal(log_format: str, capsys: Captured) -> None:
    nobody_listens()
    configure_logging(log_format)
    field: dict[str, object] = {ODD: ODD, "spaced": f"{ODD} {ODD}", "list": [ODD], "odd": _Odd()}
    structlog.get_logger("theirs").info(f"{ODD}\nforged", **field, logger=ODD)
    logging.getLogger(ODD).warning(ODD, extra={ODD: ODD})
    try:
        _refuse()
    except ValueError:
        structlog.get_logger("theirs").exception("failed")
        library.exception("failed")

    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)

    odd = {character for character in printed if unicodedata.category(character) in ("Cc", "Cf", "Cs")}
    assert odd <= {"\n"}
    assert not any(line.startswith("forged") for line in printed.splitlines())
    if log_format == "json":
        assert [json.loads(line)["event"] for line in printed.splitlines()][1] == ODD


def _refuse() -> None:
    raise ValueError(ODD)


class _Odd:
    def __repr__(self) -> str:
        return ODD


def test_a_traceback_shows_no_local_variable(capsys: Captured) -> None:
    nobody_listens()
    configure_logging("console")
    _fail(structlog.get_logger("theirs"), password="of" + "_a_bank")
    _fail(library, password="of" + "_a_bank")

    shown = capsys.readouterr().err

    assert shown.count("ZeroDivisionError") == 2
    assert "of_a_bank" not in shown


def test_our_own_lines_show_none_where_structlog_is_not_configured(capsys: Captured) -> None:
    structlog.reset_defaults()

    _fail(Logger("spanloom.engine"), password="of" + "_a_bank")
    Logger("spanloom.engine").warning(ODD, field=ODD)

    shown = capsys.readouterr().out
    assert "ZeroDivisionError" in shown
    assert "of_a_bank" not in shown
    assert not {character for character in shown if unicodedata.category(character) in ("Cc", "Cf", "Cs")} - {"\n"}


def _fail(logger: Any, *, password: str) -> None:
    try:
        assert 1 / (len(password) - len(password))
    except ZeroDivisionError:
        logger.exception("failed")
