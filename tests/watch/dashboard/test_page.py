"""The dashboard in a real browser. Needs playwright and Chromium."""

import json
import shutil
import threading
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("plotly", reason="needs the extra watch")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

from covering import covering  # noqa: E402
from reporting import evaluation, step, stop  # noqa: E402

from mlx_gpt.files import FolderLock  # noqa: E402
from mlx_gpt.watch import dashboard  # noqa: E402
from mlx_gpt.watch.metrics import MetricsFile  # noqa: E402
from mlx_gpt.web import server  # noqa: E402
from mlx_gpt.web.guard import Access  # noqa: E402

MARKUP = "<img src=x onerror=alert(1)>"
expect = playwright.expect
expect.set_options(timeout=20_000)


def make_run(folder, count=40, loss=4.0, reports=(), settings="batch_size = 4"):
    folder.mkdir(parents=True)
    metrics = MetricsFile(folder / "metrics.jsonl")
    for n in range(1, count + 1):
        metrics.add(step(n, loss=loss - n / 20, metrics={"H-CE": 0.01 * n, "load.0": 0.5, "load.1": n / 80}))
        if n % 10 == 0:
            metrics.add(evaluation(n, loss=loss - n / 25))
    for report in reports:
        metrics.add(report)
    metrics.close()
    (folder / "run.toml").write_text(f"[train]\niters = 60\n{settings}\n")
    return folder


def append(folder, *lines):
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def sample(n, text):
    return {"report": "sample", "step": n, "text": text}


class Watched:
    """A dashboard in a thread of this process."""

    def __init__(self, *paths, **options):
        listening, ready = server.bind("127.0.0.1", 0), threading.Event()
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"

        def on_ready(stop):
            self._stop = stop
            ready.set()

        arguments = {"on_ready": on_ready} | options
        self._thread = threading.Thread(target=dashboard.serve, args=(listening, paths), kwargs=arguments)
        self._thread.start()
        assert ready.wait(30)

    def stop(self):
        self._stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function that serves folders and opens the page. Fails if the page or its console has an error."""
    opened, faults = [], []

    def is_fault(message):
        return message.type == "error" and " 401 " not in message.text  # the browser reports a missing key, too

    def open_it(*paths, fragment="", access=None, **options):
        watched = Watched(*paths, access=access)
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
        opened.append((watched, page))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
        page.set_default_timeout(20_000)
        page.goto(watched.url + fragment)
        return page

    yield open_it
    for watched, page in opened:
        page.close()
        watched.stop()
    assert not faults


def chart(page, title):
    return page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))


def drawn(page, title="Loss"):
    """The names of the lines of a chart that plotly.js has drawn."""
    plot = chart(page, title).locator(".plot")
    plot.locator(".main-svg").first.wait_for()
    return plot.evaluate("e => e.data.map((line) => line.name)")


def test_everything_is_shown_without_a_click(open_page, tmp_path):
    folder = make_run(tmp_path / "runs/a")
    append(
        folder,
        sample(40, "To be"),
        {"report": "alert", "kind": "plateau", "step": 40, "since": 30, "evidence": "no lower loss", "advice": "stop"},
    )
    page = open_page(tmp_path / "runs")
    row = page.locator("#progress tbody tr")
    expect(row).to_contain_text("40 / 60")
    for text in ("killed", "2.0000", "2.4000", "4k", "0:20"):
        expect(row).to_contain_text(text)
    assert set(drawn(page)) >= {"loss", "loss, smoothed", "val_loss", "best 2.4000"}
    for title in ("Learning rate", "Gradient norm", "Speed", "H - CE", "load.*", "Bits per byte"):
        expect(chart(page, title)).to_have_count(1)
    expect(page.locator("#alerts")).to_contain_text("Loss no longer falls in a, steps 30 to 40: no lower loss. Stop")
    expect(page.locator(".card pre")).to_have_text("To be")
    expect(page.locator("#settings")).to_contain_text("train.batch_size")
    expect(page.locator("#settings tr", has_text="train.batch_size")).to_contain_text("this run")


def test_a_report_a_new_run_and_a_deleted_one_appear(open_page, tmp_path):
    folder = make_run(tmp_path / "a")
    page = open_page(folder)
    expect(page.locator("#progress tbody tr")).to_contain_text("40 / 60")
    drawn(page)
    append(
        folder,
        {"report": "step", "step": 41, "loss": 0.5, "grad_norm": 1.0, "tokens": 4100, "seconds": 0.5, "elapsed": 20.5},
    )
    expect(page.locator("#progress tbody tr")).to_contain_text("41 / 60")
    assert chart(page, "Loss").locator(".plot").evaluate("e => Math.max(...e.data.flatMap((line) => line.x))") == 4100
    make_run(tmp_path / "a" / "b")
    expect(page.locator("#list li")).to_have_count(2)
    (folder / "metrics.jsonl").unlink()
    expect(page.locator("#alerts")).to_contain_text("was deleted")


def test_the_state_is_that_of_the_lock(open_page, tmp_path):
    folder = make_run(tmp_path / "a", count=0)
    lock = FolderLock(folder)
    page = open_page(tmp_path)
    expect(page.locator("#list li")).to_contain_text("training")
    expect(page.locator("#list li")).to_contain_text("first update is being compiled")
    expect(page.locator("#status")).to_contain_text("1 training")
    lock.release()
    expect(page.locator("#status")).to_contain_text("0 training")


def test_the_page_asks_for_news_every_700_milliseconds(open_page, tmp_path):
    """By the clock of the page, which stands still between the steps of this test."""
    folder = make_run(tmp_path / "a")
    page = open_page(tmp_path)
    drawn(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/api/runs" in request.url else None)
    page.clock.install(time=0)
    page.reload()
    expect(page.locator("#progress tbody tr")).to_contain_text("40 / 60")
    page.clock.pause_at(1_000_000)
    page.wait_for_load_state("networkidle")
    for n in range(41, 46):
        append(folder, {"report": "step", "step": n, "loss": 1.0, "tokens": 100 * n, "seconds": 0.5, "elapsed": n / 2})
        before = len(asked)
        with page.expect_response("**/api/runs*") as answer:
            page.clock.run_for(700)
        answer.value.finished()
        expect(page.locator("#progress tbody tr")).to_contain_text(f"{n} / 60")
        assert len(asked) == before + 1


@pytest.mark.parametrize("log", [False, True])
def test_the_loss_is_zoomed(open_page, tmp_path, log):
    make_run(tmp_path / "a")
    page = open_page(tmp_path, fragment="#x=step" + "&y=log" * log)
    drawn(page)
    ends = "e => e.layout.yaxis.range.map((end) => e.layout.yaxis.type === 'log' ? 10 ** end : end)"
    plot = chart(page, "Loss").locator(".plot")
    page.fill("#low", "2.5")
    page.fill("#high", "3.5")
    page.keyboard.press("Tab")
    expect(page.locator("#whole")).to_be_visible()
    page.wait_for_timeout(1000)  # the chart is drawn after the address has changed
    assert plot.evaluate(ends) == pytest.approx([2.5, 3.5])
    assert "losses=2.5%2C3.5" in page.evaluate("location.hash")
    assert chart(page, "Gradient norm").locator(".plot").evaluate("e => e.layout?.yaxis.autorange ?? true")
    box = plot.locator(".nsewdrag").bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] * 3 / 4, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    low, high = plot.evaluate(ends)
    assert 2.5 < low < high < 3.5 and "range=" not in page.evaluate("location.hash")
    page.reload()
    drawn(page)
    assert plot.evaluate(ends) == pytest.approx([low, high])
    page.click("#whole")
    assert "losses" not in page.evaluate("location.hash")
    assert plot.evaluate("e => e.layout.yaxis.autorange")


def test_a_link_holds_the_view(open_page, tmp_path):
    for name in ("a", "b", MARKUP):
        make_run(tmp_path / name)
    wanted = ",".join(quote(str(tmp_path / name), safe="") for name in ("a", MARKUP))
    page = open_page(tmp_path, fragment=f"#runs={wanted}&x=step&y=log&smooth=0.5&range=10,20&sort=name&filter=a")
    expect(page.locator("#count")).to_have_text("2 of 3 shown")
    drawn(page)
    layout = (
        chart(page, "Loss")
        .locator(".plot")
        .evaluate("e => [e.layout.xaxis.range, e.layout.yaxis.type, e.layout.xaxis.title.text]")
    )
    assert layout == [[10, 20], "log", "steps"]
    assert (page.input_value("#sort"), page.input_value("#filter"), page.input_value("#smooth")) == ("name", "a", "0.5")
    page.click("#whole")
    page.select_option("#x", "tokens")
    page.locator("#list li", has_text="<img").locator("input").uncheck()
    link = page.evaluate("location.hash")
    page.reload()
    expect(page.locator("#count")).to_have_text("1 of 3 shown")
    assert page.evaluate("location.hash") == link and "range" not in link and MARKUP not in link


def test_runs_are_compared_filtered_and_sorted(open_page, tmp_path):
    make_run(tmp_path / "low", loss=3.0, settings="batch_size = 8")
    make_run(tmp_path / "high", count=30, reports=[stop("iters")])
    page = open_page(tmp_path)
    expect(page.locator("#compare tr", has_text="train.batch_size").locator("td")).to_have_text(["4", "8"])
    expect(page.locator("#compare tr", has_text="best loss").locator("td")).to_have_text(["2.8000", "1.4000"])
    assert {"low: val_loss", "high: val_loss"} <= set(drawn(page))
    page.select_option("#sort", "best")
    expect(page.locator("#list .name")).to_have_text(["low", "high"])
    page.fill("#filter", "HIG")
    expect(page.locator("#list .name")).to_have_text(["high"])
    page.click("#show-all")
    expect(page.locator("#count")).to_have_text("1 of 2 shown")
    page.click("#show-none")
    expect(page.locator("#empty")).to_contain_text("no run is shown")
    expect(page.locator("figure")).to_have_count(0)


def test_rewards_have_charts_of_their_own(open_page, tmp_path):
    """The chart "Loss" of a run with rewards has no training loss. With several runs, each part has a chart."""
    for name in ("a", "b"):
        reports = [step(n, metrics={"reward": n / 9, "reward.length": 0.1, "kl": 0.1}) for n in range(41, 50)]
        make_run(tmp_path / name, 0, reports=[*reports, evaluation(49)])
    page = open_page(tmp_path, fragment=f"#runs={quote(str(tmp_path / 'a'), safe='')}")
    assert {"reward", "reward.length"} <= set(drawn(page, "Reward"))
    assert page.locator("figure h2").first.text_content() == "Reward"
    assert set(drawn(page, "Loss")) == {"val_loss", "best 3.0000"}
    for title in ("KL", "Objective"):
        expect(chart(page, title)).to_have_count(1)
    page.click("#show-all")
    expect(chart(page, "Reward: length")).to_have_count(1)
    assert {name for name in drawn(page, "Reward") if name.endswith("d")} == {"a: reward", "b: reward"} | {
        f"{name}: reward, smoothed" for name in "ab"
    }
    page.fill("#metric", "kl")
    expect(page.locator("figure h2")).to_have_text(["KL"])
    assert "charts=kl" in page.evaluate("location.hash")


def test_the_history_holds_the_runs_and_the_zoom(open_page, tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    page = open_page(tmp_path)
    expect(page.locator("#count")).to_have_text("2 of 2 shown")
    page.get_by_role("button", name="Show only").first.click()
    expect(page.locator("#count")).to_have_text("1 of 2 shown")
    drawn(page)
    chart(page, "Loss").locator(".plot").press("+")
    expect(page.locator("#whole")).to_be_visible()
    page.go_back()
    expect(page.locator("#whole")).to_be_hidden()
    page.go_back()
    expect(page.locator("#count")).to_have_text("2 of 2 shown")
    page.go_forward()
    expect(page.locator("#count")).to_have_text("1 of 2 shown")


def test_many_runs_leave_room_for_the_charts(open_page, tmp_path):
    alert = {"report": "alert", "kind": "dead", "step": 9, "since": 8, "evidence": "e", "advice": "a"}
    names = [str(tmp_path / f"{n:02}") for n in range(30)]
    for name in names:
        append(make_run(Path(name), count=1), alert)
    page = open_page(tmp_path, fragment=f"#runs={','.join(quote(name, safe='') for name in names)}")
    expect(page.locator("#progress tbody tr")).to_have_count(30)
    expect(page.locator("#alerts li")).to_have_count(30)
    expect(chart(page, "Loss").locator(".plot")).to_be_in_viewport()


def test_a_finger_on_a_chart_scrolls_the_page(open_page, tmp_path):
    make_run(tmp_path / "a")
    page = open_page(tmp_path, viewport={"width": 360, "height": 700}, is_mobile=True, has_touch=True)
    chart(page, "Loss").locator(".plot").scroll_into_view_if_needed()
    drawn(page)
    before, box = page.evaluate("scrollY"), chart(page, "Loss").locator(".plot").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7
    touch = page.context.new_cdp_session(page)
    for i in range(11):
        kind = "touchMove" if i else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y - 10 * i}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_timeout(500)
    assert page.evaluate("scrollY") > before
    assert not page.evaluate("location.hash")


@pytest.mark.parametrize("kind, begins", [("PNG", b"\x89PNG"), ("SVG", b"<svg"), ("CSV", b"chart,run,field")])
def test_what_is_shown_is_saved(open_page, tmp_path, kind, begins):
    make_run(tmp_path / "a")
    page = open_page(tmp_path)
    drawn(page)
    with page.expect_download() as saving:
        page.get_by_role("button", name=f"Save Loss as {kind}").click()
    data = saving.value.path().read_bytes()
    assert saving.value.suggested_filename == f"loss.{kind.lower()}" and data.startswith(begins)
    if kind == "CSV":
        lines = data.decode().splitlines()
        assert (
            sum(",val_loss,points," in line for line in lines) == 4
            and sum(",loss,raw," in line for line in lines) == 40
        )


def test_charts_are_read_and_zoomed_by_keyboard(open_page, tmp_path):
    make_run(tmp_path / "a")
    page = open_page(tmp_path, fragment="#x=step")
    drawn(page)
    figure = chart(page, "Loss")
    figure.locator(".plot").focus()
    page.keyboard.press("ArrowLeft")
    expect(figure.locator(".read")).to_contain_text("40 steps: ")
    page.keyboard.press("ArrowLeft")
    expect(figure.locator(".read")).to_contain_text("39 steps: ")
    assert "val_loss 2.4" in figure.locator(".read").text_content()
    page.keyboard.press("+")
    expect(page.locator("#whole")).to_be_visible()
    assert "range=" in page.evaluate("location.hash")
    page.keyboard.press("0")
    expect(page.locator("#whole")).to_be_hidden()


def test_a_text_of_a_run_is_never_markup(open_page, tmp_path):
    folder = make_run(tmp_path / "runs" / MARKUP, settings=f'name = "{MARKUP}"')
    alert = {"report": "alert", "step": 1, "since": 1} | dict.fromkeys(("kind", "evidence", "advice"), MARKUP)
    odd = {"report": "step", "step": 41, "loss": 1.0, "tokens": 4100, "elapsed": 21, MARKUP: 1.0}
    append(folder, sample(40, MARKUP), alert, odd)
    make_run(tmp_path / "runs/b")
    page = open_page(tmp_path / "runs")
    expect(page.locator(".card pre")).to_have_text(MARKUP)
    assert any("onerror" in name for name in drawn(page))
    for title in page.locator("figure .plot").all():
        title.scroll_into_view_if_needed()
    assert page.locator("img, script:not([src])").count() == 0


def test_the_history_of_samples(open_page, tmp_path):
    folder = make_run(tmp_path / "a")
    append(folder, *(sample(n, f"text {n}") for n in (10, 20, 30)))
    page = open_page(folder)
    expect(page.locator(".card pre")).to_have_text("text 30")
    page.locator(".card input").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".card pre")).to_have_text("text 20")
    expect(page.locator(".card")).to_contain_text("step 20")


def test_damaged_runs_are_shown_with_a_word(open_page, tmp_path):
    folder = make_run(tmp_path / "a")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(
            b'{"step": 5, "lo\xff\n{"report": "step", "step": 41, "loss": NaN, "lr": Infinity, "tokens": 1e999}\n'
        )
    (folder / "run.toml").write_text("[")
    page = open_page(tmp_path)
    expect(page.locator("#alerts")).to_contain_text("1 damaged lines")
    expect(page.locator("#alerts")).to_contain_text("settings cannot be read")
    assert "val_loss" in drawn(page)


def test_the_key_is_asked_for(open_page, tmp_path):
    make_run(tmp_path / "a")
    page = open_page(tmp_path, access=Access(key="sesame"))
    expect(page.locator("#fault")).to_contain_text("API key")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#list li")).to_have_count(1)
    expect(page.locator("#fault")).to_be_hidden()


def test_an_empty_folder_says_what_it_waits_for(open_page, tmp_path):
    page = open_page(tmp_path)
    expect(page.locator("#empty")).to_contain_text("a run appears here when its training begins")
    make_run(tmp_path / "a")
    expect(page.locator("#list li")).to_have_count(1)


@pytest.mark.parametrize("scheme, names", covering(["light", "dark"], [["a"], ["a", "b"], []], together=1))
def test_axe_finds_no_violation(open_page, tmp_path, scheme, names):
    axe = files(pytest.importorskip("axe_playwright_python")) / "axe.min.js"
    alert = {"report": "alert", "kind": "dead", "step": 40, "since": 30, "evidence": "e", "advice": "a"}
    for name in names:
        append(make_run(tmp_path / name), sample(30, "To be"), sample(40, "or not"), alert)
    page = open_page(tmp_path, color_scheme=scheme)
    if names:
        drawn(page)
        page.locator("#compare tr, #settings tr").first.wait_for()
        page.locator("#settings details").evaluate("e => { e.open = true; }")
    else:
        page.locator("#empty").wait_for()
    page.evaluate(axe.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    assert not [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]


@pytest.mark.parametrize("scheme, width", covering(["light", "dark"], [360, 768, 1440], together=1))
def test_it_fits(open_page, tmp_path, scheme, width):
    """No sideways scrolling of the page."""
    append(make_run(tmp_path / "a-run-with-a-rather-long-name-of-its-own"), sample(40, "x" * 300))
    make_run(tmp_path / "b")
    page = open_page(tmp_path, color_scheme=scheme, viewport={"width": width, "height": 800})
    expect(page.locator("#compare tr").first).to_be_attached()
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
