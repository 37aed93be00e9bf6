"""The queue of embeddings, against a deque."""

import copy
from collections import deque
from functools import partial

import pytest
import torch
from devices import on_any_device
from support import one_graph, pair, rejects, unhooked

from lossbook.methods.contrastive import info_nce
from lossbook.methods.queues import EmbeddingQueue


def pushed(queue, embeddings, labels=None):
    queue.push(embeddings, labels)
    return queue


@pytest.mark.parametrize("size", [1, 5, 6, 7, 24, 100])
@pytest.mark.parametrize("labelled", [False, True])
def test_is_a_deque(size, labelled):
    queue, expected = EmbeddingQueue(size, 3, labelled=labelled, dtype=torch.float64), deque(maxlen=size)
    draw = torch.Generator().manual_seed(0)
    for n in (4, 3, 1, 6, 30, 2):
        embeddings = torch.randn(n, 3, generator=draw, dtype=torch.float64)
        labels = torch.randint(9, (n,), generator=draw, dtype=torch.int32)
        pushed(queue, embeddings, labels if labelled else None)
        expected.extend(zip(embeddings, labels, strict=True))
        assert len(queue) == len(expected) and bool(queue)
        assert torch.equal(queue.entries, torch.stack([entry for entry, _ in expected]))
        if labelled:
            assert queue.labels.tolist() == [int(label) for _, label in expected] and queue.labels.dtype == torch.int64
    assert queue.entries.untyped_storage().nbytes() == queue.entries.nbytes


def test_an_empty_queue_has_no_negatives():
    x, y = pair()
    queue = EmbeddingQueue(16, x.shape[1], dtype=torch.float64)
    torch.testing.assert_close(info_nce(x, y, negatives=queue.entries), info_nce(x, y), rtol=0, atol=0)


def test_a_push_does_not_disturb_a_loss_that_waits_for_its_backward_pass():
    x, y = pair()
    queue = pushed(EmbeddingQueue(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64))
    expected = torch.autograd.grad(info_nce(x, y, negatives=queue.entries.clone()), x)[0]
    loss = (x @ queue.entries.T).square().sum() * 0 + info_nce(x, y, negatives=queue.entries)
    queue.push(y)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)
    assert not queue.entries.requires_grad


@pytest.mark.parametrize("saved", [0, 4, 9])
@pytest.mark.parametrize("present", [0, 6, 9])
def test_its_state_is_saved(saved, present, tmp_path):
    queue, other = (EmbeddingQueue(9, 2, labelled=True) for _ in range(2))
    for each, n in ((queue, saved), (other, present)):
        if n:
            each.push(torch.randn(n, 2), torch.arange(n))
    torch.save(torch.nn.ModuleDict({"queue": queue}).state_dict(), tmp_path / "state.pt")
    torch.nn.ModuleDict({"queue": other}).load_state_dict(torch.load(tmp_path / "state.pt"))
    more = torch.randn(3, 2)
    for each in (queue, other):
        each.push(more, torch.arange(3))
    assert torch.equal(queue.entries, other.entries) and torch.equal(queue.labels, other.labels)
    assert not list(queue.parameters())


def test_a_state_that_does_not_fit_is_refused():
    state = pushed(EmbeddingQueue(4, 2), torch.randn(4, 2)).state_dict()
    for queue in (EmbeddingQueue(3, 2), EmbeddingQueue(4, 3)):
        with pytest.raises(RuntimeError, match="size mismatch for entries"):
            queue.load_state_dict(state)


def test_keeps_its_dtype_and_moves():
    queue = pushed(EmbeddingQueue(4, 2), torch.ones(2, 2, dtype=torch.bfloat16))
    assert queue.entries.dtype == torch.float32
    queue = pushed(copy.deepcopy(queue).double(), torch.ones(3, 2))
    assert queue.entries.dtype == torch.float64 and len(queue) == 4
    assert queue.to("meta").entries.device.type == "meta"
    assert repr(queue) == "EmbeddingQueue(4, 2, labelled=False)"


def test_in_one_graph():
    # The push inside, the entries as an argument, whose number may change.
    module = unhooked("lossbook.methods.queues")
    loss = unhooked("lossbook.methods.contrastive.infonce").info_nce
    queue, expected = module.EmbeddingQueue(6, 5, dtype=torch.float64), deque(maxlen=6)
    compiled = one_graph(lambda x, y, entries: loss(x, y, negatives=entries), backward=True)
    push = one_graph(queue.push)
    for seed in range(6):
        x, y = pair(3, 5, seed=seed)
        torch.testing.assert_close(compiled(x, y, queue.entries), info_nce(x, y, negatives=queue.entries))
        push(y)
        expected.extend(y.detach())
        assert torch.equal(queue.entries, torch.stack(list(expected)))


def test_what_does_not_fit_is_refused():
    for settings, name in (((0, 2), "size"), ((2, 1.5), "width")):
        rejects(EmbeddingQueue, *settings, names=name)
    rejects(EmbeddingQueue, 2, 2, dtype=torch.int64, names="dtype")
    queue, labelled = EmbeddingQueue(4, 2), EmbeddingQueue(4, 2, labelled=True)
    for wrong in (torch.ones(3), torch.ones(3, 3), torch.ones(0, 2), torch.ones(3, 2).long(), None):
        rejects(queue.push, wrong, names="embeddings")
    rejects(queue.push, torch.ones(3, 2, device="meta"), names="embeddings")
    rejects(queue.push, torch.ones(3, 2), torch.arange(3), names="labels")
    for wrong in (None, torch.arange(2), torch.ones(3)):
        rejects(labelled.push, torch.ones(3, 2), wrong, names="labels")


def entries_after(queue, *batch):
    queue.push(*batch)
    return queue.entries, queue.labels


test_on_any_device = on_any_device(
    partial(entries_after, EmbeddingQueue(3, 2), torch.ones(4, 2)),
    partial(entries_after, EmbeddingQueue(3, 2, labelled=True), torch.ones(2, 2), torch.zeros(2, dtype=torch.int32)),
)
