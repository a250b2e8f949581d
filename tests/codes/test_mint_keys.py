"""Mint keys: who may read them, how they rotate, and that no message shows one."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from engine.codes.codec import Codec
from engine.codes.formats import DEFAULT_FORMAT, normalise
from engine.codes.mint_keys import MintKeyError, create_file, from_text, load, rotate

if TYPE_CHECKING:
    from pathlib import Path

ONE = "11" * 32
TWO = "2b" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mint.keys"


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_the_last_line_is_the_current_key(path: Path) -> None:
    keys = load(written(path, f"# ours\n\n  k1\t{ONE}  # first\nspring_25 {TWO.upper()}"))
    assert keys.current == "spring_25"
    assert dict(keys.by_name) == {"k1": bytes.fromhex(ONE), "spring_25": bytes.fromhex(TWO)}


def test_keys_come_from_a_setting_as_well() -> None:
    keys = from_text(f" k1:{ONE}, k2:{TWO},")
    assert keys.current == "k2"
    assert dict(keys.by_name) == {"k1": bytes.fromhex(ONE), "k2": bytes.fromhex(TWO)}


def test_keys_cannot_be_changed_or_shown(path: Path) -> None:
    keys = load(written(path, f"k1 {ONE}\n"))
    with pytest.raises(AttributeError):
        keys.current = "k2"  # type: ignore[misc] # that it is refused is the test
    with pytest.raises(TypeError):
        keys.by_name["k2"] = b""  # type: ignore[index] # that it is refused is the test
    for shown in (repr(keys), str(keys)):
        assert ONE not in shown
        assert repr(bytes.fromhex(ONE)) not in shown
        assert "k1" in shown


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601, 0o777])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    written(path, f"k1 {ONE}\n", mode)
    for use in (load, rotate):
        with pytest.raises(MintKeyError, match=rf"can be read by others \(mode 0{mode:o}\): chmod 600"):
            use(path)
    assert path.read_text() == f"k1 {ONE}\n"


def test_a_read_only_secret_is_accepted(path: Path) -> None:
    assert load(written(path, f"k1 {ONE}\n", 0o400)).current == "k1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# none yet\n", "holds no key"),
        (f"k1 {ONE}\nk2\n", "line 2: expected a name"),
        (f"k1 {ONE}\nk2 {TWO[:-2]}\n", "line 2: expected a name"),
        (f"k1 {ONE}00\n", "line 1: expected a name"),
        (f"k1 {ONE} {TWO}\n", "line 1: expected a name"),
        (f"k1 {'zz' * 32}\n", "line 1: expected a name"),
        (f"k1:{ONE}\n", "line 1: expected a name"),
        (f"{'k' * 33} {ONE}\n", "line 1: expected a name"),
        (f"../k {ONE}\n", "line 1: expected a name"),
        (f"{ONE}\n", "line 1: expected a name"),
        (f"k1 {ONE}\nk1 {TWO}\n", "line 2: a name or a key occurs twice"),
        (f"k1 {ONE}\nk2 {ONE}\n", "line 2: a name or a key occurs twice"),
        (b"k1 \xff\xfe", "is not text"),
        (f"k1 {ONE}\x00\n", "line 1: expected a name"),
        ("#" * 70_000, "larger than"),
    ],
)
def test_a_malformed_file_is_refused_without_showing_it(path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(MintKeyError, match=message) as caught:
        load(written(path, text))
    assert ONE[:8] not in str(caught.value)
    assert TWO[:8] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        (" , ", "holds no key"),
        ("k1", "entry 1: expected a name"),
        (f"k1={ONE}", "entry 1: expected a name"),
        (f"k1:{ONE},k2:{TWO}0", "entry 2: expected a name"),
        (f"k1:{ONE},k1:{TWO}", "entry 2: a name or a key occurs twice"),
        (ONE, "entry 1: expected a name"),
    ],
)
def test_a_malformed_setting_is_refused_without_showing_it(text: str, message: str) -> None:
    with pytest.raises(MintKeyError, match=message) as caught:
        from_text(text)
    assert ONE[:8] not in str(caught.value)
    assert TWO[:8] not in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MintKeyError, match="No such file"):
        load(tmp_path / "none")
    with pytest.raises(MintKeyError, match="No such file"):
        rotate(tmp_path / "none")
    with pytest.raises(MintKeyError, match="is not a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(MintKeyError, match="is not a file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_a_new_file_is_private_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert create_file(path) == "k1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert rotate(path) == "k2"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_an_existing_file_is_never_overwritten(path: Path) -> None:
    written(path, "precious")
    with pytest.raises(MintKeyError, match="exists already"):
        create_file(path)
    assert path.read_text() == "precious"


def test_every_new_key_is_another_one(tmp_path: Path) -> None:
    created = []
    for name in ("a", "b"):
        create_file(tmp_path / name)
        created.append(load(tmp_path / name).by_name["k1"])
    assert len(set(created)) == 2
    assert all(len(key) == 32 for key in created)


def test_rotation_keeps_old_keys_decoding(path: Path) -> None:
    create_file(path)
    before = load(path)
    code = Codec(before.by_name).code(before.current, DEFAULT_FORMAT, "", 1, 2)
    assert rotate(path) == "k2"
    after = load(path)
    assert after.current == "k2"
    assert after.by_name["k1"] == before.by_name["k1"]
    symbols = normalise(code)
    assert symbols is not None
    assert Codec(after.by_name).decode(symbols, DEFAULT_FORMAT, "k1") == (1, 2)
    assert Codec(after.by_name).decode(symbols, DEFAULT_FORMAT, "k2") is None


def test_rotation_keeps_comments_and_numbers_on_from_the_highest(path: Path) -> None:
    written(path, f"# kept\nk7 {ONE}\nlast {TWO}")
    assert rotate(path) == "k8"
    assert path.read_text().startswith(f"# kept\nk7 {ONE}\nlast {TWO}\nk8 ")
    assert load(path).current == "k8"
    assert list(path.parent.iterdir()) == [path]


def test_rotating_through_a_link_replaces_the_file_behind_it(tmp_path: Path, path: Path) -> None:
    create_file(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert rotate(link) == "k2"
    assert link.is_symlink()
    assert load(path).current == "k2"


def test_rotations_at_the_same_time_lose_no_key(path: Path) -> None:
    create_file(path)
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(rotate, [path] * 24))
    assert sorted(names) == sorted(f"k{number}" for number in range(2, 26))
    assert list(load(path).by_name) == [f"k{number}" for number in range(1, 26)]


def test_a_rotation_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_file(path)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        rotate(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match="No space left"):
        create_file(path.with_name("other"))
    assert list(path.parent.iterdir()) == [path]
