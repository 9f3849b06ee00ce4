"""Batches of images: decoded as seldom as the budget allows, and the same whatever it is."""

import numpy as np
import pytest
import torch

from smd_hf.data.batches import ImageBatches
from smd_hf.data.pixels import codec_for
from smd_hf.data.rows import ImageCollator
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.tiny import tiny_images, tiny_model, tiny_processor

CPU = torch.device("cpu")
FLOAT = 3 * 32 * 32 * 4  # bytes of an image's pixel values
UINT8 = 3 * 32 * 32


class Images:
    """Rows that count how often each is read."""

    def __init__(self, count=22):
        self.images = tiny_images(count, 32)
        self.reads = np.zeros(count, dtype=int)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads[index] += 1
        return {"image": self.images[index], "label": index % 4}


def make_batches(rows, cache_bytes=0, codec=True, **kwargs):
    processor = tiny_processor()
    collator = ImageCollator(processor, "image", "label")
    codec = codec_for(processor) if codec else None
    return ImageBatches(rows, collator, 4, cache_bytes=cache_bytes, codec=codec, **kwargs)


def children_of(model, directions):
    mutation = Mutation(model, make_decomposition("random", parameter_space(model), directions))
    return [
        Variant(str(child.index), lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in mutation.children(0, 0.2)
    ]


@pytest.mark.parametrize("population", [1, 6])
@pytest.mark.parametrize("images_cached, reads", [(22, 1), (14, 3), (0, 3)])
def test_each_image_is_decoded_once_a_generation_and_once_a_run_where_it_is_kept(population, images_cached, reads):
    rows = Images()
    batches = make_batches(rows, cache_bytes=images_cached * (UINT8 + 8))
    model = tiny_model("resnet")
    variants, evaluator = children_of(model, population), Evaluator(model, CPU)
    for generation in range(3):
        evaluator.score(variants, batches)
        assert batches.labels.tolist() == [index % 4 for index in range(22)]
        assert rows.reads.max() == (1 if reads == 1 else generation + 1)
    # What does not all fit is still kept in part.
    assert rows.reads.min() == (3 if images_cached == 0 else 1)


def test_scores_are_the_same_bytes_whatever_the_budget_and_the_way_of_keeping():
    model = tiny_model("resnet")
    variants, results = children_of(model, 4), []
    for cache_bytes in (0, 9 * UINT8, 14 * UINT8, 30 * UINT8, 10**9):
        for codec in (True, False):
            batches = make_batches(Images(), cache_bytes, codec)
            for _ in range(2):
                scores = Evaluator(model, CPU).score(variants, batches, keep_logits=True)
                results.append(np.stack([score.logits for score in scores]).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("codec", [True, False])
@pytest.mark.parametrize("images", [9, 17, 40, 60, 100, 200])
def test_the_budget_is_kept_to(codec, images):
    """Kept batches, the group in use and the next one are never more than the budget, or two batches where that is less."""
    rows, size = Images(202), (UINT8 if codec else FLOAT) + 8
    budget = images * size
    batches = make_batches(rows, budget, codec)
    for _ in range(2):
        streamed = [0]
        for group in batches.groups():
            streamed.append(sum(batch.nbytes for batch in group if batch.number not in batches._kept))
            in_use = batches._kept_bytes + streamed[-1] + streamed[-2]
            assert in_use <= max(budget, batches._kept_bytes + 2 * 4 * size)
            assert batches._kept_bytes <= budget
        if images == 200:
            # Groups hold several batches, so that a child is put in less often than once a batch.
            assert max(streamed) >= 4 * 4 * size
    assert sum(batch.nbytes for batch in batches._kept.values()) == batches._kept_bytes


def test_batches_hold_the_images_in_their_order():
    batches = make_batches(Images(), indices=[5, 3, 9, 1, 2, 0, 8])
    assert len(batches) == 2 and batches.num_images == 7
    assert batches.labels.tolist() == [1, 3, 1, 1, 2, 0, 0]
    assert [len(batch) for batch in batches] == [4, 3]
    [[second]] = batches.groups([1])
    assert second.number == 1 and second.labels.tolist() == [2, 0, 0]
    assert second.inputs(CPU, torch.bfloat16)["pixel_values"].dtype == torch.bfloat16


def test_a_sample_takes_what_is_kept_and_no_more_than_is_left():
    rows = Images()
    batches = make_batches(rows, cache_bytes=23 * (UINT8 + 8))
    list(batches)
    sample = batches.head(10)
    assert [len(batch) for batch in sample] == [4, 4, 2] and sample.labels.tolist() == [0, 1, 2, 3] * 2 + [0, 1]
    assert rows.reads[:8].max() == 1 and rows.reads[8:10].tolist() == [2, 2]
    assert sample._kept_bytes <= batches.cache_bytes
    whole = batches.head(100)
    list(whole)
    assert whole.num_images == 22 and rows.reads[10:].max() == 1


def test_labels_of_another_process_need_no_reading():
    rows = Images(8)
    batches = make_batches(rows)
    batches.add_labels({1: np.array([7, 7, 7, 7])})
    assert batches.labels.tolist() == [0, 1, 2, 3, 7, 7, 7, 7]
    assert rows.reads.tolist() == [1] * 4 + [0] * 4


def test_worker_processes_decode_the_same():
    alone, with_workers = make_batches(Images()), make_batches(Images(), num_workers=2)
    for one, other in zip(alone, with_workers, strict=True):
        assert torch.equal(one.stored["pixel_values"], other.stored["pixel_values"]) and torch.equal(
            one.labels, other.labels
        )


def test_batches_kept_on_a_device_are_put_there_once():
    batches = make_batches(Images(), 10**9, device=torch.device("cpu"))
    first, again = list(batches), list(batches)
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert first[0].stored["pixel_values"].dtype == torch.uint8
