"""The scripts of experiments/learning: every run that they would start is one that `mlxgpt train` accepts."""

import runpy
import sys

import pytest
from constants import ROOT

from mlx_gpt.cli.train import request_of, train_command
from mlx_gpt.run.start import resolved

FOLDER = ROOT / "experiments/learning"
# Name of a script -> its arguments. Those that are not here need a text or results that a test does not have.
SCRIPTS = {path.name: [] for path in sorted(FOLDER.glob("*.py"))} | {
    "long_records.py": ["folder"],
    "networks.py": ["folder"],
    "pairs.py": ["folder", "large"],
    "short_budgets.py": ["pilots"],
    "ternary_long.py": ["folder"],
}
for name in ("code.py", "code_curves.py", "pictures.py", "table.py"):
    del SCRIPTS[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_run_of_a_script_is_one_that_train_accepts(monkeypatch, tmp_path, shakespeare, script):
    found = []

    def measured(table, variants, seeds, common, before=None, folder=None):
        found.extend(([*common, *own], name) for name, own in [*variants.items(), *(before or {}).items()])

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [script, *SCRIPTS[script]])
    import table

    monkeypatch.setattr(table, "measure", measured)
    runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert found
    for arguments, name in found:
        options = train_command.make_context("train", list(arguments)).params
        for unused in ("logs", "alert", "plan", "watched", "address", "as_json"):
            del options[unused]
        request = request_of(**options)
        config = resolved(request.preset, request.recipe, request.settings, print)
        lengths = {"train.iters", "train.tokens", "train.minutes"}
        assert request.settings.keys() & lengths or config.train.tokens, (script, name)
