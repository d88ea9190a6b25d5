"""Hostile files: settings, tensors and archives as somebody else might send them.

Everything is determined by the order below, so that a case has the same name in every run. Settings
are changed in place; what they would do leaves a trace if it happens: see `Canaries`.
"""

import copy
import io
import itertools
import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

SECRET = "planted-in-the-environment"
BAIT = "planted_module"  # is never imported
GROUPS = ("", "dataset", "dataset.data_module", "model", "model.encoder", "model.decoder")
GROUPS += ("model.decoder.z_L_prior", "model.decoder.z_L_prior.model", "train", "train.optimizer")
GROUPS += ("train.scheduler", "wandb", "wandb.setup", "task", "estimators", "metrics", "trackers")
Change = Callable[[dict], object]


class Canaries:
    """What nothing out of a file may touch: a folder, a variable, a port, imports, processes.

    Python's audit events tell of every call; `fired` has what happened while `watching`.
    """

    EVENTS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
    EVENTS += ("pty.spawn", "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "socket.bind")
    EVENTS += ("shutil.rmtree", "shutil.copyfile", "shutil.move", "code.__new__", "webbrowser.open")
    OWN = (("ctypes.dlopen", None), ("subprocess.Popen", "git"))  # of the command itself
    PATHS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.symlink")

    def __init__(self, folder: Path):
        self.folder, self.fired, self.watching = folder / "canary", [], False
        self.folder.mkdir()
        (self.folder / "kept").write_text("kept")
        (self.folder / f"{BAIT}.py").write_text("raise SystemExit('imported')\n")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        sys.path.append(str(self.folder))
        os.environ["PLANTED"] = SECRET
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple) -> None:
        if not self.watching:
            return
        names = [os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, os.PathLike))]
        touched = event in self.PATHS and any(n.startswith(str(self.folder)) for n in names)
        imported = event == "import" and arguments[0] == BAIT
        own = (event, *arguments[:1]) in self.OWN
        if (event in self.EVENTS and not own) or touched or imported:
            self.fired.append((event, names))

    def check(self) -> None:
        """Nothing fired, nobody knocked, and the folder is as it was."""
        assert self.fired == [], self.fired
        try:
            self.listener.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("somebody connected")
        assert sorted(path.name for path in self.folder.iterdir()) == ["kept", f"{BAIT}.py"]
        assert (self.folder / "kept").read_text() == "kept"

    def close(self) -> None:
        """No longer watching; the audit hook itself stays."""
        self.watching = False
        self.listener.close()
        sys.path.remove(str(self.folder))
        del os.environ["PLANTED"]


def calls(canaries: Canaries) -> list[dict]:
    """Nodes that would do something, by modules and by what can be reached from them."""
    trace, kept = str(canaries.folder / "trace"), str(canaries.folder / "kept")
    touch = {"command": f"touch {trace}"}
    found = [
        {"_target_": "os.system", **touch},
        {"_target_": "posix.system", **touch},
        {"_target_": "os:system", **touch},
        {"_target_": "os.mkdir", "path": trace},
        {"_target_": "os.remove", "path": kept},
        {"_target_": "os.getenv", "key": "PLANTED"},
        {"_target_": "os.execv", "path": "/bin/touch", "argv": ["touch", trace]},
        {"_target_": "subprocess.run", "args": ["touch", trace]},
        {"_target_": "subprocess.Popen", "args": ["touch", trace]},
        {"_target_": "subprocess:check_output", "args": ["touch", trace]},
        {"_target_": "shutil.rmtree", "path": str(canaries.folder)},
        {"_target_": "shutil.copyfile", "src": kept, "dst": trace},
        {"_target_": "pathlib.Path.touch", "self": trace},
        {"_target_": "pathlib.Path.write_text", "self": trace, "data": "x"},
        {"_target_": "builtins.open", "file": trace, "mode": "w"},
        {"_target_": "builtins.exec", "_args_": [f"open({trace!r}, 'w')"]},
        {"_target_": "builtins.eval", "_args_": [f"open({trace!r}, 'w')"]},
        {"_target_": "builtins.__import__", "name": BAIT},
        {"_target_": "importlib.import_module", "name": BAIT},
        {"_target_": f"{BAIT}.anything"},
        {"_target_": "runpy.run_path", "path_name": str(canaries.folder / f"{BAIT}.py")},
        {"_target_": "pickle.load", "file": kept},
        {"_target_": "torch.load", "f": kept, "weights_only": False},
        {"_target_": "torch.save", "obj": 1, "f": trace},
        {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
        {"_target_": "socket.create_connection", "address": ["127.0.0.1", canaries.port]},
        {"_target_": "urllib.request.urlopen", "url": f"http://127.0.0.1:{canaries.port}"},
        {"_target_": "multiprocessing.Process", "target": "os.abort"},
        {"_target_": "ctypes.CDLL", "name": "libc.so.6"},
        {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.mkdir", "path": trace}},
        {"_target_": "hydra.utils.get_method", "path": "os.system"},
        {"_target_": "omegaconf.OmegaConf.create", "obj": "${oc.env:PLANTED}"},
        {"_target_": "functools.partial", "_args_": ["os.system"]},
        {"_target_": "utils.settings.parts.build", "node": {"_target_": "os.abort"}, "key": "x"},
    ]
    reached = ("datasets.image_folder.os.system", "datasets.io.download.hashlib.os.system")
    reached += (
        "utils.runs.folder.os.system",
        "torch.os.system",
        "model.ladder_vae.torch.os.system",
    )
    reached += ("torch.utils.cpp_extension.os.system", "utils.files:os.system")
    found += [{"_target_": target, **touch} for target in reached]
    found += [
        {"_target_": "utils.runs.folder.shutil.rmtree", "path": str(canaries.folder)},
        {"_target_": "datasets.io.cache.shutil.rmtree", "path": str(canaries.folder)},
        {"_target_": "utils.tracking.wandb_offline.subprocess.run", "args": ["touch", trace]},
        {"_target_": "torch.utils.cpp_extension.subprocess.run", "args": ["touch", trace]},
    ]
    return found


def texts(canaries: Canaries) -> list[str]:
    """Interpolations, escaped and nested, with resolvers that read or make something."""
    created = "${oc.create:{_target_: os.mkdir, path: " + str(canaries.folder / "trace") + "}}"
    found = [created, "${oc.env:PLANTED}", "${oc.env:NONE,${oc.env:PLANTED}}", "${runs_dir}"]
    found += ["${oc.decode:${oc.env:PLANTED}}", "${stem:${oc.env:PLANTED}}", "${hydra:runtime.cwd}"]
    found += ["x${name}y", "${", "${.", "${oc.select:wandb}", "${oc.dict.values:wandb}", "$${name}"]
    return [escape + text for text in found for escape in ("", "\\", "\\\\")]


def group_of(settings: dict, name: str) -> dict:
    """The group of that dotted name, made where there is none."""
    for part in filter(None, name.split(".")):
        if not isinstance(settings.get(part), dict):
            settings[part] = {}
        settings = settings[part]
    return settings


def ways(call: dict) -> dict[str, Change]:
    """The ways a node gets into a group."""
    return {
        "in its place": lambda group: (group.clear(), group.update(call)),
        "over it": lambda group: group.update(call),
        "partial": lambda group: group.update({**call, "_partial_": True}),
        "nested": lambda group: group.update(more=call),
        "deep": lambda group: group.update(a={"b": [{"c": [call]}]}),
        "list": lambda group: group.update(more=[1, call]),
        "arguments": lambda group: group.update(_args_=[call]),
        "recursive": lambda group: group.update(more=call, _recursive_=True, _convert_="all"),
        "for a value": lambda group: group.update(dict.fromkeys(list(group)[:1], call)),
        "for each value": lambda group: group.update(dict.fromkeys(list(group), call)),
    }


def code(canaries: Canaries) -> Iterator[tuple[str, Change]]:
    """(name, change of the settings): code in every group, every call and way in turn."""
    nodes = itertools.cycle(calls(canaries))
    for name in GROUPS:
        for way in ways({}):
            call = next(nodes)

            def change(settings: dict, name=name, way=way, call=call) -> None:
                ways(call)[way](group_of(settings, name))

            yield f"{call['_target_']} {way}, in {name or 'all'}", change


def interpolated(canaries: Canaries) -> Iterator[tuple[str, Change]]:
    """Texts in every group: as a value, an item, a key, a target."""
    found = itertools.cycle(texts(canaries))
    for name in GROUPS:
        for way in ("value", "item", "key", "target", "in its place"):
            text = next(found)

            def change(settings: dict, name=name, way=way, text=text) -> None:
                group = group_of(settings, name)
                first = next(iter(group), "more")
                new = {"value": {first: text}, "item": {"more": [{"x": [text]}]}, "key": {text: 1}}
                new |= {"target": {"_target_": text}}
                if way == "in its place":
                    above, _, key = name.rpartition(".")
                    group_of(settings, above)[key or "name"] = text
                else:
                    group.update(new[way])

            yield f"{text} as {way}, in {name or 'all'}", change


def endless(canaries: Canaries) -> Iterator[tuple[str, Change]]:
    """Few bytes that stand for very much, and what is no plain value."""
    laugh: list = []
    for _ in range(60):
        laugh = [laugh, laugh]
    itself: dict = {}
    itself["x"] = itself
    deep: dict = {}
    for _ in range(200):
        deep = {"x": deep}
    values = {"laughing": laugh, "deep": deep, "itself": itself, "digits": 10**5000}
    values |= {"bytes": b"x", "tuple": (1,), "set": {1}, "complex": 1j, "tensor": torch.ones(1)}
    values |= {"surrogate": "\udcff", "escape": "\x1b[2J", "long": "x" * 10**6, "nan": float("nan")}
    for name, group in itertools.product(values, ("", "model.encoder", "dataset", "wandb")):
        value = values[name]
        yield f"{name} in {group}", lambda s, g=group, v=value: group_of(s, g).update(more=v)
    for name, group in itertools.product(({"x": 1}.keys(), 1, None, 1.5, b"x"), ("", "dataset")):
        key = name if not isinstance(name, type({}.keys())) else ("a", "b")
        yield f"key {key!r} in {group}", lambda s, g=group, k=key: group_of(s, g).update({k: 1})


def wrong_types(settings: dict) -> Iterator[tuple[str, Change]]:
    """Every key with a value of another type, and every key and group missing."""
    others = itertools.cycle((None, "text", -1, [], {}, True, 10**30, [[1]], float("inf"), 0.5, ""))
    for path in paths(settings):
        *groups, key = path
        for other in (next(others), next(others)):

            def change(new: dict, groups=groups, key=key, other=other) -> None:
                for group in groups:
                    new = new[group]
                new[key] = copy.deepcopy(other)

            yield f"{'.'.join(path)}={other!r}", change

        def missing(new: dict, groups=groups, key=key) -> None:
            for group in groups:
                new = new[group]
            del new[key]

        yield f"without {'.'.join(path)}", missing


def paths(settings: dict, above: tuple = ()) -> Iterator[tuple]:
    """Of every key, however deep."""
    for key, value in settings.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


class Called:
    """Is unpickled by a call."""

    def __init__(self, function: Callable, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def odd_contents(good: dict, canaries: Canaries) -> Iterator[tuple[str, dict | object]]:
    """(name, content) of checkpoints that are not quite one."""
    trace = str(canaries.folder / "trace")
    name, value = next((k, v) for k, v in good["model"].items() if v.shape[2:] == (3, 3))

    def with_weight(weight: object) -> dict:
        return {**good, "ema": None, "model": {**good["model"], name: weight}}

    for kind in ("int8", "uint8", "int64", "bool", "float16", "bfloat16", "float64", "complex64"):
        yield f"weights in {kind}", with_weight(value.to(getattr(torch, kind)))
    for number in ("nan", "inf", "-inf"):
        spoiled = value.clone()
        spoiled.view(-1)[-1] = float(number)
        yield f"a weight that is {number}", with_weight(spoiled)
    yield "expanded", with_weight(torch.zeros(1).expand(value.shape))
    yield "expanded to gigabytes", with_weight(torch.zeros(1).expand(10**10))
    whole = torch.zeros(value.numel() + 1)
    yield "overlapping", with_weight(whole.as_strided(value.shape, (1, 1, 1, 1)))
    yield "shared", {**good, "ema": None, "model": _aliased(good["model"])}
    yield "sparse", with_weight(value.to_sparse())
    yield "sparse rows", with_weight(torch.eye(3).to_sparse_csr())
    yield "quantised", with_weight(torch.quantize_per_tensor(value, 0.1, 0, torch.qint8))
    yield "on no device", with_weight(value.to("meta"))
    yield "a parameter with state", with_weight(torch.nn.Parameter(value.expand(2, *value.shape)))
    yield "none for a weight", with_weight(None)
    yield "a list for a weight", with_weight([1.0])
    yield "another shape", with_weight(torch.zeros(3, 3))
    yield "empty", with_weight(torch.zeros(0))
    yield "a number for a name", {**good, "ema": None, "model": {**good["model"], 3: value}}
    long = {**good["model"], "\x1b[2J" + "x" * 10**5: value}
    yield "one too many", {**good, "ema": None, "model": long}
    fewer = {k: v for k, v in good["model"].items() if k != name}
    yield "one missing", {**good, "ema": None, "model": fewer}
    for key in ("format", "schema", "config", "model"):
        yield f"without {key}", {k: v for k, v in good.items() if k not in (key, "ema")}
        for odd in (None, "text", [], {}, True, -1, 10**30, {"x": {}}, "\x1b[2J"):
            yield f"{key} {odd!r}", {**good, "ema": None, key: odd}
    for odd in ("text", [], {}, True, {"x": 1}, {"module.x": torch.zeros(1)}):
        yield f"ema {odd!r}", {**good, "ema": odd}
    for odd in (None, 3, "text", [good], (), torch.zeros(2), {}, {"weights": torch.zeros(2)}):
        yield f"all of it {type(odd).__name__} {odd!s:.10}", odd
    for odd in (None, "text", [], {}, {"x": 1}, {3: value}, {"x": value}):
        yield f"published, {odd!r:.20}", {"model_state_dict": odd}
    yield "published, averaged oddly", {"model_state_dict": {"x": value}, "ema_model_state_dict": 3}
    for function, *arguments in (
        (os.system, f"touch {trace}"),
        (eval, f"open({trace!r}, 'w')"),
        (bytearray, 10**11),
        (torch.FloatTensor, 10**10),
        (torch.zeros, 10**10),
        (torch.load, trace),
        (getattr, "text", "upper"),
        (torch.UntypedStorage, 10**10),
        (torch.sparse_coo_tensor, [[0]], [1.0], [10**10]),
        (torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (10**10,), (1,), False),
    ):
        yield f"calls {function.__name__}", {**good, "more": Called(function, *arguments)}


def _aliased(weights: dict) -> dict:
    """The same names and shapes; two of them are one tensor."""
    by_shape: dict = {}
    for name, value in weights.items():
        by_shape.setdefault(value.shape, []).append(name)
    first, second = next(names for names in by_shape.values() if len(names) > 1)[:2]
    return {**weights, second: weights[first]}


def odd_files(good: dict) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of files that are no whole archive of torch.save."""
    whole = saved(good)
    yield "nothing", b""
    yield "a text", b"not a checkpoint\n" * 100
    yield "a script", b"#!/bin/sh\ntouch trace\n"
    yield "zeros", bytes(5000)
    yield "a number", b"80"
    for share in (1, 10, 50, 90, 99):
        yield f"the first {share} %", whole[: len(whole) * share // 100]
    yield "with more behind it", whole + bytes(100)
    yield "with more before it", b"#!/bin/sh\n" + whole
    yield "a signature alone", b"PK\x03\x04" + bytes(100)
    for protocol in (0, 2, 4, 5):
        yield f"a plain pickle {protocol}", pickle.dumps({"format": "x"}, protocol=protocol)
        yield f"a pickled call {protocol}", pickle.dumps(Called(os.getenv, "PLANTED"), protocol)
    yield "a legacy file cut short", saved(good, _use_new_zipfile_serialization=False)[:3000]
    unread = saved({"x": torch.zeros(7)}, _use_new_zipfile_serialization=False)
    keys = unread.rindex(b"\x80\x02]")
    unread = unread[:keys].replace(b"K\x07", b"J\xff\xff\xff\x7f") + b"\x80\x02]."
    yield "a legacy file that reads none of its giants", unread
    huge = saved({"x": torch.zeros(7)}, _use_new_zipfile_serialization=False)
    yield "a legacy file of an empty giant", huge.replace(b"K\x07", b"J\xff\xff\xff\x7f")
    yield "compressed", rewritten(whole, compression=zipfile.ZIP_DEFLATED)
    bomb = saved({**good, "more": torch.zeros(2_000_000)})
    yield "a bomb", rewritten(bomb, compression=zipfile.ZIP_DEFLATED)
    yield "its largest entry cut", rewritten(whole, lambda name, data: data[:8])
    yield "its pickle cut", rewritten(whole, lambda n, d: d[:99] if n.endswith(".pkl") else d)
    yield "no pickle", rewritten(whole, lambda n, d: None if n.endswith(".pkl") else d)
    yield "no tensors", rewritten(whole, lambda n, d: None if "/data/" in n else d)
    yield "a script's archive", rewritten(whole, more={"archive/constants.pkl": b"x"})
    yield "an entry outside", rewritten(whole, more={"../../outside": b"x", "/outside": b"x"})
    yield "another byte order", rewritten(whole, lambda n, d: b"?" if n.endswith("order") else d)


def saved(content: object, **how) -> bytes:
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def rewritten(
    archive: bytes,
    change: Callable[[str, bytes], bytes | None] = lambda name, data: data,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """An archive with other entries."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(file, "w", compression=compression) as new,
    ):
        entries = {name: change(name, old.read(name)) for name in old.namelist()}
        for name, data in {**entries, **(more or {})}.items():
            if data is not None:
                new.writestr(name, data)
    return file.getvalue()


YAMLS = {  # instead of a run's config.yaml
    "empty": b"",
    "a text": b"text",
    "a list": b"[1, 2]",
    "a number": b"3",
    "not closed": b"name: [1",
    "tabs": b"a:\n\t- b: c",
    "not UTF-8": b"name: \xff\xfe",
    "a call": b"name: !!python/object/apply:os.system ['touch trace']",
    "an object": b"!!python/object:os.system {}",
    "a module": b"name: !!python/module:os",
    "in itself": b"model: &a {model: *a}",
    "laughing": b"a: &a [x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 121)),
    "deep": b"a: " + 5000 * b"[",
    "control characters": b"name: \x00\x07",
    "two documents": b"name: a\n---\nname: b\n",
    "keys twice": b"? [1, 2]\n: 3\n? {a: b}\n: 4\n",
    "escape": b'"\\e[2J": "\\e[2J"',
}
