#!/usr/bin/env python3
"""Redis's own tests, once against a redis-server and once through the router; prints where they differ.

    cargo build -p router --example static_router
    tests/conformance/redis/suite.py                # everything, with one server: some minutes
    tests/conformance/redis/suite.py --servers 3    # what may be asked of a cluster, over three partitions
    tests/conformance/redis/suite.py --units unit/multi,unit/sort

It needs tclsh, redis-server, redis-cli and the source of Redis: by default it is fetched from Debian's source packages, into a
temporary directory; --source names one that is there (its tests must fit the redis-server that is installed). Only what the suite
asks of servers that it did not start itself is run. CONFIG and INFO go to the servers themselves (aside.tcl): the router refuses
the one, and knows little for the other. Differences that are meant are in suite_accepted.txt, each with its reason; any other
one makes this fail if it comes twice in a row, and so does one that is listed and is none any more (if all units were run).
Those after which nothing else could be judged, because they leave replies unread, are marked with SKIP there, and left out; those
that differ over several partitions alone with PARTED.
"""

import argparse, fnmatch, os, random, re, shutil, signal, subprocess, sys, tempfile
from pathlib import Path

from run import HERE, ROUTER, Servers

PACKAGE = "redis"
SOURCES = """Types: deb-src
URIs: http://deb.debian.org/debian
Suites: {suite}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
# Those of its units that have a test for a server which the suite did not start.
UNITS = """unit/dump unit/protocol unit/keyspace unit/scan unit/info-command unit/type/string unit/type/incr unit/type/list
    unit/type/list-2 unit/type/list-3 unit/type/set unit/type/zset unit/type/hash unit/type/stream unit/type/stream-cgroups
    unit/sort unit/expire unit/other unit/multi unit/quit unit/pubsub unit/scripting unit/functions unit/introspection
    unit/introspection-2 unit/bitops unit/bitfield unit/geo unit/hyperloglog unit/lazyfree unit/violations unit/querybuf
    unit/tracking unit/slowlog unit/latency-monitor unit/pause integration/redis-cli""".split()
DENIED = "-needs:debug -needs:reset -needs:save -needs:repl -needs:config-resetstat -needs:config-maxmemory -large-memory"


def fetch(work):
    """Redis' source as Debian has it, by apt, with lists of its own: those of the machine stay as they are."""
    suite = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text()).group(1)
    for part in "parts", "lists/partial":
        (work / part).mkdir(parents=True, exist_ok=True)
    (work / "parts/src.sources").write_text(SOURCES.format(suite=suite))
    apt = ["apt-get", "-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={work}/parts"]
    apt += ["-o", f"Dir::State::lists={work}/lists", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
    for words in ["update"], ["source", "--download-only", PACKAGE]:
        subprocess.run(apt + words, cwd=work, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["tar", "-xzf", next(work.glob("redis_*.orig.tar.gz"))], cwd=work, check=True)
    return next(path for path in work.glob("redis-*") if path.is_dir())


def prepare(source, work):
    """A copy of the tests, with our words behind its client, and the installed programs where it looks for built ones."""
    place = work / "suite"
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(source / "tests", place / "tests")
    (place / "src").mkdir()
    for program in "redis-server", "redis-cli", "redis-benchmark":
        (place / "src" / program).symlink_to(shutil.which(program) or f"/usr/bin/{program}")
    return place


def outcomes(place, unit, port, behind, cluster, timeout, skipped):
    """What became of each test of a unit."""
    command = ["tclsh", "tests/test_helper.tcl", "--host", "127.0.0.1", "--port", str(port), "--singledb", "--durable"]
    command += ["--tags", DENIED, "--timeout", str(timeout), "--baseport", str(random.randrange(12000, 22000)), "--single", unit] + (["--cluster-mode"] if cluster else [])
    for name in skipped:
        command += ["--skiptest", name]
    env = dict(os.environ, REDIS_BEHIND=" ".join(map(str, behind)))
    # The suite is several processes, which end together.
    child = subprocess.Popen(
        command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, late = child.communicate(timeout=4 * timeout)[0], ""
    except subprocess.TimeoutExpired as expired:
        said, late = expired.stdout or b"", "\n[exception]: it does not end\n"
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    text = said.decode(errors="replace") + late
    text = re.sub("\x1b\\[[0-9;]*m", "", text)
    with open(place.parent / f"{port}.log", "a") as log:
        log.write(f"=== {unit}\n{text}")
    results, seen = {}, {}
    for kind, what in re.findall(r"^\[(ok|err|skip|exception|TIMEOUT)\]: (.*(?:\n(?!\[).*){0,2})", text, re.M):
        line, *more = what.split("\n")
        name = re.sub(r" \(\d+ ms\)$", "", line) if kind == "ok" else line.rsplit(" in tests/", 1)[0]
        if kind in ("exception", "TIMEOUT"):
            name = "(the unit itself)"
        seen[name] = seen.get(name, 0) + 1
        number = f" #{seen[name]}" if seen[name] > 1 else ""
        results[f"{unit}: {name}{number}"] = (kind, " ".join(more).strip()[:200])
    return results


def accepted(cluster):
    """Patterns of what may differ, with the reason, and what is not even run."""
    rows, skipped, reason = [], [], ""
    for line in (HERE / "suite_accepted.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line[2:]
        elif line.startswith("PARTED "):
            rows += [(line.removeprefix("PARTED "), reason)] if cluster else []
        elif line:
            name = line.removeprefix("SKIP ")
            rows.append((name, reason))
            skipped += [name] if name != line else []
    return rows, skipped


def listed(name, rows):
    """The row for this test: those of one name are numbered, and share it."""
    return next((row for row in rows if fnmatch.fnmatchcase(re.sub(r" #\d+$", "", name), row[0])), None)


def differences(direct, routed):
    """Tests that ended in another way through the router. One that did not begin counts, too: something before it failed."""
    names = list(direct) + [name for name in routed if name not in direct]
    missing = ("missing", "")
    pairs = {name: (direct.get(name, missing), routed.get(name, missing)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0][0] != pair[1][0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="the source of Redis, instead of fetching it")
    parser.add_argument("--work", type=Path, help="keep what was fetched, and the logs, in this directory")
    parser.add_argument("--units", help="only these, with commas between")
    parser.add_argument("--servers", type=int, default=1, help="over how many servers, each with a partition")
    parser.add_argument("--timeout", type=int, default=600, help="seconds without progress after which a unit is given up")
    options = parser.parse_args()
    if not ROUTER.exists():
        sys.exit(f"{ROUTER} is missing: cargo build -p router --example static_router")
    units = options.units.split(",") if options.units else UNITS
    cluster = options.servers > 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that servers end, too
    (rows, skipped), used, bad, count, alike = accepted(cluster), set(), 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        source = options.source or next((path for path in work.glob("redis-*") if path.is_dir()), None) or fetch(work)
        place = prepare(source, work)
        client = place / "tests/support/redis.tcl"
        suites_own = client.read_text()

        def ask(unit, servers, routed):
            client.write_text(suites_own + (HERE / "aside.tcl").read_text() if routed else suites_own)
            port = servers.router if routed else servers.direct
            left_out = [name.removeprefix(f"{unit}: ") for name in skipped if routed and name.startswith(f"{unit}: ")]
            return outcomes(place, unit, port, servers.behind, cluster, options.timeout, left_out)

        for unit in units:
            # Each unit has servers of its own: what one leaves behind is no other's affair.
            with Servers(work, options.servers) as servers:
                direct, routed = ask(unit, servers, False), ask(unit, servers, True)
            found = differences(direct, routed)
            unknown = [name for name in found if not listed(name, rows)]
            if unknown:
                with Servers(work, options.servers) as servers:
                    again = differences(ask(unit, servers, False), ask(unit, servers, True))
                found = {name: pair for name, pair in found.items() if name not in unknown or name in again}
            count, alike = count + len(direct), alike + sum(name not in found for name in direct)
            print(f"{unit}: {len(direct)} tests direct, {len(found)} differ", flush=True)
            if not direct:
                print(f"  NEW {unit} has no tests, or its process failed: see the log in --work")
                bad += 1
            for name, (one, other) in found.items():
                row = listed(name, rows)
                used.add(row)
                bad += row is None
                print(f"  {'' if row else 'NEW '}{name}: direct {one[0]}, routed {other[0]} {other[1] or one[1]}")
                if row:
                    print(f"    {row[1]}")
        stale = [row for row in rows if row not in used] if not options.units and not cluster else []
    for row, _ in stale:
        print(f"STALE {row}: it does not differ")
    print(f"{count} tests direct, {alike} alike through the router, {bad} new differences")
    sys.exit(1 if bad or stale or not alike else 0)


if __name__ == "__main__":
    main()
