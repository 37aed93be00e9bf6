"""Data sets: what they are, that splits are disjoint and stay put, and what happens when a file is not right."""

import functools
import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest
import torch

from lossbook import lab
from lossbook.lab import data

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [("digits", (1078, 359, 360), (1, 8, 8)), ("fashion_mnist", (4000, 1000, 2000), (1, 28, 28))],
)
def test_splits(name, sizes, shape):
    sets = [lab.load(name, split=split) for split in SPLITS]
    pictures = set()
    for split, size in zip(sets, sizes, strict=True):
        assert len(split) == size == len(split.inputs)
        assert split.inputs.shape[1:] == shape and split.inputs.dtype == torch.float32
        assert split.inputs.min() >= 0 and split.inputs.max() <= 1
        counts = split.targets.bincount(minlength=10)
        assert counts.max() - counts.min() <= 6 and len(counts) == len(split.classes) == 10
        assert split.licence and split.source
        pictures |= {picture.numpy().tobytes() for picture in split.inputs}
    assert len(pictures) > 0.999 * sum(sizes)  # no picture in two splits, but for twins in the set itself


def test_splits_are_always_the_same():
    first, again = lab.load("digits"), lab.load("digits")
    assert torch.equal(first.inputs, again.inputs)
    digest = hashlib.sha256(first.targets.numpy().tobytes()).hexdigest()
    assert digest.startswith(DIGITS_DIGEST)


DIGITS_DIGEST = "dcbcedc22c9a"


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match="no data set 'fashion_mist', expected one of .*; did you mean 'fashion_mnist'"
    ):
        lab.load("fashion_mist")
    with pytest.raises(ValueError, match='split: expected "train", "validation" or "test", got \'dev\''):
        lab.load("digits", split="dev")


def test_a_damaged_or_missing_shipped_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHIPPED", tmp_path)
    with pytest.raises(lab.DataError, match=r"fashion_mnist.npz: cannot be read \(No such file or directory\)"):
        lab.load("fashion_mnist")
    (tmp_path / "fashion_mnist.npz").write_bytes(b"PK half a file")
    with pytest.raises(lab.DataError, match="fashion_mnist.npz: damaged"):
        lab.load("fashion_mnist")


# The whole set, fetched: a server of our own stands for the authors'.


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """Serves a made-up set with the layout of Fashion-MNIST; returns its folder and the cache's."""
    draw = np.random.default_rng(0)
    folder, cache = tmp_path / "origin", tmp_path / "cache"
    folder.mkdir()
    files = {}
    for part, size in (("train", 20_000), ("test", 50)):
        for what, array in (
            ("images", draw.integers(0, 256, (size, 4, 4))),
            ("targets", np.arange(size) % 10),
        ):
            content = idx(array)
            name = f"{part}-{what}.gz"
            (folder / name).write_bytes(gzip.compress(content, mtime=0))
            digests = hashlib.md5((folder / name).read_bytes()).hexdigest(), hashlib.sha256(content).hexdigest()
            files[f"{part}_{what}"] = (name, *digests)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(data, "FASHION_FILES", files)
    monkeypatch.setattr(data, "FASHION_FOLDERS", ())
    monkeypatch.setattr(data, "FASHION_ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("LOSSBOOK_DATA", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder, cache / "fashion_mnist"
    server.shutdown()
    server.server_close()


def test_the_whole_set_is_fetched_once_and_checked(origin, capfd):
    folder, cache = origin
    whole = lab.load("fashion_mnist", split="train", full=True)
    assert len(whole) == 10_000 and len(lab.load("fashion_mnist", split="validation", full=True)) == 10_000
    assert whole.inputs.shape[1:] == (1, 4, 4)
    assert "train-images.gz" in capfd.readouterr().err  # never silently
    for file in folder.iterdir():
        file.unlink()
    assert torch.equal(lab.load("fashion_mnist", split="train", full=True).inputs, whole.inputs)


def test_a_file_that_cannot_be_fetched_is_named(origin):
    folder, cache = origin
    (folder / "test-images.gz").unlink()
    with pytest.raises(lab.DataError, match=r"test-images.gz: could not be fetched from http://127.0.0.1.*by hand"):
        lab.load("fashion_mnist", split="test", full=True)
    assert not list(cache.glob("*"))


def test_a_file_with_the_wrong_checksum_is_not_kept(origin):
    folder, cache = origin
    (folder / "test-images.gz").write_bytes(b"something else")
    with pytest.raises(lab.DataError, match="could not be fetched"):
        lab.load("fashion_mnist", split="test", full=True)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"another file", mtime=0), "damaged"),
        (gzip.compress(b"12", mtime=0)[:15], "cannot be read"),
    ],
    ids=["no gzip", "another file", "half a file"],
)
def test_a_damaged_copy_of_the_system_is_named(origin, tmp_path, monkeypatch, content, message):
    (tmp_path / "test-images.gz").write_bytes(content)
    monkeypatch.setattr(data, "FASHION_FOLDERS", (tmp_path,))
    with pytest.raises(lab.DataError, match=f"test-images.gz: {message}"):
        lab.load("fashion_mnist", split="test", full=True)


def test_what_ships_is_within_its_bounds():
    shipped = [path for path in data.SHIPPED.iterdir() if path.suffix == ".npz"]
    assert {path.name for path in shipped} == set(data.SHA256)
    assert sum(path.stat().st_size for path in shipped) < 25e6
    licences = (data.SHIPPED / "LICENCES.md").read_text()
    assert all(path.name in licences for path in shipped)


def test_the_script_makes_a_stratified_subset(origin, tmp_path, monkeypatch):
    from lossbook.lab.data import make

    monkeypatch.setattr(make, "SHIPPED", tmp_path)
    monkeypatch.setattr(make, "SIZES", {"train": 500, "test": 20})
    make.fashion_mnist()
    with np.load(tmp_path / "fashion_mnist.npz") as arrays:
        assert np.bincount(arrays["train_targets"]).tolist() == [50] * 10
        assert arrays["test_images"].shape == (20, 4, 4)
