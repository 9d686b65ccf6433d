"""The pages in docs/: their Python blocks run, in order, as one session."""

import re

import pytest
from constants import ROOT

PAGES = ["python.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # TMPDIR stays: MLX's compiled kernels are there
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    text = (ROOT / "docs" / page).read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: match.start(1)].count("\n")
        exec(compile("\n" * line + match[1], page, "exec"), names)
    assert names["losses"][-1] < names["losses"][0]
    assert capsys.readouterr().out
