"""Each line of a supervised process is JSON with its name, or for a terminal one that people read."""

from __future__ import annotations

import json

import pytest

from engine.observability.logs import for_people, with_process

LINE = b'{"at":"2026-11-28T09:10:11.123Z","level":"warning","from":"engine.x","event":"it fails","shard":0}'


def test_a_line_of_a_child_says_which_process_wrote_it() -> None:
    assert json.loads(with_process("worker-0", LINE)) == {"process": "worker-0"} | json.loads(LINE)


@pytest.mark.parametrize("line", [b"Traceback (most recent call last):", b'{"cut', b"", b"\xff\0", b"17"])
def test_what_is_no_json_object_becomes_the_event_of_one(line: bytes) -> None:
    found = json.loads(with_process("worker-0", line))
    assert (found["process"], found["event"]) == ("worker-0", line.decode(errors="replace"))
    assert found["at"].endswith("Z")
    assert for_people("worker-0", line) == b"worker-0 | " + line


def test_on_a_terminal_people_read_it() -> None:
    assert for_people("worker-0", LINE) == b"worker-0 | 09:10:11 warning it fails shard=0"
    failed = json.dumps(json.loads(LINE) | {"traceback": "a\nb"}).encode()
    assert for_people("worker-0", failed).endswith(b"it fails shard=0\na\nb")
