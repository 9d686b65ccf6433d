"""The dashboard's routes, and who may use them."""

import asyncio
import json

import httpx
import pytest

pytest.importorskip("plotly", reason="needs the extra watch")

from reporting import evaluation, step, stop  # noqa: E402

from mlx_gpt.watch.dashboard.app import make_app, plotly_js  # noqa: E402
from mlx_gpt.watch.metrics import MetricsFile  # noqa: E402
from mlx_gpt.watch.runs import Runs  # noqa: E402
from mlx_gpt.web.guard import Access  # noqa: E402


def make_run(folder, count=8, loss=4.0):
    folder.mkdir(parents=True)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for n in range(1, count + 1):
        metrics.add(step(n, loss=loss - n / 10))
        if n % 4 == 0:
            metrics.add(evaluation(n, loss=loss - n / 20))
    metrics.add(stop("iters"))
    metrics.close()
    (folder / "run.toml").write_text("[train]\niters = 20\nbatch_size = 5\n[model]\nn_layer = 4\n")
    return folder


class Client:
    """Sends requests to an application in this process."""

    def __init__(self, *paths, access=None):
        self.lines = []
        self.app = make_app(Runs(paths), access or Access(), self.lines.append)

    def request(self, path, method="GET", headers=None, **query):
        async def send():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8090") as client:
                return await client.request(method, path, params=query, headers=headers)

        return asyncio.run(send())

    def get(self, path, **query):
        response = self.request(path, **query)
        assert response.status_code == 200, response.text
        return response.json()

    def read(self):
        """Asks for the runs twice, as the page does: the first answer comes before reports are read."""
        return self.get("/api/runs", after=self.get("/api/runs")["stamp"])


def test_the_first_answer_has_names_states_and_progress(tmp_path):
    folder = make_run(tmp_path / "a")
    client = Client(tmp_path)
    [run] = client.get("/api/runs")["runs"]
    named = [run[name] for name in ("run", "state", "step", "loss")]
    assert named == [str(folder), "finished", 9, 3.2] and run["unread"] > 0
    assert client.get("/api/points", run=str(folder))["series"]["step"]["bins"] == []
    assert client.read()["unread"] == 0


def test_only_changes_are_sent(tmp_path):
    make_run(tmp_path / "a")
    client = Client(tmp_path)
    first = client.read()
    assert [run["run"] for run in first["runs"]] == [str(tmp_path / "a")] and first["unread"] == 0
    assert client.get("/api/runs", after=first["stamp"])["runs"] == []
    make_run(tmp_path / "b")
    second = client.get("/api/runs", after=first["stamp"])
    assert [run["run"] for run in second["runs"]] == [str(tmp_path / "b")] and second["server"] == first["server"]
    points = client.get("/api/points", run=str(tmp_path / "b"))
    assert points["whole"] and points["series"]["step"]["bins"] == list(range(1, 9))
    assert client.get("/api/points", run=str(tmp_path / "b"), after=points["stamp"])["series"]["step"]["bins"] == []


def test_settings_have_their_source(tmp_path):
    folder = make_run(tmp_path / "a")
    client = Client(tmp_path)
    client.read()
    settings = {s["name"]: s for s in client.get("/api/details", run=str(folder))["settings"]}
    assert settings["train.batch_size"] == {"name": "train.batch_size", "value": "5", "source": "this run"}


def test_the_settings_of_a_preset_name_it(tmp_path):
    from mlx_gpt.config.presets import resolve
    from mlx_gpt.watch.dashboard.settings import sourced

    config = resolve("llama-s", "randygpt", {"train.iters": 7})
    tables = {
        table: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        for table, values in config.to_dict().items()
    }
    source = {setting["name"]: setting["source"] for setting in sourced(tables)}
    assert source["model.ffn"] == "preset llama-s" and source["train.iters"] == "this run"
    assert source["train.log_every"] == "default" and "recipe randygpt" in source.values()
    assert sourced({"train": {"no_such": 1, "iters": [1]}, "junk": {"x": None}})[0]["source"] == "this run"


def test_runs_are_compared(tmp_path):
    names = [str(make_run(tmp_path / name, loss=loss)) for name, loss in (("a", 4.0), ("b", 3.0))]
    client = Client(tmp_path)
    client.read()
    found = client.get("/api/compare", run=names)
    assert found["runs"] == names and dict(found["rows"])["best loss"] == ["3.6000", "2.6000"]
    assert dict(found["rows"])["total tokens"] == ["800", "800"]


@pytest.mark.parametrize("route", ["points", "details", "compare"])
@pytest.mark.parametrize("name", ["", "../..", "/etc/passwd", "\x00", "x" * 10_000])
def test_a_name_is_no_path(tmp_path, route, name):
    (tmp_path / "secret").write_text("{}")
    response = Client(tmp_path).request(f"/api/{route}", run=name)
    assert response.status_code == 400 and response.json()["error"]["code"] == "no_such_run"


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 40, "\u0661"])
def test_a_stamp_is_a_number(tmp_path, after):
    response = Client(tmp_path).request("/api/runs", after=after)
    assert response.status_code == 400 and "stamp" in response.json()["error"]["message"]


def test_a_run_that_cannot_be_compared_is_named(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    client = Client(tmp_path)
    client.read()
    response = client.request("/api/compare", run=str(folder))
    assert response.status_code == 409 and "not evaluated" in response.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
def test_other_sites_are_refused(tmp_path, headers):
    for path in ("/", "/api/runs", "/plotly.js"):
        assert Client(tmp_path).request(path, headers=headers).status_code in (400, 403)


def test_a_key_protects_the_runs_and_not_the_page(tmp_path):
    client = Client(tmp_path, access=Access(host="0.0.0.0", key="sesame"))
    assert client.request("/").status_code == client.request("/main.js").status_code == 200
    for route in ("runs", "points", "details", "compare"):
        assert client.request(f"/api/{route}").status_code == 401
    assert client.request("/api/runs", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_nothing_can_be_changed(tmp_path):
    for path in ("/", "/api/runs", "/api/points", "/api/details", "/api/compare"):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            headers = {"Content-Type": "application/json"}
            assert Client(tmp_path).request(path, method, headers).status_code == 405


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    client = Client(tmp_path)
    page = client.request("/")
    assert "http://" not in page.text and "https://" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    library = client.request("/plotly.js")
    assert library.content == plotly_js().read_bytes() and library.headers["content-type"].startswith("text/javascript")


def test_a_text_of_a_run_stays_text(tmp_path):
    folder = make_run(tmp_path / "<img src=x>")
    text = "\ud800</script>\u202e"
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"report": "sample", "step": 9, "text": text}) + "\n")
    client = Client(tmp_path)
    client.read()
    [sample] = client.get("/api/details", run=str(folder))["samples"]
    assert sample["text"].endswith("</script>\u202e")
