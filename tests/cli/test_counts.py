"""Numbers on the command line that may be written with a unit or an exponent."""

from types import SimpleNamespace

import pytest

from mlx_gpt.cli.options import MAX_COUNT, count_option
from mlx_gpt.errors import UserError

FORMS = {"5000000": 5_000_000, "5_000_000": 5_000_000, "5e6": 5_000_000, "5E+6": 5_000_000, "5M": 5_000_000}
FORMS |= {"0.5m": 500_000, "1.5k": 1500, "2B": 2 * 10**9, "500000.0": 500_000, "1": 1, str(MAX_COUNT): MAX_COUNT}
REFUSED = ["", "M", "-5", "0", "0.5", "1.0001k", "nan", "inf", "-inf", "1e400", "1e99999999", "5MM", "5 tokens"]
OPTION = SimpleNamespace(opts=["--tokens"])


@pytest.mark.parametrize("text", FORMS)
def test_a_number_may_have_a_unit_or_an_exponent(text):
    assert count_option(None, OPTION, text) == FORMS[text]


@pytest.mark.parametrize("text", [*REFUSED, str(MAX_COUNT + 1)])
def test_what_is_no_whole_number_in_the_range_is_refused(text):
    with pytest.raises(UserError, match="--tokens .* is not allowed; give a whole number"):
        count_option(None, OPTION, text)


def test_an_option_that_is_not_given_has_no_value():
    assert count_option(None, OPTION, None) is None
