"""Checkpoints load alone, without running anything, or say in one sentence why not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict

import pytest
import torch

from datasets import digits
from datasets.loaders import EvaluationBatches
from tests.conftest import ROOT, compose, shrunk
from tests.training.trainers import make_trainer
from utils import checkpoint
from utils.checkpoint import load_model
from utils.evaluation.bound import posterior_collapse
from utils.files import atomic_write, file_digest, verified_write
from utils.runs import checkpoints
from utils.settings import identity
from utils.settings.build import build_model
from utils.training.progress import Progress

EXPERIMENT = "digits_dct_ladder"


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_file_is_all_it_takes(saved):
    path, model = saved
    loaded, config = load_model(path)
    assert not loaded.training and config.model.num_ch == 16
    for name, value in loaded.state_dict().items():  # the average is what gets evaluated
        assert torch.equal(value, model.state_dict()[name] + 1)
    folder = path.parent.parent
    again, _ = load_model(folder)
    assert all(map(torch.equal, again.state_dict().values(), loaded.state_dict().values()))
    assert (
        checkpoint.output_folder(path, "runs") == checkpoint.output_folder(folder, "runs") == folder
    )
    assert load_model(path, ["model.is_k=7"])[1].model.is_k == 7
    assert b"planted-key" not in path.read_bytes()


def test_results_go_to_the_runs_folder_without_its_settings_too(saved, tmp_path):
    path, _ = saved
    run = path.parent.parent
    (run / "config.yaml").rename(run / "run.json")  # one of the two is enough
    assert checkpoint.output_folder(run, "runs") == run
    (tmp_path / "latest").symlink_to(run)  # the user's own link, where the checkpoint is read
    assert checkpoint.output_folder(tmp_path / "latest", "runs") == run
    (run / "run.json").unlink()
    assert checkpoint.output_folder(run, tmp_path) == tmp_path / "best"


def test_a_name_that_is_not_utf_8_is_one(saved):
    path, model = saved
    odd = path.with_name("a\udcff\x1b[2Jb.pth")
    shutil.copy(path, odd)
    loaded, _ = load_model(odd)
    assert all(
        torch.equal(value, model.state_dict()[name] + 1)
        for name, value in loaded.state_dict().items()
    )


def test_wrong_files_get_one_sentence(saved, tmp_path):
    path, _ = saved
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:5000])
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(3)}, other)
    tensor = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), tensor)
    newer = tmp_path / "newer.pth"
    torch.save({**torch.load(path, weights_only=True), "schema": 99}, newer)
    for source, complaint in (
        (tmp_path / "missing.pth", "is not a file"),
        (tmp_path, "is not a file"),
        (cut, "is damaged"),
        (text, "is damaged"),
        (other, "neither one of this project's nor a published one"),
        (tensor, "holds no weights"),
        (newer, "newer version of this project"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_model(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="another architecture"):
        load_model(path, ["model.num_ch=32"])


def test_nothing_in_a_file_is_run_unless_asked(tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "trace"
    torch.save({"format": checkpoints.FORMAT, "schema": 1, "x": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="more than tensors and plain containers"):
        load_model(path)
    assert not trace.exists()
    checkpoints.read(path, unsafe=True)
    assert trace.exists()


def test_code_that_its_settings_name_is_not_run_unless_named_here(saved, tmp_path):
    path, _ = saved
    content, trace = torch.load(path, weights_only=True), tmp_path / "trace"
    call = {"_target_": "os.system", "command": f"touch {trace}"}
    traversed = {**call, "_target_": "datasets.io.download.hashlib.os.system"}
    for key, places in (
        ("model.encoder._target_", {"encoder": call}),
        ("model.decoder._target_", {"decoder": traversed}),
        ("model.encoder.more.0._target_", {"encoder": {"more": [call]}}),
    ):
        settings = {**content["config"], "model": {**content["config"]["model"]}}
        for part, value in places.items():
            settings["model"][part] = {**settings["model"][part], **value}
        bad = tmp_path / "bad.pth"
        torch.save({**content, "config": settings}, bad)
        with pytest.raises(ValueError, match="names code outside this project") as caught:
            load_model(bad)
        told = str(caught.value)
        assert f"{key}=" in told and "which was not run" in told and "\n" not in told
    assert not trace.exists()
    own = {**content["config"]["dataset"], "_target_": "tests.few_digits.load"}
    torch.save({**content, "config": {**content["config"], "dataset": own}}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"add dataset._target_=tests\.few_digits\.load to the"):
        load_model(tmp_path / "own.pth")
    load_model(tmp_path / "own.pth", ["dataset._target_=tests.few_digits.load"])
    shutil.copy(tmp_path / "own.pth", path)
    (path.parent / "manifest.json").unlink()
    (path.parent.parent / "config.yaml").write_text("dataset: {_target_: tests.few_digits.load}\n")
    with pytest.raises(ValueError, match="names code outside this project"):
        load_model(path)  # what lies beside it came the same way


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, broken)
    assert path.read_bytes() == b"old"


def test_a_model_starts_from_anothers_weights(saved, tmp_path):
    path, model = saved
    settings = compose(EXPERIMENT, *shrunk(EXPERIMENT))
    fresh = build_model(settings)
    checkpoint.initialise(fresh, path)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name] + 1)  # the average
    wider = build_model(compose(EXPERIMENT, *shrunk(EXPERIMENT), "model.num_ch=32"))
    with pytest.raises(ValueError, match=r"train\.init_from=.*use the settings it was"):
        checkpoint.initialise(wider, path)
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"train\.init_from=.*is no checkpoint of a model"):
        checkpoint.initialise(fresh, other)
    with pytest.raises(ValueError, match=r"train\.init_from=.*is not a file"):
        checkpoint.initialise(fresh, tmp_path / "none.pth")


NELBO = 154.0955  # of the stored checkpoint on the digits' test set
SHAPE = ("num_ch", "latent_scales", "latent_width", "decoder.z_L_prior.T")
SHAPE += tuple(f"decoder.z_L_prior.model.{k}" for k in ("model_channels", "num_res_blocks"))
KEPT = [f"model.{key}" for key in (*SHAPE, "decoder.z_L_prior.model.num_heads")]
KEPT += ["train.ema_rate", "model.decoder.z_L_prior.t_sample"]


def test_a_checkpoint_of_every_schema_is_kept_and_loads(tmp_path):
    """Written by this project when the schema was new; weights, settings and state go on."""
    stored = ROOT / "tests" / "checkpoints"
    names = {f"schema_{number}.pth" for number in range(1, checkpoints.SCHEMA + 1)}
    assert {path.name for path in stored.iterdir()} == names, "store one of each new schema"
    model, settings = load_model(stored / "schema_1.pth")
    assert settings.name == "digits_dct_ladder" and settings.train.ema_rate == 0.99
    held_out = EvaluationBatches(digits.load().test, 16, 500)
    report = posterior_collapse(model, held_out, 0, 2, lambda images: None).report()
    assert report.nelbo == pytest.approx(NELBO, rel=1e-4)
    content = torch.load(stored / "schema_1.pth", weights_only=True)
    overrides = [f"{k}={v}" for k, v in identity.leaves(content["config"]) if k in KEPT]
    trainer = make_trainer(tmp_path, *overrides, "train.max_epochs=3")
    trainer.restore(content)
    assert (trainer.progress.epoch, trainer.progress.step) == (2, 26)
    trainer.fit()
    assert trainer.progress.step == 31


def step_state(step):
    """A state with one large tensor that its step determines."""
    generator = torch.Generator().manual_seed(step)
    weights = {"weight": torch.randn(100_000, generator=generator)}
    return {"model": weights, "ema": None, "progress": asdict(Progress(step=step))}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_file_gives_way_to_the_one_before(tmp_path, damage):
    path = tmp_path / "last.pth"
    assert checkpoints.newest(path) == ({}, None)
    for step in (1, 2, 3):
        checkpoints.save(path, {}, step_state(step))
    content, trouble = checkpoints.newest(path)
    assert content["progress"]["step"] == 3 and trouble is None
    recorded = json.loads((tmp_path / "manifest.json").read_text())["last"]
    assert [entry["step"] for entry in recorded] == [3, 2, 1]
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:middle], "flipped": flipped, "empty": b""}[damage])
    content, trouble = checkpoints.newest(path)
    assert content["progress"]["step"] == 2
    assert torch.equal(content["model"]["weight"], step_state(2)["model"]["weight"])
    if damage != "gone":
        assert "last.pth is damaged" in trouble and "from last.previous.pth" in trouble
        assert "\n" not in trouble
    checkpoints.previous(path).write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.newest(path)


def test_disks_without_hard_links_do(tmp_path, monkeypatch):
    def refused(*names):
        raise OSError("not supported")

    monkeypatch.setattr("os.link", refused)
    path = tmp_path / "last.pth"
    for step in (1, 2, 3):
        checkpoints.save(path, {}, step_state(step))
        assert checkpoints.newest(path)[0]["progress"]["step"] == step
    path.write_bytes(b"")
    assert checkpoints.newest(path)[0]["progress"]["step"] == 2


def test_files_without_a_record_are_taken_up(tmp_path):
    """Of a version that kept none, or fetched."""
    path = tmp_path / "last.pth"
    checkpoints.save(path, {}, step_state(1))
    (tmp_path / "manifest.json").unlink()
    assert checkpoints.newest(path)[0]["progress"]["step"] == 1
    checkpoints.save(path, {}, step_state(2))
    path.write_bytes(b"")
    assert checkpoints.newest(path)[0]["progress"]["step"] == 1
    lists = ('"text"', "3", "null", "[3]", "[{}]", '["text"]', '[{"sha256": 3}]', "[null]")
    texts = [f'{{"last": {listed}}}' for listed in lists]
    for text in ("{", "[]", "3", "null", "\udcff", 100_000 * "[", *texts):
        (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
        assert checkpoints.newest(path)[0]["progress"]["step"] == 1, text
    checkpoints.save(path, {}, step_state(3))
    assert checkpoints.newest(path)[0]["progress"]["step"] == 3


def test_what_comes_back_another_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoints.save(path, {}, step_state(1))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("utils.files.sha256", lambda path: "0" * 64)
    with pytest.raises(OSError, match="was not written as it should be"):
        verified_write(tmp_path / "other", lambda file: file.write(b"new"))
    with pytest.raises(OSError, match="was not written as it should be"):
        checkpoints.save(path, {}, step_state(2))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


# Imports take seconds: forks of one process save, and are killed at any moment of it.
KILLED = """
import os, random, signal, sys, time
import torch
from tests.runs.test_checkpoint import step_state
from utils.runs import checkpoints
from utils import checkpoint
torch.set_num_threads(1)
random.seed(0)
path, step = Path(sys.argv[1], "last.pth"), 1
for _ in range(200):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        while True:
            checkpoints.save(path, {}, step_state(step))
            os.write(writing, b".")
            step += 1
    os.close(writing)
    reported = step - 1 + len(os.read(reading, 1))
    time.sleep(random.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(reading, 1000):
        reported += len(part)
    os.close(reading)
    found, _ = checkpoints.newest(path)
    newest = found["progress"]["step"]
    assert torch.equal(found["model"]["weight"], step_state(newest)["model"]["weight"])
    print(reported, newest)
    step = newest + 1
"""


@pytest.mark.slow
def test_killed_while_saving_a_good_one_is_always_there(tmp_path):
    """200 times, at any moment: what was reported as saved, or the next, is what is found."""
    script = [sys.executable, "-c", KILLED, str(tmp_path)]
    found = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    kills = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    assert len(kills) == 200
    assert {newest - reported for reported, newest in kills} <= {0, 1}


def test_a_file_that_a_run_replaces_is_read_with_its_own_digest(saved, monkeypatch):
    path, _ = saved
    wanted, read = checkpoint.content, []

    def replaced_meanwhile(file):
        found = wanted(file)
        if not read:
            checkpoints.save(path, found["config"], {**found, "wandb_id": "newer"})
        read.append(file)
        return found

    monkeypatch.setattr(checkpoint, "content", replaced_meanwhile)
    content, digest = checkpoint.content_and_digest(path)
    assert len(read) == 2 and content["wandb_id"] == "newer" and digest == file_digest(path)


@pytest.mark.parametrize("config", [None, "text", {"train": None}, {"train": [1]}])
def test_no_run_goes_on_from_a_file_without_settings(tmp_path, config):
    path = tmp_path / "last.pth"
    checkpoints.save(path, config, step_state(1))
    with pytest.raises(ValueError, match="it holds no settings"):
        checkpoints.newest(path)


def test_a_pickle_that_grows_by_its_own_calls_is_refused_before_they_are_made(tmp_path):
    """Each call of hex_codec doubles its bytes: thirty would make a hundred gigabytes."""
    calls = b"c_codecs\nencode\nq\x00(X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1tRq\x01"
    calls += 30 * b"0h\x00(h\x01X\x09\x00\x00\x00hex_codectRq\x01"
    path = with_pickle(tmp_path / "growing.pth", calls)
    with pytest.raises(ValueError, match="holds more than tensors and plain containers"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    "named", [b"cbuiltins\nset\n", b"ctorch\nSize\n", b"ccollections\nCounter\n"]
)
def test_a_pickle_that_copies_a_long_list_many_times_is_refused(tmp_path, named):
    """Six bytes for each copy of 50,000 numbers."""
    numbers = b"(" + 50_000 * b"K\x07" + b"tq\x01"
    few = b"]q\x05(" + numbers + named + b"q\x02h\x01\x85R" + b"e"
    assert checkpoints.read(with_pickle(tmp_path / "few.pth", b"}X\x01\x00\x00\x00a" + few + b"s"))
    again = b"(" + 200 * b"h\x02h\x01\x85R" + b"t"
    many = with_pickle(tmp_path / "many.pth", numbers + named + b"q\x02" + again)
    with pytest.raises(ValueError, match="it copies what it holds many times over"):
        checkpoints.read(many)


def with_pickle(path, opcodes):
    """A checkpoint's archive with a pickle of these opcodes."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, b"\x80\x02" + opcodes + b"." if "data.pkl" in name else data)
    return path


@pytest.mark.parametrize("progress", [[1], "x", {"epoch": "x"}, {"epoch": None}, {"best": [1]}])
def test_a_files_progress_is_numbers(tmp_path, progress):
    path = tmp_path / "odd.pth"
    torch.save({"format": checkpoints.FORMAT, "schema": 1, "progress": progress}, path)
    with pytest.raises(ValueError, match=r"is damaged .its progress is"):
        load_model(path)


@pytest.mark.parametrize("name", ["", "run", "gone.pth", "pretrained/digits_dct_lader"])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, name):
    """The parent folder of runs, a run without a checkpoint, a slip of the pen."""
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"is not a file: name a .pth file or a run's folder"):
        checkpoint.content_and_digest(checkpoint.locate(tmp_path / name))


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ValueError, match="is not a file"):
        checkpoint.content_and_digest(tmp_path / "pipe.pth")


def test_an_endless_value_is_told_by_its_type(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    path = tmp_path / "endless.pth"
    torch.save({"format": checkpoints.FORMAT, "schema": value}, path)
    with pytest.raises(ValueError, match="its schema is a list"):
        checkpoints.newest(path)
