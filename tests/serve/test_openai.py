"""The server with OpenAI's client: shapes, texts, streams, many at once."""

import asyncio
import concurrent.futures
import contextlib

import httpx
import openai
import pytest
from serving import CONTEXT, chat, complete, serving

import mlx_gpt
from mlx_gpt.serve.schema import TURN, Limits


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mlxgpt"
    with pytest.raises(openai.NotFoundError, match="other/model"):
        client.models.retrieve("other/model")


def test_a_completion_has_text_reason_and_usage(client):
    answer = complete(client)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length" and len(answer.choices[0].text) <= 20
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 20, 25)


def test_a_seed_repeats_a_text_and_no_seed_does_not(client):
    texts = [complete(client, seed=seed, temperature=1.0).choices[0].text for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1] and len(set(texts)) == 4


def test_the_seed_that_was_drawn_is_told(client):
    drawn = complete(client, seed=None, temperature=1.0, n=2)
    again = complete(client, seed=drawn.seed, temperature=1.0, n=2)
    assert again.choices == drawn.choices and again.seed == drawn.seed
    assert {frame.seed for frame in chat(client, seed=5, stream=True)} == {5}


def test_n_texts_of_each_prompt(client):
    answer = complete(client, ["Hello", "Bye"], n=3, temperature=1.0)
    assert [c.index for c in answer.choices] == list(range(6)) and len({c.text for c in answer.choices}) == 6
    assert answer.usage.prompt_tokens == 8
    assert answer.usage.completion_tokens == sum(
        20 if c.finish_reason == "length" else len(c.text) + 1 for c in answer.choices
    )
    assert answer.choices[0].text == complete(client, temperature=1.0).choices[0].text


def test_ids_are_prompts_too(client, run):
    ids = run.tokenizer.encode("Hello").tolist()
    assert [c.text for c in complete(client, [ids, ids]).choices][0] == complete(client).choices[0].text
    assert complete(client, ids).choices[0].text == complete(client).choices[0].text


def test_stop_strings(client):
    whole = complete(client, max_tokens=60).choices[0].text
    cut = complete(client, max_tokens=60, stop=[whole[9:12], "never"]).choices[0]
    assert cut.text == whole[: whole.index(whole[9:12])] and cut.finish_reason == "stop"


@pytest.mark.parametrize("stop", [None, "qj"])
def test_a_stream_is_the_whole_in_pieces(client, stop):
    whole = complete(client, max_tokens=60, logprobs=3, stop=stop)
    frames = list(
        complete(client, max_tokens=60, logprobs=3, stop=stop, stream=True, stream_options={"include_usage": True})
    )
    assert len({f.id for f in frames}) == 1
    assert all(f.usage is None and "usage" in f.model_fields_set for f in frames[:-1])
    assert "".join(f.choices[0].text for f in frames[:-1]) == whole.choices[0].text
    reasons = [f.choices[0].finish_reason for f in frames[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]
    assert frames[-1].choices == [] and frames[-1].usage == whole.usage
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        told = [x for f in frames[:-1] for x in getattr(f.choices[0].logprobs, field)]
        assert told == getattr(whole.choices[0].logprobs, field)


def test_logprobs_belong_to_the_text(client):
    told = complete(client, logprobs=5).choices[0]
    assert "".join(told.logprobs.tokens) == told.text
    for token, logprob, top in zip(
        told.logprobs.tokens, told.logprobs.token_logprobs, told.logprobs.top_logprobs, strict=True
    ):
        assert logprob <= 0 and 5 <= len(top) <= 6 and top[token] == logprob
    none = complete(client, logprobs=0).choices[0].logprobs
    assert [list(top) for top in none.top_logprobs] == [[token] for token in none.tokens]


def test_echo_scores_the_prompt(client):
    answer = complete(client, "Hello", echo=True, logprobs=1, max_tokens=0)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text == "Hello" and logprobs.tokens == list("Hello")
    assert logprobs.token_logprobs[0] is None and all(x < 0 for x in logprobs.token_logprobs[1:])
    assert complete(client, "Hello", echo=True).choices[0].text == "Hello" + complete(client).choices[0].text


def test_every_character_counts_as_one(unicode_run):
    """Outside the basic plane, combining, written from right to left: offsets count code points, streamed or not."""
    prompt = "e\u0301 \u05e9\u05d0 \U0001f600"
    with serving(unicode_run) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:
        options = {"max_tokens": 60, "temperature": 4, "top_p": 1, "logprobs": 2, "echo": True}
        [whole] = complete(client, prompt, **options).choices
        assert whole.text.startswith(prompt) and set(whole.text) == set(unicode_run.tokenizer.characters)
        offsets, tokens = whole.logprobs.text_offset, whole.logprobs.tokens
        assert "".join(tokens) == whole.text
        assert [whole.text[i : i + len(token)] for i, token in zip(offsets, tokens, strict=True)] == tokens
        frames = [frame.choices[0] for frame in complete(client, prompt, stream=True, stop="\U0001d11e" * 9, **options)]
        assert "".join(frame.text for frame in frames) == whole.text
        assert [offset for frame in frames for offset in frame.logprobs.text_offset] == offsets
        cut = complete(client, prompt, stop="\u05e9", **options | {"echo": False}).choices[0]
        drawn = whole.text.removeprefix(prompt)
        assert cut.text == drawn[: drawn.index("\u05e9")] and cut.finish_reason == "stop"


def test_chat_is_a_completion_of_the_template(client):
    messages = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Go on"},
    ]
    answer = chat(client, messages, max_tokens=30)
    turns = [("System", "Be brief"), ("User", "Hello"), ("Assistant", "Yes"), ("User", "Go on")]
    prompt = "".join(TURN.format(role=role, content=text) for role, text in turns) + "Assistant:\n"
    assert answer.choices[0].message.content == complete(client, prompt, max_tokens=30, stop="\n\n").choices[0].text
    assert answer.object == "chat.completion" and answer.usage.prompt_tokens == len(prompt)
    developer = chat(client, [{"role": "developer", "content": "Be brief"}, *messages[1:]], max_tokens=30)
    assert developer.choices[0].message.content == answer.choices[0].message.content


def test_a_chat_stream_begins_with_the_role_and_ends_with_a_reason(client):
    whole = chat(client, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=40, max_tokens=None, temperature=1.0)
    frames = list(chat(client, n=2, logprobs=True, top_logprobs=2, max_tokens=40, temperature=1.0, stream=True))
    for index, choice in enumerate(whole.choices):
        own = [f.choices[0] for f in frames if f.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == choice.finish_reason
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        told = [entry for c in own if c.logprobs for entry in c.logprobs.content]
        assert told == choice.logprobs.content
        assert bytes(b for entry in told for b in entry.bytes).decode() == choice.message.content


def test_the_async_client(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.completions.create(model="tiny", prompt="Hello", max_tokens=20, seed=7)
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=20, seed=7, stream=True
            )
            return whole.choices[0].text, [frame async for frame in stream]

    text, frames = asyncio.run(ask())
    assert len(text) <= 20 and frames[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"model": "../../etc/passwd"}, openai.NotFoundError, "not served"),
        ({"temperature": -1}, openai.BadRequestError, "temperature=-1"),
        ({"temperature": 1e6}, openai.BadRequestError, "temperature"),
        ({"top_p": -1}, openai.BadRequestError, "top_p"),
        ({"max_tokens": 5000}, openai.BadRequestError, "max_tokens=5,000"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens=-1"),
        ({"max_tokens": 1.5}, openai.BadRequestError, "max_tokens=1.5"),
        ({"n": 21}, openai.BadRequestError, "n: 21 texts in one request, at most 20"),
        ({"n": 0}, openai.BadRequestError, "n=0"),
        ({"logprobs": 6}, openai.BadRequestError, "logprobs=6"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"stop": ["a"] * 17}, openai.BadRequestError, "stop"),
        ({"suffix": "x"}, openai.BadRequestError, 'suffix="x" is not supported'),
        ({"best_of": 2}, openai.BadRequestError, "best_of"),
        ({"logit_bias": {"1": 101}}, openai.BadRequestError, "logit_bias={1: 101.0}.*-100 to 100"),
        ({"logit_bias": {"102": 1}}, openai.BadRequestError, "logit_bias has id 102; .* from 0 to 101"),
        ({"logit_bias": {"-1": 1}}, openai.BadRequestError, "logit_bias=.*>= 0 as a key"),
        ({"logit_bias": {"a": 1}}, openai.BadRequestError, "logit_bias=.*`int`, got `str` as a key"),
        ({"logit_bias": [1]}, openai.BadRequestError, "logit_bias=.*got `array`"),
        ({"frequency_penalty": 2.5}, openai.BadRequestError, "frequency_penalty=2.5 .* -2 to 2"),
        ({"frequency_penalty": "1"}, openai.BadRequestError, "frequency_penalty=.*got `str`"),
        ({"presence_penalty": -3}, openai.BadRequestError, "presence_penalty=-3.0 .* -2 to 2"),
        ({"prompt": "é"}, openai.BadRequestError, "U\\+00E9"),
        ({"prompt": [-1]}, openai.BadRequestError, "the prompt has id -1"),
        ({"prompt": [[1, 10**6]]}, openai.BadRequestError, "1000000"),
        ({"prompt": ["a", [1]]}, openai.BadRequestError, "mixed"),
        ({"prompt": "a" * 100_001}, openai.BadRequestError, "100,001"),
        ({"seed": 2**64}, openai.BadRequestError, "seed"),
    ],
)
def test_bad_values_are_named(client, options, error, words):
    with pytest.raises(error, match=words) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a"} | options)
    assert caught.value.body["type"] == "invalid_request_error"
    name = next(iter(options))
    assert caught.value.body["param"] == name


OPTIONS = {
    "min_p": 0.2,
    "repetition_penalty": 1.5,
    "frequency_penalty": 0.7,
    "presence_penalty": -0.9,
    "logit_bias": {"20": 3.5, "21": -100},
    "stop_token_ids": list(range(70, 100)),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_text_with_an_option_is_what_generate_writes(served, run, path, name):
    prompt, messages = "User:\na\n\nAssistant:\n", [{"role": "user", "content": "a"}]
    asked = {"prompt": prompt} if path == "/v1/completions" else {"messages": messages}
    how = {"max_tokens": 30, "temperature": 1.0, "top_p": 1.0, "seed": 3}
    answer = served.post(path, asked | how | {name: OPTIONS[name]})
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    text = choice["text"] if path == "/v1/completions" else choice["message"]["content"]
    value = {int(k): v for k, v in OPTIONS[name].items()} if name == "logit_bias" else OPTIONS[name]
    stop = "\n\n" if path == "/v1/chat/completions" else ()
    assert text == "".join(mlx_gpt.generate(run, prompt, stop=stop, **how, **{name: value}))
    assert text != "".join(mlx_gpt.generate(run, prompt, stop=stop, **how))
    assert (choice["finish_reason"] == "stop") == (name == "stop_token_ids")


def test_the_repetition_penalty_has_the_name_that_llama_cpp_gives_it(served):
    plain = {"prompt": "Hello", "max_tokens": 30, "seed": 7, "temperature": 0}
    asked = plain, plain | {"repetition_penalty": 1.5}, plain | {"repeat_penalty": 1.5}
    without, ours, theirs = (served.post(json=body).json()["choices"] for body in asked)
    assert theirs == ours != without
    both = served.post(json=plain | {"repetition_penalty": 1.5, "repeat_penalty": 1.5})
    assert both.status_code == 400 and "give one of them" in both.json()["error"]["message"]


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("min_p", 1.5, "min_p=1.5 is not allowed; choose 0 (keep all) to 1"),
        ("repetition_penalty", 0, "repetition_penalty=0.0 is not allowed; choose 0.01 to 100"),
        ("repeat_penalty", -1, "repetition_penalty=-1.0 is not allowed"),
        ("stop_token_ids", [5, 102], "stop_token_ids has id 102; the vocabulary has ids from 0 to 101"),
        ("stop_token_ids", [-1], "stop_token_ids[0]: Expected `int` >= 0"),
        ("stop_token_ids", ["a"], "stop_token_ids[0]: Expected `int`, got `str`"),
    ],
)
def test_bad_values_of_options_of_other_servers_are_named(served, name, value, words):
    refused = served.post(json={"prompt": "a", name: value})
    assert refused.status_code == 400 and words in refused.json()["error"]["message"], refused.text


@pytest.mark.parametrize(
    "neutral",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "user": "me", "stop": ""},
        {"logprobs": False, "echo": False, "max_tokens": 20.0, "seed": 7.0, "stream_options": {"include_usage": True}},
        {"min_p": 0, "repetition_penalty": 1.0, "typical_p": 1, "top_k": -1, "ignore_eos": False, "stop_token_ids": []},
    ],
)
def test_values_that_change_nothing_are_taken(served, neutral):
    plain = {"prompt": "Hello", "max_tokens": 20, "seed": 7}
    answer = served.post(json=plain | neutral)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == served.post(json=plain).json()["choices"]


def test_a_request_may_have_as_many_texts_as_slots_and_queue(client):
    assert len(complete(client, ["Hello"] * 20, max_tokens=1).choices) == 20


@pytest.mark.parametrize(
    "body, words",
    [
        ({"max_token": 5}, "did you mean max_tokens?"),
        ({"Prompt": "a"}, "did you mean prompt?"),
        ({"min_q": 0.1}, "min_q: no such field"),
    ],
)
def test_unknown_fields_are_named(served, body, words):
    refused = served.post(json=body)
    assert refused.status_code == 400 and words in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{}],
    ],
)
def test_messages_of_other_kinds_are_refused(client, messages):
    with pytest.raises(openai.BadRequestError, match="messages"):
        chat(client, messages)


def test_randygpts_own_shape(served, client):
    answer = served.post("/", {"prompt": "Hello", "max_tokens": 12, "temperature": 0}).json()
    assert answer["text"] == "Hello" + complete(client, temperature=0, max_tokens=12).choices[0].text
    assert answer["model"] == "tiny" and answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12}


def test_a_text_is_the_same_alone_and_among_15_others(run):
    with serving(run, num_slots=16) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:

        def ask(seed):
            prompt = "Hello" * (seed % 7 + 1)
            return complete(client, prompt, seed=seed, max_tokens=60, temperature=1.0).choices[0].text

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, range(16)))
        assert together == [ask(seed) for seed in range(16)]


def test_a_full_queue_says_when_to_come_back(run):
    with serving(run, num_slots=1, max_waiting=1) as served:
        held = [httpx.Client() for _ in range(2)]
        streams = [
            c.stream(
                "POST",
                served.url + "/v1/completions",
                json={"prompt": "a", "max_tokens": 4096, "stream": True, "temperature": 0},
                timeout=30,
            )
            for c in held
        ]
        with contextlib.ExitStack() as stack:
            for stream in streams:
                assert stack.enter_context(stream).status_code == 200
            refused = served.post(json={"prompt": "a"})
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
                with pytest.raises(openai.RateLimitError):
                    complete(client)
        served.until_idle()
        assert served.post(json={"prompt": "a"}).status_code == 200


def test_what_does_not_fit_slides_or_is_refused(run, client):
    assert len(complete(client, "a" * 200, max_tokens=100).choices) == 1
    with serving(run, limits=Limits(slides=False)) as served:
        refused = served.post(json={"prompt": "a" * 50, "max_tokens": 15}).json()["error"]
        assert (refused["code"], refused["n_prompt_tokens"], refused["n_ctx"]) == (
            "context_length_exceeded",
            50,
            CONTEXT,
        )
        assert served.post(json={"prompt": "a" * 50, "max_tokens": 14}).status_code == 200
        answer = served.post(json={"prompt": "a" * 60, "temperature": 0}).json()
        assert answer["usage"]["completion_tokens"] == 4  # as far as there is room
