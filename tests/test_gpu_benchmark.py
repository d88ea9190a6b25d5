"""The benchmark of a GPU, tried on a CPU: each part runs, and one that fails costs its own row."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from tests.conftest import ROOT


def test_a_part_that_fails_hangs_or_has_no_time_costs_its_own_row(tmp_path, monkeypatch, capsys):
    def child(seconds: float, *command: str) -> dict:
        popen = subprocess.Popen
        with monkeypatch.context() as patch:
            patch.setattr(
                "benchmarks.gpu.subprocess.Popen",
                lambda _, **options: popen([sys.executable, "-c", *command], **options),
            )
            return gpu.measured("rates", "cpu", str(tmp_path), seconds)

    assert child(20, "raise SystemExit('first\\nlast')") == {"error": "last"}
    assert child(20, "print('a line'); print('{\"ms\": 2.0}')") == {"ms": 2.0}
    assert child(0.2, "import time; time.sleep(60)") == {"error": "not done within 0 s"}
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--minutes", "0.1", "--out", str(file)])
    gpu.main()
    found = json.loads(file.read_text())
    assert list(found) == ["machine", *gpu.PARTS]
    assert {figures["error"] for figures in found.values()} == {"no time left"}
    assert capsys.readouterr().out.count("error") == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [[0, 4, 7], [2, 3, 6], [8, 9], [10, 12, 15]])
def test_every_part_runs(tmp_path, parts):
    file, names = tmp_path / "found.json", [list(gpu.PARTS)[index] for index in parts]
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(file)]
    subprocess.run([*command, "--only", *names], cwd=ROOT, check=True, timeout=280)
    found = json.loads(file.read_text())
    assert list(found) == ["machine", *names]
    for figures in found.values():
        assert figures and "error" not in figures and "not captured" not in figures
