"""Additional labels: their names, texts, templates and functions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pytest

from trio_statskeeper import Endpoint, StatsKeeper
from trio_statskeeper._labels import compile_labels


class Host(StrEnum):
    A = "a"


class Pairs(Mapping):
    """A mapping whose names may be equal."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def __getitem__(self, name):
        return dict(self.pairs)[name]

    def __iter__(self):
        return (name for name, _ in self.pairs)

    def __len__(self):
        return len(self.pairs)

    def items(self):
        return self.pairs


def additional_labels(labels):
    keeper = StatsKeeper(ptype="p", name="n", targets=list, additional_labels=labels)
    return keeper.additional_labels


# Values


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("@target.name@", "a"),
        ("@target.port@", "80"),
        ("@target.label.zone@", "b"),
        ("@target.label.a.b c@", "d"),
        ("@target.label.rack@", ""),
    ],
)
def test_a_template_is_compiled_to_a_function_of_the_target(template, value):
    endpoint = Endpoint("a", 80, {"zone": "b", "a.b c": "d"})
    [(name, label)] = compile_labels(additional_labels({"x": template}))
    assert (name, label(endpoint)) == ("x", value)


def test_the_attribute_keeps_templates():
    given = {"env": "prod", "zone": "@target.label.zone@", "port": "@target.port@"}
    assert additional_labels(given) == given


@pytest.mark.parametrize(("port", "value"), [(None, ""), (0, "0")])
def test_a_missing_port_is_an_empty_string(port, value):
    [(_, label)] = compile_labels({"x": "@target.port@"})
    assert label(Endpoint("a", port)) == value


@pytest.mark.parametrize(
    "text", ["", "prod", "@prod@", "@target.name", "target.name@", "@"]
)
def test_text_that_is_not_a_template_is_kept(text):
    assert compile_labels(additional_labels({"x": text})) == (("x", text),)


def test_a_label_may_be_any_function():
    assert compile_labels(additional_labels({"x": repr})) == (("x", repr),)


@pytest.mark.parametrize(
    "template",
    [
        "@target.nom@",
        "@target.Name@",
        "@target.@",
        "@target.label@",
        "@target.label.@",
        "x-@target.name@",
        "@target.name@-x",
        "@target.name@\n",
        "@target.name@:@target.port@",
        "x@target.label.zone@",
        "x-@target.nom\n@-x",
    ],
)
def test_an_unknown_or_partial_template_is_refused_and_quoted(template):
    with pytest.raises(ValueError, match="unknown template") as caught:
        additional_labels({"env": template})
    assert repr(template) in str(caught.value)
    assert "'env'" in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, True, b"prod", ["prod"]])
def test_a_label_is_a_string_or_a_function(value):
    with pytest.raises(TypeError, match="the label 'env' must be a string or a function"):
        additional_labels({"env": value})


def test_an_error_quotes_the_label():
    with pytest.raises(TypeError) as caught:
        additional_labels({"env": 7})
    assert str(caught.value) == (
        "the label 'env' must be a string or a function of the endpoint, got 7"
    )
    with pytest.raises(ValueError) as caught:
        additional_labels({"env": "@target.nom@"})
    assert str(caught.value) == (
        "unknown template '@target.nom@' for the label 'env': it must be "
        "@target.name@, @target.port@ or @target.label.KEY@, and nothing else; "
        "for other texts, give a function of the endpoint"
    )


# Names


@pytest.mark.parametrize("name", ["env", "Env", "_env", "e", "_", "env_2", "e__v", "dst_"])
def test_the_name_of_a_label_is_valid_in_prometheus(name):
    assert additional_labels({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    ["", "__env", "__", "2env", "e-v", "e.v", "e v", "env\n", "\nenv", "é", "env\u0662"],
)
def test_an_invalid_label_name_is_refused_and_quoted(name):
    with pytest.raises(ValueError, match="is not a valid label name") as caught:
        additional_labels({name: "x"})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 1, b"env", ("env",)])
def test_the_name_of_a_label_is_a_string(name):
    with pytest.raises(TypeError) as caught:
        additional_labels({name: "x"})
    assert str(caught.value) == f"a label's name must be a string, got {name!r}"


@pytest.mark.parametrize("name", ["ptype", "probe", "dst", "le"])
def test_the_names_of_the_keepers_labels_are_reserved(name):
    with pytest.raises(ValueError, match=f"the label '{name}' is reserved"):
        additional_labels({name: "x"})


def test_a_label_given_twice_is_refused():
    with pytest.raises(ValueError, match="the label 'env' is given twice"):
        additional_labels(Pairs(("env", "prod"), ("zone", "b"), ("env", "test")))


def test_additional_labels_keep_their_order():
    assert list(additional_labels({"b": "1", "a": "2"})) == ["b", "a"]


def test_additional_labels_are_copied():
    given = {"env": "prod"}
    kept = additional_labels(given)
    given["env"] = "test"
    given["zone"] = "b"
    assert kept == {"env": "prod"}


def test_additional_labels_are_read_only():
    with pytest.raises(TypeError):
        additional_labels({"env": "prod"})["env"] = "test"


def test_the_text_of_a_label_becomes_a_plain_string():
    kept = additional_labels({"env": Host.A})["env"]
    assert type(kept) is str
    assert kept == "a"
