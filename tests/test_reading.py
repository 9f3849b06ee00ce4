"""Images are read by threads ahead of scoring: the same batches, in bounded memory, with errors and ends as before."""

import random
import threading
import time

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image

from smd_hf.data.image_checks import bad_images
from smd_hf.data.rows import ImageCollator
from smd_hf.errors import SMDError
from smd_hf.evaluation import reading
from smd_hf.evaluation.engine import Evaluator, Variant
from smd_hf.evaluation.images import ImageBatches
from smd_hf.evaluation.pixels import codec_for
from smd_hf.evaluation.reading import ReadAhead, seconds_in_the_way
from tests.tiny import tiny_images, tiny_model, tiny_processor
from tests.tiny_data import image_dataset, png

CPU = torch.device("cpu")
UINT8 = 3 * 32 * 32


class SlowImages:
    """Rows that take a while, which cannot be pickled, and that know how many are read at once and by whom."""

    def __init__(self, count=24, seconds=0.0):
        self.images = tiny_images(count, 32)
        self.seconds = seconds
        self.lock = threading.Lock()
        self.now = self.most = self.begun = 0
        self.threads = set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with self.lock:
            self.threads.add(threading.current_thread())
            self.begun += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return {"image": self.images[index], "label": index % 4}


def make_batches(rows, threads, cache_bytes=0, **kwargs):
    processor = tiny_processor()
    collator = ImageCollator(processor, "image", "label")
    kwargs = {"codec": codec_for(processor), "spare": threads} | kwargs
    return ImageBatches(rows, collator, 4, cache_bytes=cache_bytes, threads=threads, **kwargs)


def content(batches):
    return [
        (batch.number, batch.inputs(CPU, torch.float32)["pixel_values"].numpy().tobytes(), batch.labels.tolist())
        for batch in batches
    ]


@pytest.mark.parametrize("cache", [0, 9 * UINT8, 10**9])
def test_batches_are_the_same_whatever_the_number_of_threads(cache):
    for rows in (SlowImages(), image_dataset(24)):
        expected = content(make_batches(rows, 0))
        assert [number for number, _, _ in expected] == list(range(6))
        for threads in (1, 2, 5):
            batches = make_batches(rows, threads, cache)
            assert content(batches) == content(batches) == expected
            assert batches.labels.tolist() == [label for _, _, labels in expected for label in labels]


def test_by_default_several_threads_read_at_once_what_does_not_pickle(monkeypatch):
    monkeypatch.setattr(reading, "usable_cores", lambda: 4)
    rows = SlowImages(seconds=0.01)
    batches = ImageBatches(rows, ImageCollator(tiny_processor(), "image", "label"), 4)
    assert batches.threads == 4 and len(batches.labels) == 24
    assert 2 <= rows.most <= 4 and not any(thread.is_alive() for thread in rows.threads - {threading.main_thread()})


def test_images_are_read_while_others_are_scored():
    rows = SlowImages(32, seconds=0.01)
    batches = make_batches(rows, 2, 10**9)
    for begun, group in enumerate(batches.groups()):
        if begun == 0:
            assert len(group) == 1
            time.sleep(1.0)  # scoring
            read_meanwhile = rows.begun
    assert read_meanwhile == 32


def test_a_group_ends_where_images_are_still_being_read_but_groups_grow():
    batches = make_batches(SlowImages(64, seconds=0.01), 1, 10**9)
    sizes = [len(group) for group in batches.groups()]
    assert sizes[0] == 1 and sum(sizes) == 16 and len(sizes) <= 6
    assert all(size >= sum(sizes[:place]) for place, size in enumerate(sizes[:-1]))
    assert [len(group) for group in batches.groups()] == [16]
    eager = make_batches(SlowImages(64, seconds=0.01), 1, 10**9)
    assert len(list(eager.groups(eager=True))) > 8


@pytest.mark.parametrize("images", [0, 9, 40, 100])
def test_what_is_read_ahead_stays_within_the_budget(images):
    """Kept batches, the group in use, and what is read ahead: within the budget, or a batch for each thread beyond two."""
    rows, threads, size = SlowImages(120), 2, UINT8 + 8
    budget = images * size
    batches = make_batches(rows, threads, budget)
    given = 0
    for group in batches.groups():
        time.sleep(0.05)  # as much is read as may be
        given += sum(len(batch) for batch in group)
        in_use = sum(batch.nbytes for batch in group if batch.number not in batches._kept)
        ahead = (rows.begun - given) * size
        assert batches._kept_bytes + in_use + ahead <= max(budget, batches._kept_bytes + (2 + threads) * 4 * size)
    assert given == 120


def test_scores_are_the_same_bytes_whatever_is_read_when():
    model = tiny_model("resnet")
    parameters = dict(model.named_parameters())
    changes = [
        [(name, (None, tensor.detach() * factor)) for name, tensor in parameters.items()] for factor in (0.9, 1.1)
    ]
    variants = [Variant("parent"), *(Variant("child", lambda each=each: iter(each)) for each in changes)]
    found = set()
    for threads, cache in ((0, 0), (1, 10**9), (3, 10**9), (3, 20 * UINT8)):
        batches = make_batches(SlowImages(seconds=0.002), threads, cache)
        scores = Evaluator(model, CPU).score(variants, batches, keep_logits=True)
        found.add(np.stack([score.logits for score in scores]).tobytes())
    assert len(found) == 1


class Broken(SlowImages):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        return row | ({"image": b"no image"} if index in (9, 18) else {})


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_in_a_thread_is_the_one_of_before_and_the_first(threads):
    batches, seen = make_batches(Broken(), threads), []
    with pytest.raises(SMDError, match="An image cannot be read: cannot identify image file"):
        for batch in batches:
            seen.append(batch.number)
    assert seen == [0, 1]


def test_an_error_in_a_worker_process_is_one_paragraph():
    rows = [{"image": image, "label": 0} for image in tiny_images(8)]
    rows[5]["image"] = b"no image"
    with pytest.raises(SMDError) as told:
        list(make_batches(rows, 0, num_workers=1, prefetch_factor=1))
    assert str(told.value).startswith("An image cannot be read") and "\n" not in str(told.value)


def test_worker_processes_keep_their_arguments(monkeypatch):
    given = {}

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *args, **kwargs):
            given.update(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(reading, "DataLoader", Loader)
    rows = [{"image": image, "label": 1} for image in tiny_images(12)]
    assert content(make_batches(rows, 4, num_workers=2, prefetch_factor=3)) == content(make_batches(rows, 0))
    assert (given["num_workers"], given["prefetch_factor"]) == (2, 3)


def test_an_end_does_not_wait_for_what_is_read_ahead():
    rows = SlowImages(400, seconds=0.005)
    batches = make_batches(rows, 2)

    def told():
        if rows.begun > 20:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(batches.groups(on_read=told))
    assert time.monotonic() - start < 2 and rows.begun < 100
    begun = rows.begun
    time.sleep(0.1)
    assert rows.begun == begun and not any(thread.is_alive() for thread in rows.threads - {threading.main_thread()})


def test_a_thread_that_hangs_does_not_hold_up_an_end(monkeypatch):
    monkeypatch.setattr(reading, "JOIN_SECONDS", 0.1)
    free = threading.Event()
    ahead = ReadAhead(lambda item: free.wait(30) if item else item, [0, 1, 2], 3, window=3)
    assert next(ahead) == 0
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 1
    free.set()


class Augmented(SlowImages):
    """Rows as those of a training script: a random crop, drawn from one of the global generators."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def __getitem__(self, index):
        x = int(self.draw() * 8)
        return super().__getitem__(index) | {"image": self.images[index].crop((x, 0, 24 + x, 24))}


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: torch.rand(()).item()])
def test_rows_that_draw_random_numbers_are_read_in_order_so_that_a_run_can_be_repeated(draw, monkeypatch):
    told = []
    monkeypatch.setattr("smd_hf.evaluation.images.logger.warning_once", told.append)
    found = []
    for threads in (0, 4, 4):
        transformers.set_seed(3)
        batches = make_batches(Augmented(draw), threads)
        found.append([content(batches), content(batches)])
    assert found[0] == found[1] == found[2] and found[0][0] != found[0][1]
    assert "Random numbers are drawn where images are read" in told[0]


def test_threads_that_read_use_one_core_each_and_leave_torch_alone():
    script_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ahead = ReadAhead(lambda item: torch.get_num_threads(), range(4), 2)
        assert list(ahead) == [1] * 4 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(script_threads)


def test_while_the_caller_works_only_spare_threads_read():
    lock, now, most = threading.Lock(), [0], [0]

    def read(item):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return item

    ahead = ReadAhead(read, range(40), 4, spare=1, window=40)
    time.sleep(0.3)
    assert most[0] == 1
    assert list(ahead) == list(range(40)) and most[0] == 4


def test_the_seconds_that_reading_costs(monkeypatch):
    monkeypatch.setattr(reading, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    # Four cores are idle: all but the first batch is read meanwhile.
    assert seconds_in_the_way(80.0, 1.0, 100.0, 8, CPU) == 1.0
    assert seconds_in_the_way(80.0, 1.0, 10.0, 8, CPU) == 10.0
    assert seconds_in_the_way(80.0, 1.0, 10.0, 0, CPU) == 80.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert seconds_in_the_way(80.0, 1.0, 100.0, 8, CPU) == 10.0
    assert seconds_in_the_way(70.0, 1.0, 0.0, 8, torch.device("cuda")) == 10.0
    assert reading.spare_threads(CPU) == 1 and reading.spare_threads(torch.device("cuda")) == 7


def test_threads_agree_on_how_pixel_values_come_back(monkeypatch):
    processor = tiny_processor()
    for _ in range(20):
        codec = codec_for(processor)
        images = [Image.new("RGB", (32, 32), (value, value, value)) for value in range(0, 256, 8)]
        values = [processor(images=[image], return_tensors="pt")["pixel_values"] for image in images]
        compact = list(ReadAhead(codec.encode, values, 8))
        for each, value in zip(compact, values):
            assert each is None or torch.equal(codec.decode(each), value)


def test_the_check_of_images_uses_the_cores_and_finds_the_same(monkeypatch):
    monkeypatch.setattr("smd_hf.data.image_checks.default_threads", lambda: 4)
    rows = Broken(200, seconds=0.001)
    assert list(bad_images(rows, "image", progress=False)) == [9, 18] and rows.most >= 2
    files = [{"bytes": png(i) if i != 70 else b"x", "path": None} for i in range(100)]
    stored = Dataset.from_dict({"image": files}, features=datasets.Features({"image": datasets.Image()}))
    assert list(bad_images(stored, "image", progress=False)) == [70]
