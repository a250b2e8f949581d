"""A call's command is what Redis reads: its keys and arguments are where their positions say."""

from __future__ import annotations

import hiredis
import msgspec

from engine.redemption.redeem import Redemption
from engine.store import keys
from engine.store.call import COLUMNS, SIGNATURE, Call, CallFrame


def parsed(command: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(command)
    words = reader.gets()
    assert isinstance(words, list)
    assert reader.gets() is False  # there is nothing behind it
    return words


def check(frame: CallFrame, version: int, epoch: int, records: int) -> None:
    call = Call(frame, epoch)
    names_of_shard = keys.of_every_script(frame.shard)
    own = keys.campaign(frame.shard, "Zoë"), keys.state(frame.shard, 7, 0)
    named = {name: call.key(name) for name in (*own, *names_of_shard[:1])}
    assert named == {name: call.key(name) for name in named}
    raws = {call.raw(data): data for data in (b"", b"\0\r\n$5", bytes(300))}
    for bucket in range(records):
        at = call.records_at(bucket)
        assert call.records_at(bucket) == at
        named[keys.idempotency_records(frame.shard, epoch, bucket)] = at
        named[keys.idempotency_records(frame.shard, epoch - 1, bucket)] = at + 1
    call.about.append("about")
    call.own_fields.append("ending")
    call.amount[1] = "500"

    function, library, count, *rest = parsed(call.command(version))
    names, arguments = rest[: int(count)], rest[int(count) :]
    assert (function, library) == (b"FCALL", Redemption.script.library.encode())
    assert names[: len(names_of_shard)] == [name.encode() for name in names_of_shard]
    assert all(names[at - 1] == name.encode() for name, at in named.items())
    assert len(names) == len(set(names)) == len(names_of_shard) + len(own) + 2 * records
    numbers = [frame.shard, version, epoch, keys.IDEMPOTENCY_WINDOW_S]
    assert arguments[:4] == [str(number).encode() for number in numbers]
    assert all(arguments[at - 1] == data for at, data in raws.items())
    assert len(arguments) == len(SIGNATURE) + len(raws)
    columns = zip((*COLUMNS, "ending"), msgspec.msgpack.decode(arguments[4]), strict=True)
    written = {"about": ["about"], "amount": {1: "500"}, "ending": ["ending"]}
    assert {name: column for name, column in columns if column} == written


def test_a_command_has_all_keys_and_arguments_where_the_call_says() -> None:
    frame = CallFrame(Redemption.script, 3)
    for version, epoch, records in ((1, 20_000, 0), (1, 20_000, 200), (2, 20_000, 1), (2, 20_001, 3)):
        check(frame, version, epoch, records)
