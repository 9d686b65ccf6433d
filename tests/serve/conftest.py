"""A server over tiny random weights, and OpenAI's client of it."""

import openai
import pytest
from serving import serving


@pytest.fixture(scope="module")
def run(ascii_run):
    return ascii_run


@pytest.fixture(scope="module")
def served(run):
    with serving(run) as served:
        yield served


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client
