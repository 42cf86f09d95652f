"""What counts as an explanation: a message that names the file, the record and a remedy."""

import pytest

from lt_detectron2.errors import DatasetError, UserError, about, reason

from .mutations import works_or_is_explained

GOOD = "set.json: annotation 3 has the area 'x', expected a number: correct it"


def explained(message, record=r"annotation \d+"):
    def fail():
        raise UserError(message)

    return works_or_is_explained(fail, "set.json", record)


@pytest.mark.parametrize(
    "message",
    [
        GOOD,
        "set.json: annotation 3 is empty; remove it",
        "set.json: annotation 3 has 'x', expected one of: a, b",
    ],
)
def test_explanations(message):
    """A sentence that ends with what to do, or with what there is to choose from."""
    assert explained(message) is None


@pytest.mark.parametrize(
    "message",
    [
        GOOD.replace("set.json: ", ""),
        GOOD.replace("annotation 3", "an annotation"),
        GOOD.replace(": correct it", ""),
        GOOD.replace("correct it", "was the download cut short?"),
        GOOD.replace("'x'", "<class 'str'>"),
        GOOD.replace("expected a number", "argument of type 'NoneType' is not iterable"),
        GOOD.replace(": correct", ":\ncorrect"),
        GOOD + " or write" * 100,
    ],
)
def test_what_is_no_explanation(message):
    """No file, no record, no remedy, words of the program, several lines, or too many of them."""
    with pytest.raises(AssertionError):
        explained(message)


def test_other_errors_are_not_taken_for_explanations():
    """Only errors for users are."""
    with pytest.raises(ZeroDivisionError):
        works_or_is_explained(lambda: 1 / 0, "set.json", "")


def test_file_is_named_once():
    """The name of a file is put before messages that lack it; the type of the error stays."""
    for message in ("no images", "set.json: no images"):
        with pytest.raises(DatasetError, match="^set.json: no images$"):
            with about("set.json"):
                raise DatasetError(message)


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError("image file is truncated"), "image file is truncated"),
        (RuntimeError("cannot read it. This is a bug.\nPlease report it."), "cannot read it"),
        (KeyError(75), "KeyError 75"),
        (EOFError(), "EOFError"),
    ],
)
def test_reasons_are_one_sentence(error, expected):
    """Of what a library says, the first sentence; its type where that says more."""
    assert reason(error) == expected
