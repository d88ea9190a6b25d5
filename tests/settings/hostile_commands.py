"""The hostile files by the command itself, all in this process: python -m … FOLDER [EVERY]."""

import contextlib
import copy
import io
import itertools
import os
import runpy
import sys
from pathlib import Path

from tests.commands import COMMAND, environment
from tests.settings import hostile
from tests.settings.test_hostile import SMALL, Reader, plain


def cases(reader: Reader, canaries: hostile.Canaries, every: int):
    """(name, bytes of the checkpoints, config.yaml or None); of settings, every so manieth."""
    kinds = (hostile.code, hostile.interpolated, hostile.endless)
    changes = itertools.chain(*(kind(canaries) for kind in kinds))
    for name, change in itertools.islice(changes, 0, None, every):
        settings = copy.deepcopy(reader.settings.plain)
        change(settings)
        config = plain(settings)
        yield name, hostile.saved({**reader.good, "config": settings}), config
    for name, content in hostile.odd_contents(reader.good, canaries):
        yield name, hostile.saved(content), None
    for name, data in hostile.odd_files(reader.good):
        yield name, data, None
    for name, data in hostile.YAMLS.items():
        yield name, reader.bytes, data or b" "


def run(arguments: list[str]) -> tuple[int, str]:
    """The command's status, and all that it printed."""
    printed, sys.argv = io.StringIO(), [COMMAND[2], *arguments]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(COMMAND[2], run_name="__main__")
        except SystemExit as end:
            return end.code, printed.getvalue()
    return -1, printed.getvalue()


def main(folder: Path, every: int = 1) -> None:
    """Numbers of refused and accepted cases; AssertionError where one is neither."""
    reader, canaries = Reader(folder), hostile.Canaries(folder)
    os.environ.update(environment(folder))
    os.chdir(folder)
    source, counts = str(reader.folder), {True: 0, False: 0}
    few = ["task.estimators=[]", "task.report=false", f"runs_dir={reader.runs}"]
    commands = (
        ["task=test", f"checkpoint={source}", "task.estimators=[]", "task.num_images=4"],
        ["train.resume_id=hostile", *few],
        ["task=compare", f"runs=[{source},{source}]", "task.estimators=[]", "task.num_images=4"],
        ["experiment=digits_dct_ladder", *SMALL, *few, f"train.init_from={reader.best}"],
    )
    for index, (name, data, config) in enumerate(cases(reader, canaries, every)):
        reader.put(data, config)
        number = index % (3 if config else 4)  # train.init_from reads no settings
        number = 1 if data is reader.bytes else number
        command = [*commands[number], *([f"train.seed={index}"] if number == 3 else [])]
        canaries.watching = True
        status, printed = run(command)
        canaries.watching = False
        told = printed.strip().splitlines()[-1:]
        assert hostile.SECRET not in printed, (name, printed)
        if status == 1:
            assert len(told) == 1 and told[0].startswith("Error: "), (name, printed)
            assert "Traceback" not in printed, (name, printed)
        else:
            assert status == 0, (name, number, status, printed)
            print("accepted:", name, command[0], flush=True)
        canaries.check()
        counts[status == 1] += 1
    for path in folder.rglob("*"):
        assert not path.is_file() or hostile.SECRET.encode() not in path.read_bytes(), path
    print(counts[True], counts[False])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
