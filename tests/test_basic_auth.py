"""The Prometheus output: who may ask."""

from __future__ import annotations

import base64
import re
import threading

import pytest
import trio
from scraping import answers, request, server_of
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from trio_statskeeper._http import _basic_auth
from trio_statskeeper.prometheus import PrometheusExporter, hash_password

# scrypt's fastest; by another implementation than Python's.
FAST = "$scrypt$ln=1,r=1,p=1${}${}"
SALT = "c2FsdHNhbHQ"
DIGEST = "c2VjcmV0c2VjcmV0c2VjcmV0"
PASSWORD = "pass:wörd"  # noqa: S105


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(_basic_auth, "_LOG2_N", 1)


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def get(authorization=None, path="/metrics"):
    headers = [] if authorization is None else [f"Authorization: {authorization}"]
    return request(path, "GET", *headers)


@pytest.fixture
def exporter():
    return PrometheusExporter(users={"prométheus": hash_password(PASSWORD)})


async def status(exporter, *requests):
    return [status for status, _, _ in await answers(exporter, *requests)]


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/x"])
async def test_without_a_password_every_path_is_refused(exporter, path):
    [(status, headers, body)] = await answers(exporter, get(path=path))
    assert (status, body) == (401, b"Unauthorized\n")
    challenge = b'Basic realm="metrics", charset="UTF-8"'
    assert headers[b"www-authenticate"] == challenge


async def test_with_the_right_password_every_path_is_served(exporter):
    right = basic("prométheus", PASSWORD)
    as_others_write_it = right.replace("Basic", "bASIC ")
    assert await status(
        exporter, get(right), get(as_others_write_it), get(right, "/"), get(right, "/x")
    ) == [200, 200, 200, 404]


@pytest.mark.parametrize(
    "authorization",
    [
        basic("prométheus", "wrong"),
        basic("prométheus", ""),
        basic("prometheus", PASSWORD),
        basic("", PASSWORD),
        "",
        "Basic",
        "Basic ",
        "Basic =",
        "Basic a",
        "Basic a b",
        "Basic \xff",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + "A" * 8_000,
        "Bearer " + base64.b64encode(b"x:y").decode(),
        f"{basic('prométheus', PASSWORD)}\r\nAuthorization: x",
    ],
)
async def test_without_the_right_password_everything_is_refused(exporter, authorization):
    assert await status(exporter, get(authorization), get(authorization)) == [401, 401]


@pytest.fixture
def checked(monkeypatch):
    """The passwords that are checked."""
    checked = []
    digest = _basic_auth._Scrypt.digest

    def noted(scrypt, password, size):
        checked.append(password)
        assert threading.current_thread() is not threading.main_thread()
        return digest(scrypt, password, size)

    monkeypatch.setattr(_basic_auth._Scrypt, "digest", noted)
    return checked


async def test_a_password_is_checked_once_whether_right_or_wrong(exporter, checked):
    right, wrong = basic("prométheus", PASSWORD), basic("prométheus", "x")
    assert await status(exporter, *[get(right), get(wrong)] * 3) == [200, 401] * 3
    assert checked == [PASSWORD.encode(), b"x"]


async def test_an_unknown_user_takes_as_long_as_a_wrong_password(exporter, checked):
    unknown = basic("x", PASSWORD)
    assert await status(exporter, get(unknown), get(unknown)) == [401, 401]
    assert checked == [PASSWORD.encode()]


async def test_only_so_many_wrong_passwords_are_remembered(exporter, checked):
    auth = _basic_auth.BasicAuth(exporter.users, 2)
    passwords = [str(number) for number in range(150)]
    for password in passwords:
        assert not await auth.allows(basic("x", password))
    assert len(auth._rejected) == 100
    assert await auth.allows(basic("prométheus", PASSWORD))
    checked.clear()
    for password in "149", "50", "49":
        assert not await auth.allows(basic("x", password))
    assert checked == [b"49"]


async def test_no_password_is_remembered_in_the_clear(exporter):
    auth = _basic_auth.BasicAuth(exporter.users, 2)
    for password in PASSWORD, "another":
        await auth.allows(basic("prométheus", password))
    for digest in {*auth._accepted, *auth._rejected}:
        assert len(digest) == 64
    again = _basic_auth.BasicAuth(exporter.users, 2)
    await again.allows(basic("prométheus", PASSWORD))
    assert again._accepted.isdisjoint(auth._accepted)


@pytest.fixture
def stuck(monkeypatch):
    """An event that ends all checks, and how many there are."""
    event, checks = threading.Event(), []

    def wait(hash_, password):
        checks.append(password)
        assert event.wait(30)
        return password == PASSWORD.encode()

    monkeypatch.setattr(_basic_auth._Hash, "matches", wait)
    yield event, checks
    event.set()


async def test_one_password_is_checked_at_a_time_and_those_who_are_known_need_not_wait(
    exporter, stuck, nursery
):
    event, checks = stuck
    auth = _basic_auth.BasicAuth(exporter.users, 10)
    right = basic("prométheus", PASSWORD)
    allowed = []

    async def ask(authorization):
        allowed.append(await auth.allows(authorization))

    event.set()
    await ask(right)
    event.clear()
    for password in "abba":
        nursery.start_soon(ask, basic("x", password))
    await wait_all_tasks_blocked()
    while len(checks) < 2:
        await trio.sleep(0.001)
    await ask(right)
    assert (allowed, len(checks)) == ([True, True], 2)
    event.set()
    while len(allowed) < 6:
        await trio.sleep(0.001)
    assert allowed[2:] == [False] * 4
    assert sorted(checks[1:]) == [b"a", b"b"]


async def test_a_check_that_is_cancelled_ends_at_once_and_keeps_its_thread(exporter, stuck):
    event, checks = stuck
    auth = _basic_auth.BasicAuth(exporter.users, 10)
    for password in "a", "b":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auth.allows, basic("x", password))
            await wait_all_tasks_blocked()
            while not checks:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
    assert checks == [b"a"]
    event.set()
    assert await auth.allows(basic("prométheus", PASSWORD))


async def wait_until(predicate):
    while not predicate():
        await trio.sleep(0.001)


async def test_new_passwords_wait_for_half_of_the_checks_and_repeated_ones_for_all(
    exporter, stuck, nursery
):
    event, _ = stuck
    auth = _basic_auth.BasicAuth(exporter.users, 4)
    busy = _basic_auth.TooManyChecks
    for password in "ab":
        nursery.start_soon(auth.allows, basic("x", password))
    await wait_all_tasks_blocked()
    right = basic("prométheus", PASSWORD)
    for authorization in right, basic("x", "c"):
        with pytest.raises(busy):
            await auth.allows(authorization)
    allowed = []

    async def ask(authorization):
        allowed.append(await auth.allows(authorization))

    nursery.start_soon(ask, right)
    nursery.start_soon(ask, basic("x", "a"))  # it shares the check of the first
    await wait_all_tasks_blocked()
    with pytest.raises(busy):
        await auth.allows(basic("x", "c"))
    event.set()
    await wait_until(lambda: len(allowed) == 2)
    assert sorted(allowed) == [False, True]
    assert not await auth.allows(basic("x", "d"))  # all checks have ended
    assert len(auth._asked) == 1  # which has no result yet


async def test_few_passwords_that_were_not_checked_are_remembered(
    exporter, stuck, nursery, monkeypatch
):
    monkeypatch.setattr(_basic_auth, "_MAX_ASKED", 3)
    event, _ = stuck
    auth = _basic_auth.BasicAuth(exporter.users, 2)
    nursery.start_soon(auth.allows, basic("x", "a"))
    await wait_all_tasks_blocked()
    for password in "bcdeb":
        with pytest.raises(_basic_auth.TooManyChecks):
            await auth.allows(basic("x", password))
    assert len(auth._asked) == 3
    event.set()
    assert not await auth.allows(basic("x", "d"))


async def connect(nursery, server):
    """Return the client's end of a connection, which is served, and then closed."""
    ours, stream = memory_stream_pair()

    async def serve():
        async with stream:
            await server.serve_stream(stream)

    nursery.start_soon(serve)
    await wait_all_tasks_blocked()
    return ours


async def test_a_password_that_is_being_checked_keeps_its_connection(
    exporter, stuck, nursery
):
    event, checks = stuck
    exporter = PrometheusExporter(users=exporter.users, max_connections=2)
    server = server_of(exporter)
    first = await connect(nursery, server)
    await first.send_all(get(basic("prométheus", PASSWORD)))
    await wait_until(lambda: checks)
    for _ in range(5):  # each closes the one before
        idle = await connect(nursery, server)
    second = await connect(nursery, server)
    await second.send_all(get(basic("x", "y")))
    with pytest.raises(trio.BrokenResourceError):  # it is closed
        await idle.send_all(b"x")
    event.set()
    assert (await first.receive_some()).startswith(b"HTTP/1.1 200 ")
    assert (await second.receive_some()).startswith(b"HTTP/1.1 503 ")


async def test_a_connection_with_a_wrong_password_is_not_the_next_to_be_closed(
    exporter, nursery
):
    server = server_of(PrometheusExporter(users=exporter.users, max_connections=2))
    wrong = await connect(nursery, server)
    idle = await connect(nursery, server)
    for _ in range(2):  # the second time, the result is known
        await wrong.send_all(get(basic("x", "y")))
        assert (await wrong.receive_some()).startswith(b"HTTP/1.1 401 ")
        another = await connect(nursery, server)
        with pytest.raises(trio.BrokenResourceError):  # it is closed
            await idle.send_all(b"x")
        idle = another
    nursery.cancel_scope.cancel()


async def test_a_check_is_remembered_even_if_its_client_has_left(exporter, stuck, nursery):
    event, checks = stuck
    server = server_of(exporter)
    client = await connect(nursery, server)
    right = basic("prométheus", PASSWORD)
    await client.send_all(get(right))
    await wait_until(lambda: checks)
    await client.aclose()
    event.set()
    await wait_until(lambda: server._basic_auth._accepted)
    assert await server._basic_auth.allows(right)
    assert len(checks) == 1


async def test_an_unknown_user_takes_as_long_as_the_costliest_hash(monkeypatch):
    costs = []

    def noted(hash_, _):
        costs.append(hash_.scrypt.cost)
        return True

    monkeypatch.setattr(_basic_auth._Hash, "matches", noted)
    users = {
        name: f"$scrypt$ln={log2_n},r=1,p=1${SALT}${DIGEST}"
        for name, log2_n in (("a", 2), ("b", 5), ("c", 3))
    }
    assert await status(PrometheusExporter(users=users), get(basic("x", "y"))) == [401]
    assert costs == [2**5]


async def test_a_check_that_fails_is_logged_and_the_server_goes_on(
    exporter, monkeypatch, caplog
):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_basic_auth._Hash, "matches", fail)
    assert await status(exporter, get(basic("x", "y")), get()) == [500, 401]
    assert "can't start new thread" in caplog.text


# Hashes


def test_a_hash_says_how_it_is_computed_and_has_a_salt(monkeypatch):
    monkeypatch.undo()
    hashes = [hash_password("password") for _ in range(2)]
    for text in hashes:
        assert re.fullmatch(
            r"\$scrypt\$ln=14,r=8,p=1\$[\w+/]{22}\$[\w+/]{43}", text, re.ASCII
        )
    assert hashes[0] != hashes[1]


async def test_hashes_of_other_programs_are_understood():
    # A test vector of RFC 7914: https://www.rfc-editor.org/rfc/rfc7914#section-12
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    salt, encoded = (
        base64.b64encode(part).decode().rstrip("=") for part in (b"SodiumChloride", digest)
    )
    text = f"$scrypt$ln=14,r=8,p=1${salt}${encoded}"
    exporter = PrometheusExporter(users={"a": text})
    assert await status(exporter, get(basic("a", "pleaseletmein"))) == [200]


@pytest.mark.parametrize("costs", ["ln=15,r=1,p=1", "ln=16,r=2,p=1", "ln=1,r=1,p=16"])
async def test_a_hash_that_is_accepted_can_be_checked(costs):
    exporter = PrometheusExporter(users={"a": f"$scrypt${costs}${SALT}${DIGEST}"})
    assert await status(exporter, get(basic("a", "b"))) == [401]


def test_a_password_must_be_a_string():
    with pytest.raises(TypeError, match="password must be a string, got bytes"):
        hash_password(b"secret")


@pytest.mark.parametrize(
    ("users", "error", "message"),
    [
        ("prometheus:secret", TypeError, "users must be a mapping or None, got str"),
        ({}, ValueError, "users must not be empty; None disables"),
        ({"a": "secret"}, ValueError, "user 'a': its password must be given as a hash by"),
        ({"a": b"secret"}, TypeError, "user 'a': the hash must be a string, got bytes"),
        ({1: FAST.format(SALT, DIGEST)}, TypeError, "user 1: expected a string, got 1"),
        ({"a:b": FAST.format(SALT, DIGEST)}, ValueError, "user 'a:b': the name must be"),
        ({"a\n": FAST.format(SALT, DIGEST)}, ValueError, r"user 'a\n': the name must be"),
        ({"\udcff": FAST.format(SALT, DIGEST)}, ValueError, "the name must be printable"),
        ({"a": FAST.format(SALT, "secre")}, ValueError, "user 'a': its hash is damaged: "),
        ({"a": "$scrypt$ln=0,r=8,p=1$c2FsdA$c2Vj"}, ValueError, "got ln=0,r=8,p=1"),
        ({"a": "$scrypt$ln=1,r=0,p=1$c2FsdA$c2Vj"}, ValueError, "got ln=1,r=0,p=1"),
        ({"a": "$scrypt$ln=1,r=1,p=0$c2FsdA$c2Vj"}, ValueError, "got ln=1,r=1,p=0"),
        ({"a": "$scrypt$ln=1,r=1,p=17$c2FsdA$c2Vj"}, ValueError, "p must be from 1 to 16"),
        ({"a": "$scrypt$ln=17,r=8,p=1$c2FsdA$c2Vj"}, ValueError, "at most 64 MiB"),
        ({"a": "$scrypt$ln=16,r=9,p=1$c2FsdA$c2Vj"}, ValueError, "at most 64 MiB"),
        (
            {"a": f"$scrypt$ln=16,r=1,p=1${SALT}${DIGEST}"},
            ValueError,
            "and < 16 * r, and p",
        ),
        ({"a": FAST.format(SALT, "c2VjcmV0c2VjcmV0c2Vj")}, ValueError, "got 8 and 15"),
        (
            {"a": FAST.format("c2FsdHNhbA", DIGEST)},
            ValueError,
            "bytes of digest, got 7 and",
        ),
        ({"a": "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5"}, ValueError, "must be given as"),
    ],
)
def test_users_are_validated_and_nothing_secret_is_shown(users, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        PrometheusExporter(users=users)
    assert "sec" not in str(raised.value)
    assert "c2Vj" not in str(raised.value)


def test_a_repr_does_not_show_hashes(exporter):
    assert "scrypt" not in repr(exporter)
