"""What both programs write to their logs."""

import json
import logging
import sys

from headwater.errors import HeadwaterError
from headwater.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("headwater.x", logging.INFO, "", 0, "went %s", ("well\n",), None)
    made.__dict__.update(extra)
    return made


def test_a_line_says_of_whom_it_speaks() -> None:
    subject = {"job": "j", "round": 2, "assignment": 7}
    line = TextFormatter().format(record(**subject))
    assert line.endswith(" info went well  job=j round=2 assignment=7")
    fields = json.loads(JsonFormatter(client="c1").format(record(**subject)))
    assert fields.items() >= {"message": "went well\n", "client": "c1", **subject}.items()


def test_a_defect_has_its_traceback() -> None:
    try:
        raise HeadwaterError("why")
    except HeadwaterError:
        made = record()
        made.exc_info = sys.exc_info()
    assert "HeadwaterError: why" in TextFormatter().format(made)
    assert "HeadwaterError: why" in json.loads(JsonFormatter().format(made))["traceback"]
