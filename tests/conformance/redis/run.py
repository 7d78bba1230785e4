#!/usr/bin/env python3
"""redis-py's own tests, once against a redis-server and once through the router; prints where they differ.

    cargo build -p router --example static_router
    tests/conformance/redis/run.py      # in RESP2 and RESP3; takes some minutes

What is fetched goes into a temporary directory. Differences that are meant are in accepted.txt, each with its
reason; any other one makes this fail, and so does one that is listed and is none any more.
"""

import argparse, fnmatch, os, socket, subprocess, sys, tempfile, time
import xml.etree.ElementTree as xml
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUTER = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[2] / "target")) / "debug/examples/static_router"
REDIS_PY = "redis==5.0.8"
PY_FILES = """test_commands test_pipeline test_pubsub test_lock test_scripting test_function test_encoding test_hash
    test_connection_pool test_multiprocessing test_asyncio/test_commands test_asyncio/test_pipeline
    test_asyncio/test_pubsub test_asyncio/test_lock test_asyncio/test_scripting""".split()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    sys.exit(f"nobody listens on port {port}")


class Servers:
    """A redis-server, and others behind a router, each with a partition. One holds everything, as a single server does."""

    def __init__(self, work, count=1):
        self.work, self.children = work, []
        self.direct, self.router = free_port(), free_port()
        self.behind = [free_port() for _ in range(count)]

    def __enter__(self):
        for port in self.direct, *self.behind:
            command = f"redis-server --port {port} --bind 127.0.0.1 --enable-debug-command yes --appendonly no".split()
            self.start(command + ["--save", "", "--dir", str(self.work)], port)
        config = self.work / "router.toml"
        racs = ", ".join(f'{{ name = "r{port}", servers = ["127.0.0.1:{port}"] }}' for port in self.behind)
        config.write_text(
            f"""[[service]]
            name = "redis"
            listen = "127.0.0.1:{self.router}"
            protocol = "redis"
            pmap = {{ style = "slots", partitions = {len(self.behind)} }}
            racs = [{racs}]
            """
        )
        self.start([str(ROUTER), "--config", str(config)], self.router)
        return self

    def start(self, command, port):
        log = open(self.work / f"{port}.log", "w")
        self.children.append(subprocess.Popen(command, stdout=log, stderr=log))
        listening(port)

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
            child.wait()


def run(command, **more):
    subprocess.run([str(word) for word in command], check=True, **more)


def fetch_py(work):
    run([sys.executable, "-m", "venv", work / "venv"])
    pip = [work / "venv/bin/pip", "--quiet", "--disable-pip-version-check"]
    run(pip + ["install", "pytest", "pytest-timeout", "pytest-asyncio<0.24", "cachetools", "packaging"])
    run(pip + ["download", "--no-binary", ":all:", "--no-deps", "-d", work, REDIS_PY])
    run(["tar", "-xzf", next(work.glob("redis-*.tar.gz")), "-C", work])
    return next(path for path in work.glob("redis-*") if path.is_dir())


def tests_py(work, source, port, protocol):
    """What became of each test of redis-py."""
    report = work / f"report-{port}-{protocol}.xml"
    url = f"redis://127.0.0.1:{port}/0"
    command = [work / "venv/bin/python", "-m", "pytest", "-q", "--tb=line", "--timeout=60"]
    command += ["-p", "no:cacheprovider", "-o", "asyncio_mode=auto", f"--junitxml={report}", f"--redis-url={url}", f"--protocol={protocol}"]
    command += ["-m", "not onlycluster and not redismod and not ssl"]
    with open(work / f"pytest-{port}-{protocol}.log", "w") as log:
        files = [f"tests/{name}.py" for name in PY_FILES]
        subprocess.run([str(word) for word in command + files], cwd=source, stdout=log, stderr=log)
    results = {}
    for case in xml.parse(report).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = any(child.tag == "skipped" for child in case)
        name = f"resp{protocol} {case.get('classname')}.{case.get('name')}"
        why = " ".join(bad[0].get("message", "").split())[:150] if bad else ""
        results[name] = ("failed", why) if bad else ("skipped", "") if skipped else ("ok", "")
    return results


def accepted():
    """Patterns of what may differ, with the reason."""
    rows, reason = [], ""
    for line in (HERE / "accepted.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line:
            rows.append((f"* tests.{line}", reason))
    return rows


def compare(direct, routed):
    rows, used, new = accepted(), set(), 0
    for name in sorted(direct.keys() | routed.keys()):
        one, other = (results.get(name, ("missing", "")) for results in (direct, routed))
        if one[0] == other[0]:
            continue
        row = next((row for row in rows if fnmatch.fnmatchcase(name, row[0])), None)
        used.add(row)
        new += row is None
        print(f"{'NEW ' if row is None else ''}{name}: direct {one[0]}, routed {other[0]} {other[1] or one[1]}")
        if row:
            print(f"    {row[1]}")
    stale = [row for row in rows if row not in used]
    for row in stale:
        print(f"STALE {row[0]}: it does not differ")
    same = sum(direct.get(name) == routed.get(name) for name in direct)
    passed = sum(result[0] == "ok" for result in routed.values())
    print(f"{len(direct)} tests direct, {passed} pass through the router, {same} alike, {new} new differences")
    return new == 0 and not stale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep what was fetched, and the logs, in this directory")
    options = parser.parse_args()
    if not ROUTER.exists():
        sys.exit(f"{ROUTER} is missing: cargo build -p router --example static_router")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        known = next((path for path in work.glob("redis-*") if path.is_dir()), None)
        source = known or fetch_py(work)
        direct, routed = {}, {}
        with Servers(work) as servers:
            for protocol in 2, 3:
                direct.update(tests_py(work, source, servers.direct, protocol))
                routed.update(tests_py(work, source, servers.router, protocol))
        sys.exit(0 if compare(direct, routed) else 1)


if __name__ == "__main__":
    main()
