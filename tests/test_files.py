"""Files are whole or absent, whatever ends the writing; what cannot be written is said."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from utils.errors import ConfigError
from utils.files import atomic_write, read_arrays, read_json, write_arrays, write_json
from utils.tracking.sinks import LocalSink

NOISE = np.random.default_rng(0).random(3000)  # 24 kB, which compress little


@pytest.fixture
def small_files():
    """As on a disk that is nearly full: no file may have more than 8 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(tmp_path, small_files):
    arrays = write_arrays(tmp_path / "a.npz", {"x": np.zeros(3)})
    record, sink = write_json(tmp_path / "a.json", {"x": 0}), LocalSink(tmp_path / "metrics.jsonl")
    sink.log({"x": 0.5}, epoch=1, step=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, write in {
        arrays: lambda: write_arrays(arrays, {"x": NOISE}),
        record: lambda: write_json(record, {"x": NOISE.tolist()}),
        sink.path: lambda: sink.log({f"x{i}": x for i, x in enumerate(NOISE)}, epoch=2, step=2),
    }.items():
        with pytest.raises(OSError, match=r"File too large.*: make room on that disk") as told:
            write()
        assert str(told.value).startswith(f"{path} could not be written (")
        if path != sink.path:
            assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [row["epoch"] for row in sink.rows()] == [1]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.ENOENT, "its folder was removed or renamed"),
        (errno.EROFS, "make that possible"),
    ],
)
def test_the_remedy_follows_from_the_error(tmp_path, number, remedy):
    def broken(file):
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=rf"a.json could not .* \({os.strerror(number)}\): {remedy}"):
        atomic_write(tmp_path / "a.json", broken)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from utils.report import plots
from utils.report.drawing import save
from utils.report.page import Section, write_page
random.seed(0)
folder, tables = Path(sys.argv[1]), 0
drawing = plots.draw_layers([1.0], [0.1], [(0.5, 0.4, 0.6)])
for _ in range(60):
    child = os.fork()
    if child == 0:
        while True:
            save(drawing, folder)
            for text in "ab":
                write_page(folder / "page.html", text, [text * 300_000], [Section(text)])
    time.sleep(random.uniform(0.0, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path, end in ((folder / "page.html", b"</html>"), (folder / "layers.png", b"IEND")):
        if path.exists():
            print(path.name, end in path.read_bytes()[-20:])
"""


@pytest.mark.slow
def test_killed_while_a_report_is_written_its_files_are_whole(tmp_path):
    """60 times, at any moment: the old page or the new one, and the same of its pictures."""
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    found = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) > 60 and set(lines) == {"page.html True", "layers.png True"}


def test_a_record_is_a_file_of_a_records_size(tmp_path, monkeypatch):
    """A pipe would be waited for, and a device never ends."""
    pipe, device = tmp_path / "pipe.json", tmp_path / "device.json"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    large = write_json(tmp_path / "large.json", {"x": "x" * 100})
    monkeypatch.setattr("utils.files.MAX_RECORD", 100)
    for path in (pipe, device, large):
        with pytest.raises(ConfigError, match=f"{path.name} is a pipe or a device, or larger"):
            read_json(path, "remove it")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", "remove it")


def test_arrays_of_a_damaged_file_are_one_error(tmp_path):
    """Whatever a reader makes of it: zlib's, a key's, a type's."""
    path = write_arrays(tmp_path / "a.npz", {"x": NOISE, "y": NOISE[:7]})
    whole = path.read_bytes()
    assert set(read_arrays(path)) == {"x", "y"}
    for place in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
        try:
            read_arrays(path)
        except ValueError as error:
            assert str(error)
    for content in (b"", b"PK", whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_arrays(path)
    with pytest.raises(ValueError, match="No such file"):
        read_arrays(tmp_path / "none.npz")


def test_arrays_take_no_more_memory_than_figures_can(tmp_path):
    path = write_arrays(tmp_path / "a.npz", {"x": np.zeros(10_000_000)})
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to far more than its size"):
        read_arrays(path)
