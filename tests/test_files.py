"""Files and folders that are whole or not there; kills in processes: tests/faults."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sparta_bench.files import clear_leftovers, remove_folder, whole_file, whole_folder, write_json


def begun(folder: Path, name: str, *inside: str) -> Path:
    """What a killed process left that was writing `name`."""
    place = folder / f".{name}.abc_12.tmp"
    place.mkdir()
    for one in inside:
        (place / one).mkdir()
        (place / one / "file").write_text(one)
    return place


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "result.json"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and not list(tmp_path.rglob("result.json"))
    assert names(tmp_path) == ["new folder/result.json"]
    with pytest.raises(LookupError), whole_file(path) as temporary:
        temporary.write_text("other")
        raise LookupError
    assert path.read_text() == "half" and len(list(path.parent.iterdir())) == 1


def test_leftovers_of_a_name_go_when_it_is_written_to(tmp_path: Path) -> None:
    begun(tmp_path, "a.json", "new")
    begun(tmp_path, "b.json", "new")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == [".b.json.abc_12.tmp/new/file", "a.json"]
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_somebody_is_writing_is_no_leftover(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.json") as mine:
        mine.write_text("mine")
        write_json(tmp_path / "a.json", "theirs")
        clear_leftovers(tmp_path)
    assert (tmp_path / "a.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_files_and_other_folders_are_no_leftovers(tmp_path: Path) -> None:
    (tmp_path / ".notes.1.tmp").write_text("mine")
    (tmp_path / ".cache.tmp").mkdir()
    (tmp_path / "a.1.tmp").mkdir()
    clear_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_whose_change_was_cut_off_gets_the_new_one(tmp_path: Path) -> None:
    begun(tmp_path, "out", "old", "new")  # between the two renames
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["out/file"] and (tmp_path / "out" / "file").read_text() == "new"
    begun(tmp_path, "out", "old")  # after them
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["out/file"] and (tmp_path / "out" / "file").read_text() == "new"
    begun(tmp_path, "out", "new")  # before them
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["out/file"]


def test_a_folder_that_cannot_come_into_place_gives_the_old_one_back(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "out") as temporary:
        temporary.rmdir()
    assert names(tmp_path) == ["out/a"]


def test_a_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
    remove_folder(tmp_path / "out")
    remove_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_refusal_names_the_file_that_was_asked_for(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(OSError) as caught, whole_file(path):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(OSError) as caught, whole_file(path) as temporary:
        temporary.read_text()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


def test_errors_of_other_kinds_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    assert caught.value.filename == str(tmp_path / "elsewhere")
    with pytest.raises(SafetensorError, match="no such key"), whole_file(tmp_path / "a"):
        raise SafetensorError("no such key")


def test_a_file_system_without_locks_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    begun(tmp_path, "a.json", "new")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == [".a.json.abc_12.tmp/new/file", "a.json"]
