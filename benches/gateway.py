"""gateway: what the gateway adds to a call, beside nginx `proxy_pass` in one run: latency, rate, CPU per request, streams, memory, start.
Upstream and load generator are `benches/load` (one thread each); everything shares the machine, on loopback. Key check, a key's limits
per minute and its budget, prices, request log and metrics are on. Rounds alternate direct, nginx, refit; medians over the rounds. `./bench gateway [SECONDS] [ROUNDS]`."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from harness import BINARY, figure, first_answer, free_port, nginx, note, post, result, rss_mb, stop

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 3
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
LONG_SECONDS = 20
HERE = pathlib.Path(__file__).parent / "load"
MODEL = "up/m"
# Name -> (connections, more arguments of the load generator, upstream's settings)
POINTS = {
    "c1": (1, [], ""),
    "c64": (64, [], ""),
    # Without a pause for longer than log rows are put off: what is left of the rate when all work is done at once.
    "c64_long": (64, [], ""),
    "stream_c1": (1, ["stream"], "chunk_delay_ms=2"),
    "stream_c64": (64, ["stream"], ""),
    "200kb": (1, ["bytes=200000"], ""),
    "open": (1, ["rate=1000"], "latency_ms=50"),
}


def build():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target"))
    subprocess.run(["cargo", "build", "--release", "--manifest-path", HERE / "Cargo.toml"], check=True, stdout=sys.stderr,
                   env={**os.environ, "CARGO_TARGET_DIR": str(target)})
    return target / "release/upstream", target / "release/load"


def cpu_s(pid):
    """User and system seconds of a process and its children."""
    ticks = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if int(head.split()[0]) == pid or int(fields[1]) == pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def settled_cpu_s(pid):
    """The same once the process has had nothing to do for 0.3 s."""
    seen, quiet = cpu_s(pid), 0
    while quiet < 3:
        time.sleep(0.1)
        now = cpu_s(pid)
        seen, quiet = now, quiet + 1 if now - seen < 0.02 else 0
    return seen


def start_nginx(binary, directory, upstream):
    port = free_port()
    conf = pathlib.Path(directory) / "nginx.conf"
    temporary = "".join(f"{name}_temp_path {directory}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log /dev/null;\nevents {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; {temporary} keepalive_requests 10000000;\n"
        f"upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 10000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\";\n"
        f"proxy_buffering off; client_body_buffer_size 1m; client_max_body_size 32m; }} }} }}\n"
    )
    process = subprocess.Popen([binary, "-p", directory, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first_answer(port, time.perf_counter(), "/control")
    return process, port


def start_refit(data):
    port = free_port()
    began = time.perf_counter()
    command = [BINARY, "--data-dir", data, "--config", f"{data}/refit.toml", "serve", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=data), port, began


class Target:
    def __init__(self, name, process, port, key, model):
        self.name, self.process, self.port, self.key, self.model = name, process, port, key, model
        self.seen = {point: [] for point in POINTS}

    def measure(self, load, point):
        connections, more, _ = POINTS[point]
        before = cpu_s(self.process.pid)
        seconds = LONG_SECONDS if point == "c64_long" else SECONDS
        command = [load, str(self.port), self.key, self.model, str(connections), str(seconds), *more]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        # What was put off counts, too. The warm-up's requests cost as much as the counted ones: a quarter of the time more.
        row["cpu_us"] = 1e6 * (settled_cpu_s(self.process.pid) - before) / max(1, row["good"] * 1.25)
        if row["bad"]:
            note(f"{self.name} {point}: {row['bad']} bad answers, such as {row['problem']}")
        self.seen[point].append(row)

    def of(self, point, field):
        return [row[field] for row in self.seen[point]]


def median(values):
    return figure(values, 4)["median"]


def main():
    upstream_binary, load = build()
    peer = nginx()
    if peer is None:
        raise SystemExit("nginx could not be had: there is nothing to compare with")
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as place:
        up = free_port()
        upstream = subprocess.Popen([upstream_binary, str(up)])
        first_answer(up, time.perf_counter(), "/control")
        pathlib.Path(data, "refit.toml").write_text(
            f'[providers.up]\nkind = "compatible"\nbase_url = "http://127.0.0.1:{up}/v1"\nmodels = ["m"]\n'
            '[[prices.rows]]\nprovider = "up"\nmodel = "m"\ninput = "0.15"\noutput = "0.60"\n')
        # Limits that are counted and never met.
        limits = ["--rpm", "1000000000", "--tpm", "1000000000", "--budget", "1000000"]
        created = subprocess.run([BINARY, "--data-dir", data, "key", "create", "bench", *limits, "--json"], check=True, capture_output=True,
                                 text=True)
        key = json.loads(created.stdout)["key"]
        starts = []
        for _ in range(5):
            process, port, began = start_refit(data)
            first_answer(port, began)
            status, _ = post(port, "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}, key)
            assert status == 200
            starts.append(1000 * (time.perf_counter() - began))
            stop(process)
        proxy, proxy_port = start_nginx(peer, place, up)
        process, port, began = start_refit(data)
        first_answer(port, began)
        targets = [Target("direct", upstream, up, key, "m"), Target("nginx", proxy, proxy_port, key, "m"), Target("refit", process, port, key, MODEL)]
        try:
            for round in range(ROUNDS):
                for point, (_, _, settings) in POINTS.items():
                    if point == "c64_long" and round > 0:
                        continue
                    urllib.request.urlopen(f"http://127.0.0.1:{up}/control?latency_ms=0&chunk_delay_ms=0&{settings}").read()
                    for target in targets:
                        target.measure(load, point)
                note(f"round {round + 1} of {ROUNDS}")
            rss = rss_mb(process.pid)
        finally:
            for running in (process, proxy, upstream):
                stop(running)
    report(targets, starts, rss)


def report(targets, starts, rss):
    direct, proxy, refit = targets
    added = lambda target, point, field="p50_ms": round(median(target.of(point, field)) - median(direct.of(point, field)), 4)
    ratio = lambda point, field: round(median(refit.of(point, field)) / median(proxy.of(point, field)), 3)
    rows = {target.name: {point: {field: figure(target.of(point, field), 3) for field in ("p50_ms", "p99_ms", "first_p50_ms", "per_second", "cpu_us")}
                          for point in POINTS} for target in targets}
    figures = {
        "added_p50_ms": added(refit, "c1"), "nginx_added_p50_ms": added(proxy, "c1"), "ttft_added_ms": added(refit, "stream_c1", "first_p50_ms"),
        "p50_200kb_ms": round(median(refit.of("200kb", "p50_ms")), 4), "added_200kb_ms": added(refit, "200kb"), "rss_mb": round(rss, 1), "start_ms": figure(starts),
        "open_p50_added_ms": added(refit, "open"), "open_p99_added_ms": added(refit, "open", "p99_ms"),
        "bad": sum(sum(target.of(point, "bad")) for target in targets for point in POINTS), "rows": rows,
    }
    ratios = {"rps_vs_nginx": ratio("c64", "per_second"), "p99_vs_nginx": ratio("c64", "p99_ms"), "cpu_vs_nginx": ratio("c64", "cpu_us"),
              "streams_vs_nginx": ratio("stream_c64", "per_second"), "stream_cpu_vs_nginx": ratio("stream_c64", "cpu_us"),
              "rps_long_vs_nginx": ratio("c64_long", "per_second"), "p99_long_vs_nginx": ratio("c64_long", "p99_ms"),
              "added_p50_vs_nginx": round(figures["added_p50_ms"] / max(figures["nginx_added_p50_ms"], 0.001), 2)}
    result("gateway", figures, ratios, {
        "added_p50_ms": (figures["added_p50_ms"], "<=", 0.06), "rps_vs_nginx": (ratios["rps_vs_nginx"], ">=", 0.6),
        "p99_vs_nginx": (ratios["p99_vs_nginx"], "<=", 2), "cpu_vs_nginx": (ratios["cpu_vs_nginx"], "<=", 2),
        "streams_vs_nginx": (ratios["streams_vs_nginx"], ">=", 0.4), "ttft_added_ms": (figures["ttft_added_ms"], "<=", 0.10),
        "p50_200kb_ms": (figures["p50_200kb_ms"], "<=", 0.25), "rss_mb": (figures["rss_mb"], "<=", 40), "start_ms": (figures["start_ms"]["median"], "<=", 50),
    })


if __name__ == "__main__":
    main()
