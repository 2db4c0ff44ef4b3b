"""Endpoint, and what a keeper takes for additional labels."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError

from trio_statskeeper import Endpoint, StatsKeeper
from trio_statskeeper._endpoint import compiled_labels, targets_function


class Host(StrEnum):
    A = "a"


class Port(IntEnum):
    HTTP = 80


class Pairs(Mapping):
    """A mapping that does not mind equal names."""

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


# Endpoint


def test_an_endpoint_needs_no_more_than_a_name():
    endpoint = Endpoint("a")
    assert (endpoint.name, endpoint.port, dict(endpoint.labels)) == ("a", None, {})


@pytest.mark.parametrize(
    ("name", "port", "key"),
    [
        ("host.example.com", None, "host.example.com"),
        ("host.example.com", 80, "host.example.com:80"),
        ("host.example.com", 0, "host.example.com:0"),
        ("192.0.2.1", 65535, "192.0.2.1:65535"),
        ("2001:db8::1", None, "2001:db8::1"),
        ("2001:db8::1", 80, "[2001:db8::1]:80"),
        ("::1", 0, "[::1]:0"),
        ("[2001:db8::1]", None, "[2001:db8::1]"),
        ("[2001:db8::1]", 80, "[2001:db8::1]:80"),
        ("http://host/", None, "http://host/"),
        (" ", None, " "),
    ],
)
def test_the_key_is_the_name_and_the_port_if_there_is_one(name, port, key):
    assert Endpoint(name, port).key == key


def test_the_key_follows_from_the_rest():
    assert attrs.evolve(Endpoint("a", 80), port=443).key == "a:443"
    with pytest.raises(TypeError):
        Endpoint("a", key="b")


def test_the_name_of_an_endpoint_is_not_empty():
    with pytest.raises(ValueError, match=r"^an endpoint's name can't be empty$"):
        Endpoint("")


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_the_name_of_an_endpoint_is_a_string(name):
    with pytest.raises(TypeError, match="expected a string, got"):
        Endpoint(name)


@pytest.mark.parametrize("port", ["80", 80.0, True, b"80"])
def test_the_port_of_an_endpoint_is_a_whole_number(port):
    with pytest.raises(TypeError, match=f"port must be a whole number .* got {port!r}"):
        Endpoint("a", port)


@pytest.mark.parametrize("port", [-1, 65536, 10**30])
def test_the_port_of_an_endpoint_is_from_0_to_65535(port):
    with pytest.raises(ValueError, match=f"from 0 to 65535, got {port}"):
        Endpoint("a", port)


@pytest.mark.parametrize("labels", [{"zone": 1}, {"zone": None}, {1: "b"}, {b"zone": "b"}])
def test_the_labels_of_an_endpoint_are_strings(labels):
    with pytest.raises(TypeError, match="expected a string, got"):
        Endpoint("a", labels=labels)


def test_an_endpoint_does_not_change_with_the_labels_that_it_was_made_of():
    labels = {"zone": "b"}
    endpoint = Endpoint("a", labels=labels)
    labels["zone"] = "c"
    labels["rack"] = "1"
    assert endpoint.labels == {"zone": "b"}


def test_the_labels_of_an_endpoint_can_only_be_read():
    with pytest.raises(TypeError):
        Endpoint("a", labels={"zone": "b"}).labels["zone"] = "c"


@pytest.mark.parametrize("field", ["name", "port", "labels", "key"])
def test_an_endpoint_is_frozen(field):
    endpoint = Endpoint("a")
    with pytest.raises(FrozenInstanceError):
        setattr(endpoint, field, getattr(endpoint, field))


def test_an_endpoint_keeps_no_subclass_of_its_strings_and_port():
    endpoint = Endpoint(Host.A, Port.HTTP, {Host.A: Host.A})
    ((label, value),) = endpoint.labels.items()
    kept = (endpoint.name, endpoint.port, label, value)
    assert [type(one) for one in kept] == [str, int, str, str]
    assert endpoint == Endpoint("a", 80, {"a": "a"})


def test_equal_endpoints_hash_alike():
    one, same = Endpoint("a", 80, {"zone": "b"}), Endpoint("a", 80, {"zone": "b"})
    assert one == same
    assert hash(one) == hash(same)


@pytest.mark.parametrize(
    "other",
    [
        Endpoint("b", 80, {"zone": "b"}),
        Endpoint("a", 443, {"zone": "b"}),
        Endpoint("a", None, {"zone": "b"}),
        Endpoint("a", 80, {"zone": "c"}),
        Endpoint("a", 80),
    ],
)
def test_endpoints_differ_by_name_and_port_and_labels(other):
    assert Endpoint("a", 80, {"zone": "b"}) != other


def test_endpoints_of_one_key_may_differ():
    one, other = Endpoint("::1", 80), Endpoint("[::1]", 80)
    assert one.key == other.key
    assert one != other


# The values of additional labels


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
def test_a_template_stands_for_a_function_of_the_target(template, value):
    endpoint = Endpoint("a", 80, {"zone": "b", "a.b c": "d"})
    [(name, label)] = compiled_labels(additional_labels({"x": template}))
    assert (name, label(endpoint)) == ("x", value)


def test_a_template_stays_what_it_was_given_as():
    given = {"env": "prod", "zone": "@target.label.zone@", "port": "@target.port@"}
    assert additional_labels(given) == given


@pytest.mark.parametrize(("port", "value"), [(None, ""), (0, "0")])
def test_a_missing_port_is_an_empty_string(port, value):
    [(_, label)] = compiled_labels({"x": "@target.port@"})
    assert label(Endpoint("a", port)) == value


@pytest.mark.parametrize(
    "text", ["", "prod", "@prod@", "@target.name", "target.name@", "@"]
)
def test_what_is_no_template_is_a_text(text):
    assert compiled_labels(additional_labels({"x": text})) == (("x", text),)


def test_a_label_may_be_any_function():
    assert compiled_labels(additional_labels({"x": repr})) == (("x", repr),)


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


def test_what_is_wrong_with_a_label_is_told_and_quoted():
    with pytest.raises(TypeError) as caught:
        additional_labels({"env": 7})
    assert str(caught.value) == (
        "the label 'env' must be a string or a function of the endpoint, got 7"
    )
    with pytest.raises(ValueError) as caught:
        additional_labels({"env": "@target.nom@"})
    assert str(caught.value) == (
        "unknown template '@target.nom@' for the label 'env': it must be "
        "@target.name@, @target.port@ or @target.label.KEY@, and nothing besides; "
        "for anything else give a function of the endpoint"
    )


# Their names


@pytest.mark.parametrize("name", ["env", "Env", "_env", "e", "_", "env_2", "e__v", "dst_"])
def test_a_label_is_named_as_in_prometheus(name):
    assert additional_labels({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    ["", "__env", "__", "2env", "e-v", "e.v", "e v", "env\n", "\nenv", "é", "env\u0662"],
)
def test_a_label_of_an_invalid_name_is_refused_and_quoted(name):
    with pytest.raises(ValueError, match="is not a valid label name") as caught:
        additional_labels({name: "x"})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 1, b"env", ("env",)])
def test_the_name_of_a_label_is_a_string(name):
    with pytest.raises(TypeError) as caught:
        additional_labels({name: "x"})
    assert str(caught.value) == f"a label's name must be a string, got {name!r}"


@pytest.mark.parametrize("name", ["ptype", "probe", "dst", "le"])
def test_a_label_can_not_clash_with_the_keepers_own(name):
    with pytest.raises(ValueError, match=f"the label '{name}' is reserved"):
        additional_labels({name: "x"})


def test_a_label_is_given_once():
    with pytest.raises(ValueError, match="the label 'env' is given twice"):
        additional_labels(Pairs(("env", "prod"), ("zone", "b"), ("env", "test")))


def test_additional_labels_stay_in_their_order():
    assert list(additional_labels({"b": "1", "a": "2"})) == ["b", "a"]


def test_additional_labels_do_not_change_with_what_they_were_made_of():
    given = {"env": "prod"}
    kept = additional_labels(given)
    given["env"] = "test"
    given["zone"] = "b"
    assert kept == {"env": "prod"}


def test_additional_labels_can_only_be_read():
    with pytest.raises(TypeError):
        additional_labels({"env": "prod"})["env"] = "test"


def test_an_additional_label_keeps_no_subclass_of_its_text():
    kept = additional_labels({"env": Host.A})["env"]
    assert type(kept) is str
    assert kept == "a"


def test_endpoints_without_labels_share_what_they_have_for_them():
    assert Endpoint("a").labels is Endpoint("b", labels={}).labels


# What keepers and probers take for targets


def test_a_function_of_targets_is_taken_as_it_is():
    def targets() -> list[Endpoint]:
        return [Endpoint("a")]

    assert targets_function(targets) is targets


def test_a_sequence_of_targets_is_copied():
    listed = [Endpoint("a"), Endpoint("b")]
    targets = targets_function(listed)
    listed.clear()
    assert list(targets()) == [Endpoint("a"), Endpoint("b")]


@pytest.mark.parametrize("targets", ["a", Endpoint("a"), None, {Endpoint("a")}])
def test_what_is_neither_a_function_nor_a_sequence_of_targets_is_refused(targets):
    with pytest.raises(TypeError, match="targets must be a sequence of Endpoints, or"):
        targets_function(targets)


def test_an_item_that_is_not_an_endpoint_is_refused_and_quoted():
    with pytest.raises(TypeError, match="targets must be Endpoints, got 'b'"):
        targets_function([Endpoint("a"), "b"])
