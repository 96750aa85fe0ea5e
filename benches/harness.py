"""What the whole-process benchmarks share: free ports, waiting for an answer, memory, medians, the result line. Standard library only."""

import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

BINARY = os.environ.get("REFIT_BINARY", "target/release/refit")
CACHE = pathlib.Path(os.environ.get("REFIT_CACHE", pathlib.Path.home() / ".cache/refit"))


MODEL = "smollm2-135m-instruct"


def note(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def first_answer(port, began, path="/health", limit_s=20):
    """Milliseconds from `began` (perf_counter) until a GET on the port is answered with 200; asked again every 0.3 ms."""
    while time.perf_counter() - began < limit_s:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return 1000 * (time.perf_counter() - began)
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.0003)
    raise SystemExit(f"no answer on port {port} within {limit_s} s")


def post(port, path, body, key):
    """(status, parsed body) of a POST of JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json", "authorization": f"Bearer {key}"})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text)


def model(name=MODEL, variable="REFIT_TEST_MODEL"):
    """A model's file: named by the environment, or the cache's."""
    named = os.environ.get(variable)
    if named:
        return named
    subprocess.run([BINARY, "--data-dir", CACHE / "data", "model", "pull", name], check=True, stdout=sys.stderr)
    shown = subprocess.run([BINARY, "--data-dir", CACHE / "data", "model", "show", name, "--json"], check=True, capture_output=True, text=True)
    return json.loads(shown.stdout)["path"]


def rss_mb(pid):
    """Resident memory of a process and its children."""
    total = 0.0
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(fields["Pid"]) == pid or int(fields["PPid"]) == pid:
            total += int(fields.get("VmRSS", "0 kB").split()[0]) / 1024
    return total


def stop(process):
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def figure(values, digits=2):
    """Median, extremes and count."""
    return {"median": round(statistics.median(values), digits), "min": round(min(values), digits), "max": round(max(values), digits), "n": len(values)}


def nginx():
    """Path of an nginx binary: the system's, else Debian's package unpacked into the cache; None where neither can be had."""
    found = subprocess.run(["which", "nginx"], capture_output=True, text=True).stdout.strip()
    if found:
        return found
    place = CACHE / "nginx"
    binary = place / "usr/sbin/nginx"
    if not binary.exists():
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "nginx"], cwd=place, stdout=sys.stderr)
        for package in place.glob("nginx_*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=place, stdout=sys.stderr)
    works = binary.exists() and subprocess.run([binary, "-v"], capture_output=True).returncode == 0
    return str(binary) if works else None


def result(name, figures, ratios, goals):
    """Prints the last line. `goals` maps a name to (value, "<=", ">=" or ">", bound); a value of None has not been met."""
    judge = {"<=": lambda value, bound: value <= bound, ">=": lambda value, bound: value >= bound, ">": lambda value, bound: value > bound}
    met = all(value is not None and judge[sign](value, bound) for value, sign, bound in goals.values())
    shown = {goal: f"{sign} {bound}" for goal, (_, sign, bound) in goals.items()}
    print(json.dumps({"name": name, "figures": figures, "ratios": ratios, "goals": shown, "met": met}))
