import pytest

from headwater.errors import UsageError
from headwater.sources import parse_binding
from headwater.sources.binding import (
    absent_path,
    check_options,
    flag_option,
    integer_option,
    memory_bytes,
    names_option,
    positive_option,
    split_binding,
)


def test_name_and_binding():
    assert parse_binding("cifar10=/data/a=b.parquet?x=1") == ("cifar10", "/data/a=b.parquet?x=1")


@pytest.mark.parametrize("text", ["cifar10", "=path", "name=", "a b=path", "-x=path", "/p=/q"])
def test_a_binding_that_is_none(text):
    with pytest.raises(UsageError, match="is not NAME=PATH"):
        parse_binding(text)


def test_scheme_path_and_options():
    parts = split_binding("digits:?split=train&parts=4")
    assert (parts.scheme, parts.path) == ("digits", "")
    assert parts.options == {"split": "train", "parts": "4"}


def test_values_are_percent_decoded_but_keep_plus_and_equals():
    parts = split_binding("a.parquet?where=x==1 and y>='a%26b+c'")
    assert parts.options["where"] == "x==1 and y>='a&b+c'"


def test_a_drive_letter_is_no_scheme():
    assert split_binding("C:\\data.npz").scheme is None


def test_a_path_that_exists_is_taken_whole(tmp_path):
    for name in ("what?a=b.npz", "set:one.npz"):
        path = tmp_path / name
        path.touch()
        assert split_binding(str(path)).path == str(path)
        assert split_binding(str(path)).options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.npz?input", "option 'input' is not key=value"),
        ("a.npz?input=", "is not key=value"),
        ("a.npz?input=a&input=b", "option 'input' is given twice"),
    ],
)
def test_wrong_options(text, message):
    with pytest.raises(UsageError, match=message):
        split_binding(text)


def test_unknown_option_lists_the_known():
    with pytest.raises(UsageError, match=r"unknown option 'wher' \(options here: input, where\)"):
        check_options(split_binding("a.npz?wher=x"), ("where", "input"))


def test_option_types():
    binding = split_binding("a?n=3&scale=1/16&flag=true&names=a, b&memory_mib=0.5")
    assert integer_option(binding, "n", 1, 1) == 3
    assert integer_option(binding, "absent", 7, 1) == 7
    assert positive_option(binding, "scale") == 0.0625
    assert positive_option(binding, "absent") is None
    assert flag_option(binding, "flag")
    assert names_option(binding, "names") == ("a", "b")
    assert memory_bytes(binding) == 2**19
    assert memory_bytes(split_binding("a")) == 256 * 2**20


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda b: integer_option(b, "o", 1, 1), "0", "whole number, at least 1"),
        (lambda b: integer_option(b, "o", 1, 1), "1.5", "whole number, at least 1"),
        (lambda b: positive_option(b, "o"), "-1", "positive number"),
        (lambda b: positive_option(b, "o"), "1/0", "positive number"),
        (lambda b: positive_option(b, "o"), "nan", "positive number"),
        (lambda b: flag_option(b, "o"), "yes", "must be true or false"),
        (lambda b: names_option(b, "o"), "a,,b", "empty name"),
    ],
)
def test_wrong_values(read, value, message):
    with pytest.raises(UsageError, match=message):
        read(split_binding(f"a?o={value}"))


def test_a_path_that_is_not_there(tmp_path):
    (tmp_path / "here.npz").touch()
    assert absent_path(f"{tmp_path}/none.npz?input=x") == f"{tmp_path}/none.npz"
    assert absent_path(f"{tmp_path}/here.npz?input=x") is None
    assert absent_path("digits:?split=test") is None
