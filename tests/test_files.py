import os
import signal
import subprocess
import sys

import pytest

from sami_pipeline import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_fails_half_way_leaves_the_earlier_one(tmp_path):
    place = tmp_path / "folder" / "table.json"
    files.write_text(place, "earlier")
    with pytest.raises(OSError, match="full"), files.whole_file(place) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert place.read_text() == "earlier"
    assert names(place.parent) == ["table.json"]


def test_a_folder_that_fails_half_way_leaves_the_earlier_one(tmp_path):
    place = tmp_path / "model"
    with files.whole_folder(place) as partial:
        (partial / "weights").write_text("earlier")
    with pytest.raises(OSError, match="full"), files.whole_folder(place) as partial:
        (partial / "weights").write_text("half")
        raise OSError("the disk is full")
    assert (place / "weights").read_text() == "earlier"
    assert names(tmp_path) == ["model"]


def test_a_new_folder_replaces_every_file_of_the_earlier_one(tmp_path):
    place = tmp_path / "model"
    for name in ("earlier", "later"):
        with files.whole_folder(place) as partial:
            (partial / name).write_text(name)
    assert names(place) == ["later"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, kind):
    place = tmp_path / "output"
    code = (
        "import os, signal, sys; from pathlib import Path; from sami_pipeline import files\n"
        f"with files.{kind}(Path(sys.argv[1])) as partial:\n"
        "    place = partial if partial.suffix and not partial.is_dir() else partial / 'part'\n"
        "    place.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(place)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path) if name.endswith(".partial")]
    if kind == "whole_file":
        files.write_text(place, "whole")
    else:
        with files.whole_folder(place) as partial:
            (partial / "part").write_text("whole")
    assert names(tmp_path) == ["output"]


def test_a_folder_is_on_the_disk_before_it_stands_under_its_name(tmp_path, monkeypatch):
    place, reached, fsync = tmp_path / "model", {}, os.fsync

    def seen(descriptor):
        reached[os.fstat(descriptor).st_ino] = place.exists()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    with files.whole_folder(place) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_text("weights")
    for path in (place, place / "inner", place / "inner" / "weights"):
        assert reached[path.stat().st_ino] is False, path
    assert reached[tmp_path.stat().st_ino] is True


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    place = tmp_path / "model"
    with files.whole_folder(place) as partial:
        (partial / "weights").write_text("earlier")
    place.rename(tmp_path / ".model.replaced")
    files.recover_folder(place)
    assert (place / "weights").read_text() == "earlier"
