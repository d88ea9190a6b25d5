"""Hundreds of hostile files, each refused in a sentence by everything that reads it."""

import copy
import itertools
import json
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT, compose, shrunk
from tests.settings import hostile
from tests.settings.hostile import Canaries
from utils import checkpoint
from utils.checkpoint import load_model
from utils.evaluation.compared_runs import cached_run
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.runs.resume import settings_to_train
from utils.settings import identity
from utils.settings.build import build_model, build_without_numbers
from utils.settings.check import check
from utils.settings.command_line import Command
from utils.settings.composition import compose as composed
from utils.settings.composition import experiments
from utils.tasks.trained import Trained

SMALL = [*shrunk("digits_dct_ladder"), "model.latent_scales=[1]", "model.latent_width=[1]"]
SMALL += ["model.num_ch=2", "train.max_epochs=1", "dataset.data_module.batch_size=1300"]
SMALL += ["wandb.setup.mode=disabled"]


class Reader:
    """A run's folder of which everything may be hostile, and all that reads it."""

    def __init__(self, folder: Path):
        self.settings = compose("digits_dct_ladder", *SMALL)
        self.runs = folder / "runs"
        self.folder = self.runs / identity.run_name(self.settings)
        self.best, self.last = (self.folder / "checkpoints" / f"{n}.pth" for n in ("best", "last"))
        model = build_model(self.settings)
        state = {"model": model.state_dict(), "ema": None, "progress": {}}
        fixed = {"format": checkpoints.FORMAT, "schema": checkpoints.SCHEMA}
        self.good = {**fixed, "config": self.settings.plain, **state}
        self.model, self.commands = model, {}
        for task in ("task=test", "task=compare", "train.resume_id=hostile"):
            arguments = [task, f"runs_dir={self.runs}"]
            self.commands[task] = Command(composed(arguments), tuple(arguments))
        self.bytes = hostile.saved(self.good)

    def put(self, content: bytes, settings: bytes | None = None) -> None:
        """Into both checkpoints; config.yaml as well, else the good one. Nothing else stays."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "checkpoints").mkdir(parents=True)
        (self.folder / "run.json").write_text(json.dumps({"wandb_id": "hostile"}))
        for path in (self.best, self.last):
            path.write_bytes(content)
        config = settings or yaml.safe_dump(self.settings.plain).encode()
        (self.folder / "config.yaml").write_bytes(config)

    def load_model(self) -> None:
        load_model(self.folder)

    def test(self) -> None:
        Trained.load(str(self.folder), self.commands["task=test"], Processes())

    def compare(self) -> None:
        command, source = self.commands["task=compare"], str(self.folder)
        cached_run(source, command.task, str(self.runs), command.overrides)
        Trained.load(source, command, Processes())

    def resume(self) -> None:
        settings_to_train(self.commands["train.resume_id=hostile"], Processes())
        checkpoints.newest(self.last)

    def init_from(self) -> None:
        checkpoint.initialise(copy.deepcopy(self.model), self.best)


READERS = ("load_model", "test", "compare", "resume", "init_from")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder as `Reader` makes it."""
    return Reader(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def canaries(tmp_path_factory):
    """Watching while files are read."""
    found = Canaries(tmp_path_factory.mktemp("canaries"))
    yield found
    found.close()


def read(reader: Reader, canaries: Canaries, case: str, names: Sequence[str]) -> list[str]:
    """By these readers: what each said, or an empty text where it did not mind."""
    told = []
    for name in names:
        canaries.watching = True
        try:
            getattr(reader, name)()
            told.append("")
        except ValueError as error:
            told.append(str(error))
        except BaseException as error:
            raise AssertionError(f"{case}: {name} raised {error!r}") from error
        finally:
            canaries.watching = False
        assert "\n" not in told[-1] and len(told[-1]) < 2000, (case, name, told[-1])
        assert told[-1].isprintable() and hostile.SECRET not in told[-1], (case, name, told[-1])
        assert not told[-1] or told[-1].endswith((".", "?")), (case, name, told[-1])
    canaries.check()
    return told


OWN = ("estimators", "metrics", "trackers")  # groups of a file that nothing reads
HARMLESS = ("surrogate", "escape", "long", "nan")  # in a group with arguments of its own
ARCHIVES = ("with more behind it",)  # which a reader of archives passes over


def plain(settings: dict) -> bytes | None:
    """As config.yaml; None where YAML cannot say it."""
    try:
        return yaml.safe_dump(settings).encode()
    except (yaml.YAMLError, RecursionError, ValueError):
        return None


def read_settings(reader, canaries, kind: str, names: tuple[str, ...], every: int = 1) -> int:
    """Read every so manieth case of a kind; how many were refused by all that read them."""
    refused = 0
    cases = getattr(hostile, kind)
    cases = cases(reader.settings.plain if kind == "wrong_types" else canaries)
    for case, change in itertools.islice(cases, 0, None, every):
        settings = copy.deepcopy(reader.settings.plain)
        change(settings)
        config = plain(settings)
        reader.put(hostile.saved({**reader.good, "config": settings}), config)
        told = read(reader, canaries, case, [n for n in names if config or n != "resume"])
        refused += all(told)
        if kind in ("code", "interpolated"):  # the command brings its own task
            own = (*OWN, "task") if kind == "code" else ()
            assert all(told) or case.endswith(own), (case, told)
            assert told[0] or case.endswith(OWN)
        elif kind == "endless":
            lists = case.startswith("tuple") and told[0]  # which is what YAML makes of it
            assert all(told) or lists or case.startswith(HARMLESS), (case, told)
    return refused


def read_files(reader, canaries, names: tuple[str, ...]) -> int:
    """Read the odd tensors and files; how many were refused."""
    contents = hostile.odd_contents(reader.good, canaries)
    cases = itertools.chain(
        ((case, hostile.saved(content)) for case, content in contents),
        hostile.odd_files(reader.good),
    )
    refused = 0
    for case, data in cases:
        reader.put(data)
        told = read(reader, canaries, case, names)
        assert told[0] or case in ARCHIVES, case
        refused += bool(told[0])
    return refused


def test_the_good_one_is_read(reader, canaries):
    reader.put(reader.bytes)
    assert read(reader, canaries, "good", READERS) == len(READERS) * [""]


@pytest.mark.parametrize("kind", ["code", "interpolated", "endless", "wrong_types"])
def test_settings_in_files_are_data(reader, canaries, kind):
    """A sample of what the slow test reads, by two readers."""
    assert read_settings(reader, canaries, kind, ("load_model", "resume"), 13) > 3


def test_odd_tensors_and_files_are_refused(reader, canaries):
    assert read_files(reader, canaries, ("load_model",)) > 100


@pytest.mark.parametrize("case", hostile.YAMLS)
def test_a_config_that_is_none_is_refused(reader, canaries, case):
    reader.put(reader.bytes, hostile.YAMLS[case] or b" ")
    assert all(read(reader, canaries, case, ("resume",)))


@pytest.mark.parametrize("experiment", experiments())
def test_a_model_without_numbers_has_its_sizes(experiment):
    settings = compose(experiment, *shrunk(experiment))
    found = [build(settings).state_dict() for build in (build_model, build_without_numbers)]
    described = [{k: (v.shape, v.dtype) for k, v in one.items()} for one in found]
    assert described[0] == described[1] and all(v.is_meta for v in found[1].values())


@contextmanager
def address_space(more: int):
    """This process may take so many bytes more; what asks for them fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process by Linux's means")
def test_sizes_are_compared_before_memory_is_taken(reader, canaries, tmp_path):
    """What would take gigabytes fails for want of them, or is refused for what it is."""
    wide = compose("digits_dct_ladder", *SMALL, "model.num_ch=4096").plain
    large = {**reader.good, "config": wide}
    content = {**reader.good, "more": torch.zeros(50_000_000)}
    bomb = hostile.rewritten(hostile.saved(content), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 3_000_000
    content["model"] = {**reader.good["model"], "encoder.stem.bias": torch.zeros(1).expand(10**10)}
    content = {**content, "more": None}
    for data, reason in (
        (hostile.saved(large), "holds another architecture"),
        (hostile.saved(content), "holds another architecture"),
        (bomb, "unpacks to more than its size"),
    ):
        reader.put(data, yaml.safe_dump(wide).encode())
        with address_space(150_000_000):
            told = read(reader, canaries, reason, ("load_model", "test"))
        assert all(reason in sentence for sentence in told), told
    run = reader.runs / identity.run_name(check({**wide, "runs_dir": str(reader.runs)}))
    shutil.copytree(reader.folder, run)
    try:
        (run / "checkpoints" / "last.pth").write_bytes(hostile.saved(large))
        with address_space(150_000_000):
            (told,) = read(reader, canaries, "a run's widths", ("resume",))
        assert "holds another architecture" in told
    finally:
        shutil.rmtree(run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "least"), [("code", 130), ("interpolated", 85), ("endless", 40), ("wrong_types", 200)]
)
def test_every_setting_by_every_reader(reader, canaries, kind, least):
    refused = read_settings(reader, canaries, kind, READERS[:-1])
    print(kind, refused, "refused")
    assert refused >= least


@pytest.mark.slow
def test_every_file_by_every_reader(reader, canaries):
    assert read_files(reader, canaries, READERS) > 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_by_the_command(tmp_path):
    """Each case by one task in turn, as a user types it: status 1, one sentence, no trace."""
    script = [sys.executable, "-m", "tests.settings.hostile_commands", str(tmp_path)]
    found = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=7200)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    refused, accepted = map(int, found.stdout.split()[-2:])
    assert refused > 300 and accepted < 60
