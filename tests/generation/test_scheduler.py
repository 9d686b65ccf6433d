"""The scheduler: texts side by side, each as alone; cancelling, faults, limits, the end."""

import random
import threading
import time
from dataclasses import fields

import numpy as np
import pytest
from devices import tolerance

import mlx_gpt
from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.job import Job, merge
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.scheduler import Busy, Scheduler
from mlx_gpt.generation.slots import Slots
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.model.gpt import GPT

NETWORK = tolerance("float32 network")

SLOTS = 4


class Client:
    """Gathers what a scheduler delivers."""

    def __init__(self, run, **options):
        self.run, self.pieces, self.changed = run, {}, threading.Condition()
        self.deaths, self.order = [], []
        self.scheduler = Scheduler(
            run.model,
            **{"num_slots": SLOTS, "max_waiting": 100} | options,
            deliver=self.take,
            give_up=self.deaths.append,
        )
        self.scheduler.start()

    def take(self, pieces):
        with self.changed:
            for job, piece in pieces:
                self.pieces[job].append(piece)
                self.order.append(job)
            self.changed.notify_all()

    def job(self, prompt="ab", max_tokens=20, stop=(), stop_token_ids=(), seed=0, **options):
        sampling = Sampling(
            **{"temperature": 1.0, "top_p": 1.0}
            | {field.name: options.pop(field.name) for field in fields(Sampling) if field.name in options}
        )
        ids = self.run.tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else prompt
        writer = TextWriter(self.run.tokenizer, stop, stop_token_ids)
        return Job(prompt=ids, sampling=sampling, seed=seed, max_tokens=max_tokens, writer=writer, **options)

    def endless(self):
        return self.job(max_tokens=1_000_000, temperature=0)

    def submit(self, *jobs):
        self.pieces |= {job: [] for job in jobs}
        self.scheduler.submit(jobs)
        return jobs

    def wait(self, *jobs, seconds=60):
        """Each job's whole text, when all are at their end."""
        with self.changed:
            assert self.changed.wait_for(lambda: all(self.at_end(job) for job in jobs), seconds)
        return [merge(self.pieces[job]) for job in jobs]

    def at_end(self, job):
        return bool(self.pieces[job]) and bool(self.pieces[job][-1].finish_reason or self.pieces[job][-1].error)

    def write(self, *jobs):
        return self.wait(*self.submit(*jobs))

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture(scope="module")
def client(small_run):
    client = Client(small_run)
    yield client
    client.scheduler.close(0)


PENALTIES = [
    {"repetition_penalty": 1.6},
    {"frequency_penalty": 0.8, "presence_penalty": -0.5},
    {"min_p": 0.2, "logit_bias": {3: 2.5, 4: -100}},
]


def jobs_of_all_kinds(client, count, seed=0):
    draw = random.Random(seed)
    letters = client.run.tokenizer.characters
    return [
        client.job(
            "".join(draw.choices(letters, k=draw.choice([1, 3, 11, 12, 13, 30]))),
            max_tokens=draw.choice([1, 5, 17, 40]),
            seed=draw.randrange(1 << 40),
            temperature=draw.choice([0, 0.7, 1.3]),
            top_k=draw.choice([0, 3]),
            stop=draw.choice([(), ("ab",)]),
            stop_token_ids=draw.choice([(), (), (5,)]),
            **draw.choice([{}, {}, *PENALTIES]),
        )
        for _ in range(count)
    ]


def test_a_text_is_the_same_alone_and_among_others(client):
    together = client.write(*jobs_of_all_kinds(client, 24))
    for job, found in zip(jobs_of_all_kinds(client, 24), together, strict=True):
        assert client.write(job) == [found]


@pytest.mark.parametrize(
    "prompt, seed, options",
    [("ab", 1, {}), ("a", 9, {"top_k": 3}), ("abcde", 2, {"temperature": 0}), *(("ab", 1, p) for p in PENALTIES)],
)
def test_within_the_context_a_text_is_what_generate_writes(client, prompt, seed, options):
    length = client.run.config.model.block_size - len(prompt)
    [found] = client.write(client.job(prompt, length, seed=seed, **options))
    how = {"temperature": 1.0, "top_p": 1.0} | options
    assert found.text == "".join(mlx_gpt.generate(client.run, prompt, max_tokens=length, seed=seed, **how))


def test_texts_without_penalties_are_not_drawn_again(client, monkeypatch):
    monkeypatch.setattr("mlx_gpt.generation.slots.redraw", lambda *_: pytest.fail("drawn again"))
    assert client.write(client.job())[0].finish_reason == "length"


def test_past_the_context_the_penalties_count_all_tokens(client):
    """Also the tokens that the model no longer reads, and those of other texts in the batch are not counted."""
    how = {"repetition_penalty": 1.3, "frequency_penalty": 0.1}
    model, half = client.run.model, client.run.config.model.block_size // 2
    jobs = [client.job(prompt, 40, temperature=0, logit_bias={1: -100}, **how) for prompt in ("abcd", "efghabcdefg")]
    for job, found in zip(jobs, client.write(*jobs), strict=True):
        tokens, begin = list(job.prompt), 0
        for token in found.tokens:
            logits = np.array(model(mx.array([tokens[begin:]]))[0, -1])
            for id in set(tokens):
                logits[id] = logits[id] / 1.3 if logits[id] > 0 else logits[id] * 1.3
            for id in tokens[len(job.prompt) :]:
                logits[id] -= 0.1
            logits[1] = -np.inf
            assert token.id == np.argmax(logits)
            tokens.append(token.id)
            if len(tokens) - begin > 2 * half:
                begin = len(tokens) - half
        assert len(found.tokens) == 40


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(client):
    [whole] = client.write(client.job(max_tokens=40, seed=3))
    [end, *_] = client.run.tokenizer.encode(whole.text[9]).tolist()
    [cut] = client.write(client.job(max_tokens=40, seed=3, stop_token_ids=(end,)))
    assert cut.text == whole.text[: whole.text.index(whole.text[9])] and cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: len(cut.text)] and cut.num_drawn == len(cut.text) + 1


def test_past_the_context_the_newest_half_is_read_again(client):
    model, half = client.run.model, client.run.config.model.block_size // 2
    [found] = client.write(client.job("abcdefgh", 30, temperature=0, stop=()))
    tokens, begin = client.run.tokenizer.encode("abcdefgh").tolist(), 0
    for token in found.tokens:
        assert token.id == mx.argmax(model(mx.array([tokens[begin:]]))[0, -1]).item()
        tokens.append(token.id)
        if len(tokens) - begin > 2 * half:
            begin = len(tokens) - half
    assert len(found.tokens) == 30


def test_nothing_is_traced_after_the_start(client, monkeypatch):
    monkeypatch.setattr(GPT, "forward", lambda *a, **k: pytest.fail("traced again"))
    assert all(piece.finish_reason for piece in client.write(*jobs_of_all_kinds(client, 12, seed=1)))


def log_softmax(logits):
    logits = np.array(logits, np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


@pytest.mark.parametrize("options", [{}, *PENALTIES])
def test_tokens_are_told_with_what_the_model_held_of_them(client, options):
    [text] = client.write(client.job("abc", 9, temperature=1.3, seed=4, alternatives=20, **options))
    ids = client.run.tokenizer.encode("abc").tolist() + [t.id for t in text.tokens]
    expected = log_softmax(client.run.model(mx.array([ids[:-1]]))[0])[2:]
    for token, row in zip(text.tokens, expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id], abs=NETWORK)
        assert [id for id, _ in token.top] == np.argsort(-row, kind="stable").tolist()
        np.testing.assert_allclose([logprob for _, logprob in token.top], np.sort(row)[::-1], atol=NETWORK)
    assert "".join(client.run.tokenizer.decode([t.id]) for t in text.tokens) == text.text


def test_no_more_alternatives_are_kept_than_were_asked_for(client):
    """Also where texts that asked for other numbers of them are in the same batch, and for an echoed prompt."""
    jobs = [client.job("abc", 9, seed=4, echo="abc", scored=True, alternatives=count) for count in (0, 3, 20)]
    none, few, all_of_them = client.write(*jobs)
    assert none.text == few.text == all_of_them.text and len(none.tokens) == 12
    for token, some, every in list(zip(none.tokens, few.tokens, all_of_them.tokens, strict=True))[1:]:
        assert (token.id, token.logprob) == (every.id, every.logprob)
        assert token.top == [] and some.top == every.top[:3] and len(every.top) == client.run.tokenizer.vocab_size


def test_tokens_cover_the_text_and_no_more_where_it_is_cut(client):
    for seed in range(20):
        job = client.job("a", 40, stop=("bc", "h"), seed=seed)
        [text] = client.write(job)
        decode = client.run.tokenizer.decode
        ids = [t.id for t in text.tokens]
        assert [t.offset for t in text.tokens] == [len(decode(ids[:i])) for i in range(len(ids))]
        so_far = ""
        for piece in client.pieces[job]:
            so_far += piece.text
            assert "bc" not in so_far and "h" not in so_far
        assert decode(ids) == text.text


@pytest.mark.parametrize("length", [1, 2, 7, 12, 20])
def test_an_echoed_prompt_has_its_own_log_probabilities(client, length):
    prompt = ("abcdefgh" * 3)[:length]
    [text] = client.write(client.job(prompt, 0, echo=prompt, scored=True))
    block_size = client.run.config.model.block_size
    window = client.run.tokenizer.encode(prompt).tolist()[-block_size:]
    expected = log_softmax(client.run.model(mx.array([window]))[0])
    unseen = length - len(window) + 1
    assert text.text == prompt and len(text.tokens) == length
    assert all(t.logprob is None for t in text.tokens[:unseen])
    for i, token in enumerate(text.tokens[unseen:]):
        assert token.logprob == pytest.approx(expected[i, window[i + 1]], abs=NETWORK)
    assert [t.offset for t in text.tokens] == list(range(length))


def test_no_tokens_are_no_text(client):
    [text] = client.write(client.job("a", 0))
    assert (text.text, text.num_drawn, text.finish_reason) == ("", 0, "length")


def test_more_texts_than_slots_all_come_to_their_end_in_order(client):
    jobs = client.submit(*[client.job(max_tokens=15, seed=i) for i in range(5 * SLOTS)])
    client.wait(*jobs)
    ends = {job: i for i, job in enumerate(client.pieces)}
    assert [ends[job] for job in jobs] == sorted(ends[job] for job in jobs)
    assert client.scheduler.in_flight == 0


def test_no_text_starves(client):
    """While many short ones come and go, a long one gets its token in every step."""
    client.order.clear()
    long = client.job(max_tokens=100, temperature=0)
    client.submit(long)
    client.submit(*[client.job(max_tokens=2, seed=i) for i in range(60)])
    client.wait(long)
    places = [place for place, job in enumerate(client.order) if job is long]
    assert len(places) == 100 and np.diff(places).max() <= 3 * SLOTS
    client.until(lambda: client.scheduler.in_flight == 0)


def test_no_more_are_taken_than_can_wait(small_run):
    client = Client(small_run, num_slots=1, max_waiting=2)
    jobs = client.submit(*[client.endless() for _ in range(3)])
    with pytest.raises(Busy, match="3 texts"):
        client.scheduler.submit([client.job()])
    client.scheduler.cancel(jobs)
    client.until(lambda: client.scheduler.in_flight == 0)
    assert client.write(client.job())[0].finish_reason == "length"
    client.scheduler.close(0)


def test_a_cancelled_text_ends_within_two_steps(client, monkeypatch):
    steps, step = [], Slots.step
    monkeypatch.setattr(Slots, "step", lambda *a: steps.append(1) or step(*a))
    job = client.endless()
    client.submit(job)
    client.until(lambda: len(client.pieces[job]) > 3)
    client.scheduler.cancel([job])
    before = len(steps)
    client.until(lambda: client.scheduler.in_flight == 0)
    time.sleep(0.05)
    assert len(steps) - before <= 2


def test_nothing_is_left_after_500_cancels_at_random_moments(client):
    draw = random.Random(0)
    client.write(client.job())
    before = mx.get_active_memory()
    for _ in range(500):
        jobs = [client.job(max_tokens=1000) for _ in range(draw.randrange(1, 4))]
        client.submit(*jobs)
        if draw.random() < 0.7:
            time.sleep(draw.random() * 0.004)
        client.scheduler.cancel(jobs)
    client.until(lambda: client.scheduler.in_flight == 0)
    client.write(client.job())
    assert (client.scheduler.num_active, client.scheduler.num_waiting) == (0, 0)
    client.until(lambda: mx.get_active_memory() <= before + 10_000)  # the thread may still hold its last step


@pytest.mark.parametrize("place", ["read", "step"])
@pytest.mark.parametrize("after", [0, 1, 5, 13])
def test_a_fault_ends_what_it_hit_and_nothing_else(client, monkeypatch, place, after):
    left, real = [after], getattr(Slots, place)

    def faulty(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise RuntimeError("device lost")
        return real(*arguments)

    monkeypatch.setattr(Slots, place, faulty)
    jobs = client.submit(*[client.job(max_tokens=30, seed=i) for i in range(2 * SLOTS)])
    start = time.monotonic()
    texts = client.wait(*jobs)
    assert time.monotonic() - start < 20
    failed = [text for text in texts if text.error]
    assert 1 <= len(failed) <= SLOTS and all("RuntimeError" in text.error for text in failed)
    # the others are as if nothing had been
    for job, text in zip(jobs, texts, strict=True):
        if not text.error:
            monkeypatch.setattr(Slots, place, real)
            [again] = client.write(client.job(max_tokens=30, seed=job.seed))
            assert again.text == text.text


def test_a_fault_is_told_within_a_second(client, monkeypatch):
    def fail(*_):
        raise RuntimeError("device lost")

    job = client.endless()
    client.submit(job)
    client.until(lambda: len(client.pieces[job]) > 3)
    real = Slots.step
    monkeypatch.setattr(Slots, "step", fail)
    start = time.monotonic()
    [text] = client.wait(job)
    assert text.error and time.monotonic() - start < 1
    monkeypatch.setattr(Slots, "step", real)
    assert client.write(client.job())[0].finish_reason == "length"


@pytest.mark.parametrize("places", [("read",), ("step", "clear")])
def test_faults_that_do_not_end_end_the_scheduler(small_run, monkeypatch, places):
    client = Client(small_run)

    def fail(*_):
        raise RuntimeError("device lost")

    for place in places:
        monkeypatch.setattr(Slots, place, fail)
    texts = client.write(*[client.job(seed=i) for i in range(10)])
    assert all(text.error for text in texts)
    client.until(lambda: not client.scheduler.alive)
    assert [str(error) for error in client.deaths] == ["device lost"] and not client.scheduler.healthy
    with pytest.raises(Busy):
        client.scheduler.submit([client.job()])


def test_closing_lets_short_texts_end_and_tells_the_others(small_run):
    client = Client(small_run)
    long = client.submit(*[client.endless() for _ in range(SLOTS - 1)])
    [short] = client.submit(client.job(max_tokens=5))
    waiting = client.submit(*[client.endless() for _ in range(3)])
    client.scheduler.close(2)
    with pytest.raises(Busy, match="shutting down"):
        client.scheduler.submit([client.job()])
    client.until(lambda: not client.scheduler.alive)
    assert client.wait(short)[0].finish_reason == "length"
    assert all("shutting down" in text.error for text in client.wait(*long, *waiting))


def test_closing_again_can_only_be_sooner(small_run):
    client = Client(small_run)
    job = client.endless()
    client.submit(job)
    for seconds in (60, 0, 60):
        client.scheduler.close(seconds)
    assert "shutting down" in client.wait(job, seconds=5)[0].error


def test_it_is_unhealthy_only_when_texts_stand_still(client, monkeypatch):
    gate = threading.Event()
    real = Slots.step
    assert client.scheduler.healthy
    monkeypatch.setattr(Slots, "step", lambda *a: gate.wait() and real(*a))
    monkeypatch.setattr("mlx_gpt.generation.scheduler.STALLED_AFTER", 0.2)
    job = client.job()
    client.submit(job)
    client.until(lambda: not client.scheduler.healthy)
    gate.set()
    client.wait(job)
    client.until(lambda: client.scheduler.healthy)


class Rounding(Slots):
    """Slots whose step rounds differently in a batch of four rows."""

    def step(self, positions, draw):
        found = super().step(positions, draw)
        return [a * (1 + 2.0**-20) if len(positions) == 4 else a for a in found]


def test_only_the_largest_shape_is_used_where_another_one_rounds_differently(small_run):
    assert Slots(small_run.model, 16).sizes == [1, 4, 16]
    assert Rounding(small_run.model, 16).sizes == [16]


def test_the_batch_grows_at_once_and_shrinks_later(client):
    """A lone text is computed in one row, and its text stays the same when the batch changes its shape under it."""
    alone = client.job(max_tokens=400, temperature=0)
    [expected] = client.write(alone)
    assert client.scheduler.batch_rows == 1
    long = client.job(max_tokens=400, temperature=0)
    client.submit(long)
    client.write(*(client.job(seed=i) for i in range(3)))
    assert client.scheduler.batch_rows == SLOTS
    assert client.wait(long) == [expected]
    assert client.scheduler.batch_rows == 1


def test_a_place_out_of_range_never_reaches_the_model(small_run):
    slots = Slots(small_run.model, 1)
    for place in (-1, small_run.config.model.block_size):
        with pytest.raises(AssertionError):
            slots.step([place], None)
