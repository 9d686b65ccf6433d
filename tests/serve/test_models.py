"""Several models on one server: each is chosen by its id, and writes what it writes alone."""

import asyncio
import dataclasses

import httpx
import pytest
from serving import CARD, serving

from mlx_gpt.cli.serve import model_ids
from mlx_gpt.errors import UserError
from mlx_gpt.serve import Served
from mlx_gpt.serve.prometheus import Metrics

IDS = ("run/best", "run/checkpoint")


@pytest.fixture(scope="module")
def runs(ascii_run, unicode_run):
    return dict(zip(IDS, (ascii_run, unicode_run), strict=True))


@pytest.fixture(scope="module")
def served(runs):
    models = [
        Served(network=run.model, tokenizer=run.tokenizer, card=CARD | {"id": id}, examples=lambda id=id: [f"of {id}"])
        for id, run in runs.items()
    ]
    with serving(models) as served:
        yield served


def ask(id, seed=3, **more):
    return {"prompt": "a b", "max_tokens": 20, "seed": seed, "temperature": 1} | ({"model": id} if id else {}) | more


def text(answer):
    return answer.json()["choices"][0]["text"]


def test_each_is_chosen_by_its_id_and_the_first_without_one(served, runs):
    listed = httpx.get(served.url + "/v1/models").json()["data"]
    assert [card["id"] for card in listed] == list(IDS)
    assert httpx.get(f"{served.url}/v1/models/{IDS[1]}").json() == listed[1]
    answers = [served.post(json=ask(id)) for id in (None, *IDS)]
    assert [answer.json()["model"] for answer in answers] == [IDS[0], *IDS]
    assert text(answers[0]) == text(answers[1]) != text(answers[2])
    wrong = served.post(json=ask("run"))
    assert wrong.status_code == 404 and all(repr(id) in wrong.json()["error"]["message"] for id in IDS)


def test_together_they_write_what_each_writes_alone(served, runs):
    """Their schedulers compute in two threads."""
    alone = {}
    for id, run in runs.items():
        with serving([Served(network=run.model, tokenizer=run.tokenizer, card=CARD | {"id": id})]) as single:
            alone |= {(id, seed): text(single.post(json=ask(id, seed, max_tokens=100))) for seed in range(6)}

    async def all_at_once():
        async with httpx.AsyncClient(timeout=60) as client:
            url = served.url + "/v1/completions"
            asked = [client.post(url, json=ask(id, seed, max_tokens=100)) for id, seed in alone]
            return await asyncio.gather(*asked)

    assert [text(answer) for answer in asyncio.run(all_at_once())] == list(alone.values())


def test_metrics_and_examples_are_of_each_model(served):
    served.post(json=ask(IDS[1]))
    metrics = httpx.get(served.url + "/metrics").text
    assert f'mlxgpt_generated_tokens_total{{model="{IDS[1]}"}}' in metrics
    assert f'mlxgpt_texts_active{{model="{IDS[0]}"}} 0.0' in metrics
    for query, id in (("", IDS[0]), (f"?model={IDS[1]}", IDS[1])):
        assert httpx.get(f"{served.url}/v1/examples{query}").json() == {"object": "list", "data": [f"of {id}"]}
    assert httpx.get(f"{served.url}/v1/examples?model=other").status_code == 404


def test_a_gauge_reads_the_scheduler_of_its_own_model():
    @dataclasses.dataclass
    class Scheduler:
        num_active: int
        num_waiting: int = 0
        num_slots: int = 1
        num_faults: int = 0
        healthy: bool = True

    metrics = Metrics({"a": Scheduler(1), "b": Scheduler(2)}).text().decode()
    assert 'mlxgpt_texts_active{model="a"} 1.0' in metrics and 'mlxgpt_texts_active{model="b"} 2.0' in metrics


def test_the_id_of_a_checkpoint_is_short_unless_another_has_it(tmp_path):
    run, other = tmp_path / "long", tmp_path / "exports/long"
    for folder in (run, other):
        folder.mkdir(parents=True)
    best, latest = run / "best.safetensors", run / "checkpoint.safetensors"
    assert model_ids([run]) == model_ids([best]) == ["long"]
    assert model_ids([run, tmp_path / "m.bin"]) == ["long", "m"]
    assert model_ids([run, latest]) == model_ids([best, latest]) == ["long/best", "long/checkpoint"]
    with pytest.raises(UserError, match="another checkpoint has the id 'long/best'"):
        model_ids([run, other])
