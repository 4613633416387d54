"""What a store may keep of a record that it refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from spanloom.engine.errors import PayloadRejected
from spanloom.engine.store.requests import AttemptSpan, LogLine, Outcome, RecordRequest, SpanLine
from spanloom.worker.recording.keepable import lesser_records

SAID = "caf\u00e9 \u4e2d \U0001f600"
REFUSED = PayloadRejected("no such character: \u4e2d \0")


def record(**fields: object) -> RecordRequest:
    made = RecordRequest("e", "n", 0, 1, "w", Outcome.COMPLETED)
    return made._replace(**fields)  # type: ignore[arg-type]


def test_a_record_in_ascii_is_the_same_value() -> None:
    fields = json.dumps({"said": SAID}, ensure_ascii=False)
    lines = [LogLine("info", SAID, datetime.now(UTC), fields)]
    spans = [SpanLine("a" * 32, "b" * 16, None, SAID, "internal", "ok", 1, 2, attributes=fields)]
    own = AttemptSpan(1, 2, fields)

    plain, noted, bare = lesser_records(record(data=fields, logs=lines, spans=spans, own_span=own), 3, REFUSED)

    assert plain.data is not None
    assert plain.data.isascii()
    assert json.loads(plain.data) == {"said": SAID}
    assert json.loads(plain.logs[0].fields) == {"said": SAID}
    assert plain.logs[0].message == "caf\\u00e9 \\u4e2d \\ud83d\\ude00"
    assert plain.spans[0].attributes.isascii()
    assert plain.own_span is not None
    assert plain.own_span.attributes.isascii()
    (line,) = noted.logs
    assert line.message == "1 lines and 2 spans can't be kept: no such character: \\u4e2d \\0"
    assert line.attempt == 3
    assert (bare.logs, bare.spans, bare.own_span, bare.data) == ((), (), None, plain.data)


def test_a_record_without_lines_has_no_lesser_one() -> None:
    assert list(lesser_records(record(data="1"), 1, REFUSED)) == []
