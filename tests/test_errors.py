"""Messages of errors."""

from mlx_gpt.errors import MAX_MESSAGE, BadFile, UserError


def test_a_message_is_one_line_without_control_characters():
    assert str(UserError("a\nb\x1b[31m \u202e é 文")) == r"a\nb\x1b[31m \u202e é 文"
    assert str(UserError(str(UserError("a\nb")))) == r"a\nb"


def test_of_a_long_message_the_beginning_and_the_end_are_left():
    message = str(BadFile("a.json: " + "x" * 100_000 + "; choose another file"))
    assert message.startswith("a.json: xxx") and message.endswith("xxx; choose another file")
    assert len(message) <= MAX_MESSAGE
    whole = "a.json: " + "x" * 1000
    assert str(BadFile(whole)) == whole
