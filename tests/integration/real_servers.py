"""Real servers for the tests: a Prometheus, and a receiver of OTLP.

Missing servers are fetched into .cache/servers if CI is set; otherwise their tests are
skipped. All calls block: a Trio test makes them with `trio.to_thread.run_sync`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/servers"
TIMEOUT = 60.0


def find_prometheus() -> tuple[Path, Path]:
    """Return the programs prometheus and promtool."""
    server, tool = shutil.which("prometheus"), shutil.which("promtool")
    if server and tool:
        return Path(server), Path(tool)
    folder = CACHE / "prometheus"
    ensure(folder, unpack_prometheus, by_hand="apt-get install prometheus")
    return folder / "usr/bin/prometheus", folder / "usr/bin/promtool"


def find_newer_prometheus() -> Path:
    """Return the program prometheus of Debian's next release."""
    folder = CACHE / "newer-prometheus"
    unpack_it = partial(unpack, "prometheus", release="forky")
    ensure(folder, unpack_it, by_hand="nobody installs two releases, so set CI")
    return folder / "usr/bin/prometheus"


def find_mockotlpserver() -> Path:
    """Return the folder whose node_modules have the receiver."""
    if not shutil.which("node"):
        missing("no node here: apt-get install nodejs npm")
    version = "0.10.0"
    folder = CACHE / f"mockotlpserver-{version}"
    install = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix")
    package = f"@elastic/mockotlpserver@{version}"
    by_hand = f"npm install --prefix {folder.relative_to(ROOT)} {package}"
    ensure(folder, lambda into: must_run(*install, into, package), by_hand=by_hand)
    return folder


def find_victoria_metrics() -> Path:
    """Return the program, which Debian has from its next release on."""
    program = shutil.which("victoria-metrics")
    if program:
        return Path(program)
    folder = CACHE / "victoria-metrics"
    unpack_it = partial(unpack, "victoria-metrics", release="forky")
    ensure(folder, unpack_it, by_hand="apt-get install victoria-metrics")
    return folder / "usr/bin/victoria-metrics"


class Chromium(NamedTuple):
    browser: Path
    driver: Path
    env: dict[str, str]  # for both


def find_chromium() -> Chromium:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser and driver:
        return Chromium(Path(browser), Path(driver), {})
    folder = CACHE / "chromium"
    packages = "chromium", "chromium-driver"
    unpack_them = partial(unpack_with_dependencies, packages)
    ensure(folder, unpack_them, by_hand=f"apt-get install {' '.join(packages)}")
    libraries = {str(library.parent) for library in folder.rglob("lib*.so*")}
    env = {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
    if (folder / "etc/fonts").exists():
        env["FONTCONFIG_PATH"] = str(folder / "etc/fonts")
    # /usr/bin/chromium is a script that needs to be installed.
    return Chromium(
        folder / "usr/lib/chromium/chromium", folder / "usr/bin/chromedriver", env
    )


def find_axe() -> str:
    """Return the script that finds what makes a page hard to use for some people."""
    version = "4.14.1"
    folder = CACHE / f"axe-core-{version}"
    install = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix")
    package = f"axe-core@{version}"
    by_hand = f"npm install --prefix {folder.relative_to(ROOT)} {package}"
    ensure(folder, lambda into: must_run(*install, into, package), by_hand=by_hand)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


def ensure(folder: Path, fill: Callable[[Path], object], by_hand: str) -> None:
    if folder.exists():
        return
    if "CI" not in os.environ:
        missing(f"no {folder.name} here: {by_hand}")
    CACHE.mkdir(parents=True, exist_ok=True)
    # An interrupted download must not look complete to the next run.
    with TemporaryDirectory(dir=CACHE) as unfinished:
        filled = Path(unfinished, folder.name)
        filled.mkdir()
        fill(filled)
        try:
            filled.rename(folder)
        except OSError:
            # A concurrent run was faster.
            if not folder.exists():
                raise


def unpack_prometheus(folder: Path) -> None:
    unpack("prometheus", folder)


def unpack(package: str, folder: Path, release: str | None = None) -> None:
    """Unpack a package of Debian's; installing it needs root, and may start a service.

    With a release, it is that of another release than this machine's.
    """
    with TemporaryDirectory() as downloads:
        download = ("apt-get", "download", package)
        if release or run(*download, cwd=downloads):
            # The package lists are missing or old; own ones need no root either.
            own = ("-o", f"Dir::State={downloads}", "-o", f"Dir::Cache={downloads}")
            # Else apt, run by root, is another user, who may not write to a private folder.
            own += ("-o", "APT::Sandbox::User=root")
            if release:
                own += ("-o", "Dir::Etc::SourceParts=/dev/null")
                own += ("-o", f"Dir::Etc::SourceList={downloads}/sources.list")
                key = "/usr/share/keyrings/debian-archive-keyring.gpg"
                source = f"deb [signed-by={key}] {debian_mirror()} {release} main\n"
                Path(downloads, "sources.list").write_text(source)
            # It may fail for some other source; what counts is the download.
            run("apt-get", *own, "update", cwd=downloads)
            must_run(*download, *own, cwd=downloads)
        [archive] = Path(downloads).glob(f"{package}_*.deb")
        must_run("dpkg", "-x", archive, folder)


def unpack_with_dependencies(packages: Iterable[str], folder: Path) -> None:
    """Unpack packages of Debian's with all that they need and that is not installed."""
    with TemporaryDirectory() as downloads:
        own = ("-o", f"Dir::State={downloads}", "-o", f"Dir::Cache={downloads}")
        own += ("-o", "Dir::State::Status=/var/lib/dpkg/status")
        own += ("-o", "APT::Sandbox::User=root")
        run("apt-get", *own, "update", cwd=downloads)
        install = ("install", "--simulate", "--no-install-recommends", *packages)
        plan = subprocess.run(
            ("apt-get", *own, *install), capture_output=True, text=True, check=False
        )
        needed = re.findall(r"^Inst (\S+)", plan.stdout, re.MULTILINE)
        must_run("apt-get", *own, "download", *needed, cwd=downloads)
        for archive in Path(downloads).glob("*.deb"):
            must_run("dpkg", "-x", archive, folder)


def debian_mirror() -> str:
    """Return where this machine has Debian from."""
    for sources in sorted(Path("/etc/apt").glob("sources.list*/*")):
        found = re.search(
            r"^URIs: *(\S+)|^deb .*?(http\S+)", sources.read_text(), re.MULTILINE
        )
        if found and "debian" in (mirror := found[1] or found[2]):
            return mirror
    return "http://deb.debian.org/debian"


def run(*command: str | Path, cwd: str | None = None) -> int:
    """Return the status; what it prints is shown by pytest when it fails."""
    if not shutil.which(command[0]):
        missing(f"no {command[0]} here")
    return subprocess.run(command, cwd=cwd, check=False, timeout=600).returncode


def must_run(*command: str | Path, cwd: str | None = None) -> None:
    if status := run(*command, cwd=cwd):
        missing(f"{shlex.join(map(str, command))} has failed with status {status}")


def missing(reason: str) -> Any:
    if "CI" in os.environ:
        pytest.fail(f"with CI set all servers are needed, but: {reason}", pytrace=False)
    pytest.skip(reason)


def free_port(port: int = 0) -> int:
    """Return this port, or any; one that is in use is an OSError."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        return listener.getsockname()[1]


def get(port: int, path: str, timeout: float = TIMEOUT) -> tuple[int, bytes]:
    # Unlike urllib it never asks a proxy.
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


class EndedError(AssertionError):
    pass


class Server:
    """A process that listens on 127.0.0.1 only; stopped or killed, it can start again.

    It starts again on the same port, with all that it had kept. Its output is the test's:
    pytest shows it when the test fails.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> tuple[list[str | Path], Path | None]:
        """Return the command, and the folder to run it in."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it is ready."""
        assert self._process is None
        if self.port:
            # Else it would be the other server there that seems ready.
            free_port(self.port)
            self._start()
            return
        self.port = free_port()
        try:
            self._start()
        except EndedError:
            # Another process may have taken the port just before.
            self.port = free_port()
            self._start()

    def _start(self) -> None:
        command, folder = self._command()
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
        try:
            self._wait_for("it is ready", self._answers, bool, TIMEOUT)
            self._check_running()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        if self._process is not None:
            try:
                self._check_running()
                self._process.terminate()
                self._process.wait(TIMEOUT)
            finally:
                self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return self._is_ready()
        except (OSError, HTTPException):
            return False

    def _check_running(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise EndedError(f"{type(self).__name__} does not run; its output may tell why")

    def _wait_for(
        self,
        what: str,
        result_now: Callable[[], Any],
        condition: Callable[[Any], object],
        timeout: float,
    ) -> Any:
        deadline = time.monotonic() + timeout
        while not condition(result := result_now()):
            self._check_running()
            if time.monotonic() > deadline:
                last = pformat(result)
                raise AssertionError(f"{timeout} s are over; last {what} was\n{last}")
            time.sleep(0.05)
        return result


class Sample(NamedTuple):
    labels: dict[str, str]  # with __name__, instance and job
    value: float


class Series(NamedTuple):
    labels: dict[str, str]
    samples: list[tuple[float, float]]  # Unix seconds, value


class Prometheus(Server):
    """A Prometheus that scrapes /metrics of `targets`, each as "127.0.0.1:port".

    Further options are those of a `scrape_config`. At the same interval, it evaluates the
    rules in rules/ of its folder.

    It takes remote writes at /api/v1/write, too.

    The first scrape comes about five seconds after the start, however short the interval.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        targets: Iterable[str],
        scrape_interval: str,
        features: str = "",
        **options: Any,
    ) -> None:
        super().__init__()
        self._program = program
        self._folder = folder
        self._features = features
        scrape = {
            "job_name": "tests",
            "static_configs": [{"targets": list(targets)}],
            **options,
        }
        # JSON is YAML, too.
        config = {
            "global": {
                "scrape_interval": scrape_interval,
                "evaluation_interval": scrape_interval,
            },
            "scrape_configs": [scrape],
            "rule_files": [str(folder / "rules/*.yml")],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))

    def _command(self):
        return [
            self._program,
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
            f"--enable-feature={self._features}",
        ], None

    def _is_ready(self):
        return get(self.port, "/-/ready", timeout=1)[0] == 200

    def query(self, expr: str) -> list[Sample]:
        """Return what an instant query for a vector finds now."""
        return [
            Sample(found["metric"], float(found["value"][1]))
            for found in self._query(expr, "vector")
        ]

    def series(self, selector: str) -> list[Series]:
        """Return the samples as they were scraped: `series("probe_total[5m]")`."""
        return [
            Series(found["metric"], [(at, float(value)) for at, value in found["values"]])
            for found in self._query(selector, "matrix")
        ]

    def _query(self, expr: str, result_type: str) -> list[dict[str, Any]]:
        status, body = get(self.port, f"/api/v1/query?{urlencode({'query': expr})}")
        assert status == 200, body
        data = json.loads(body)["data"]
        assert data["resultType"] == result_type, data
        return data["result"]

    def wait_for(
        self,
        expr: str,
        condition: Callable[[list[Sample]], object],
        timeout: float = TIMEOUT,
    ) -> list[Sample]:
        """Query until the condition holds for the result, and return that."""
        return self._wait_for(expr, lambda: self.query(expr), condition, timeout)


def check_metrics(promtool: Path, text: str) -> tuple[int, str]:
    """Return the status and output of `promtool check metrics` for what /metrics serves."""
    completed = subprocess.run(
        [promtool, "check", "metrics"],
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=TIMEOUT,
    )
    return completed.returncode, completed.stdout.decode()


# Its own command line cannot choose the ports, nor do without gRPC. It answers before it
# decodes, in the same step; SIGTERM's handler comes after that step.
RECEIVER = """
const {appendFileSync} = require("fs");
const {MockOtlpServer} = require("@elastic/mockotlpserver");
const [port, file] = process.argv.slice(1);
process.on("SIGTERM", () => process.exit());
new MockOtlpServer({
    services: ["http"],
    httpHostname: "127.0.0.1",
    httpPort: Number(port),
    onMetrics: (request) => appendFileSync(file, JSON.stringify(request) + "\\n"),
}).start();
"""


class Point(NamedTuple):
    kind: str  # sum, gauge, histogram
    temporality: str | None  # AGGREGATION_TEMPORALITY_CUMULATIVE; None for a gauge
    monotonic: bool
    unit: str
    attributes: dict[str, Any]
    resource: dict[str, Any]  # its attributes
    data: dict[str, Any]  # the rest, with integers for int64s


class OtlpReceiver(Server):
    """A real receiver of OTLP/HTTP at `endpoint`: protobuf, not compressed.

    What it answers with 200 before `stop` is never lost. It answers 200 also to what it
    cannot decode, but ends then, and so fails the test at the latest when it is stopped.

    `requests` are OTLP's JSON, int64s as strings, enums by name, without what is not set:

        {"resourceMetrics": [{"resource": {"attributes": ATTRIBUTES}, "scopeMetrics": [
            {"scope": {"name": "s"}, "metrics": [{"name": "n", "unit": "s", KIND: {
                "aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE",
                "isMonotonic": true, "dataPoints": [POINT, ...]}}]}]}]}

    KIND is sum, gauge or histogram; ATTRIBUTES [{"key": "a", "value": {"intValue": "1"}}];
    POINT {"attributes": ATTRIBUTES, "startTimeUnixNano": "1", "timeUnixNano": "2"} and
    "asInt": "3", or "asDouble": 1.5 (or "NaN", "Infinity"), or a histogram's "count": "3",
    "sum": 1.5, "bucketCounts": ["1", "2"], "explicitBounds": [0.1].
    """

    def __init__(self, package: Path, folder: Path, port: int = 0) -> None:
        super().__init__(port)
        self._package = package
        self._received = folder / "received.jsonl"
        self._received.touch()

    def _command(self):
        command = ["node", "-e", RECEIVER, str(self.port), self._received]
        return command, self._package

    def _is_ready(self):
        return get(self.port, "/", timeout=1)[0] == 400

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/metrics"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """All requests for metrics since the first start, decoded."""
        # The last line may be in the middle of being written.
        lines = self._received.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def points(self, name: str) -> list[Point]:
        """Return all data points of this metric so far, in the order in which they came."""
        return [
            point
            for request in self.requests
            for of_resource in request.get("resourceMetrics", ())
            for of_scope in of_resource.get("scopeMetrics", ())
            for metric in of_scope.get("metrics", ())
            if metric["name"] == name
            for point in points_of(metric, of_resource.get("resource", {}))
        ]

    def wait_for(
        self,
        name: str,
        condition: Callable[[list[Point]], object],
        timeout: float = TIMEOUT,
    ) -> list[Point]:
        """Wait until the condition holds for this metric's points, and return them."""
        return self._wait_for(name, lambda: self.points(name), condition, timeout)


def points_of(metric: dict[str, Any], resource: dict[str, Any]) -> Iterable[Point]:
    [kind] = metric.keys() & {
        "sum",
        "gauge",
        "histogram",
        "exponentialHistogram",
        "summary",
    }
    for data in metric[kind].get("dataPoints", ()):
        yield Point(
            kind,
            metric[kind].get("aggregationTemporality"),
            metric[kind].get("isMonotonic", False),
            metric.get("unit", ""),
            attributes_of(data),
            attributes_of(resource),
            {
                name: with_integers(name, value)
                for name, value in data.items()
                if name != "attributes"
            },
        )


def attributes_of(message: dict[str, Any]) -> dict[str, Any]:
    return {
        attribute["key"]: with_integers(kind, value)
        for attribute in message.get("attributes", ())
        for kind, value in attribute["value"].items()
    }


def with_integers(name: str, value: Any) -> Any:
    if name in {"asInt", "count", "intValue", "startTimeUnixNano", "timeUnixNano"}:
        return int(value)
    if name == "bucketCounts":
        return [int(count) for count in value]
    return value


class VictoriaMetrics(Server):
    """A receiver of OTLP at `endpoint` that gives metrics the names that Prometheus has."""

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__()
        self._program = program
        self._folder = folder

    def _command(self):
        return [
            self._program,
            f"-httpListenAddr=127.0.0.1:{self.port}",
            f"-storageDataPath={self._folder}",
            "-opentelemetry.usePrometheusNaming",
            "-search.latencyOffset=0s",
            "-loggerLevel=ERROR",
        ], None

    def _is_ready(self):
        return get(self.port, "/health", timeout=1)[0] == 200

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/opentelemetry/v1/metrics"

    def wait_for(self, selector: str, count: int) -> list[Sample]:
        """Wait for as many series, and return the newest sample of each."""
        return self._wait_for(
            selector,
            lambda: self._newest(selector),
            lambda found: len(found) >= count,
            timeout=10,
        )

    def query(self, expr: str) -> list[Sample]:
        """Return what an instant query for a vector finds now."""
        self._flush()
        status, body = get(self.port, f"/api/v1/query?{urlencode({'query': expr})}")
        assert status == 200, body
        found = json.loads(body)["data"]["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in found]

    def wait_for_value(self, expr: str, value: float) -> None:
        """Wait until a query finds this value alone; its parts may come one by one."""
        self._wait_for(
            expr,
            lambda: [sample.value for sample in self.query(expr)],
            lambda found: found == [value],
            timeout=TIMEOUT,
        )

    def _flush(self) -> None:
        # Most of what was received just before is found only after this.
        assert get(self.port, "/internal/force_flush")[0] == 200

    def _newest(self, selector: str) -> list[Sample]:
        self._flush()
        query = urlencode({"match[]": selector})
        status, body = get(self.port, f"/api/v1/export?{query}")
        assert status == 200, body
        series = map(json.loads, body.splitlines())
        return [Sample(found["metric"], found["values"][-1]) for found in series]
