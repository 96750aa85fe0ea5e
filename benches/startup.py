"""startup: from the start of the process to the first answer on /health and to the first chat answer (mock provider), memory after it,
and the seconds to load the local model. Peer: nginx answering 200 on the same port, started and asked in the same way."""

import json
import pathlib
import subprocess
import tempfile
import time

from harness import BINARY, CACHE, figure, first_answer, free_port, nginx, note, post, result, rss_mb, stop

ROUNDS = 15
MODEL = "smollm2-135m-instruct"
CHAT = {"model": "mock/echo", "messages": [{"role": "user", "content": "hello"}]}


def refit(*arguments, data):
    done = subprocess.run([BINARY, "--data-dir", data, *arguments], capture_output=True, text=True, cwd=data)
    return done.stdout if done.returncode == 0 else None


def start(data):
    port = free_port()
    began = time.perf_counter()
    command = [BINARY, "--data-dir", data, "serve", "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=data), port, began


def measure_refit(data, key):
    health, chat, memory = [], [], []
    for _ in range(ROUNDS):
        process, port, began = start(data)
        health.append(first_answer(port, began))
        status, body = post(port, "/v1/chat/completions", CHAT, key)
        chat.append(1000 * (time.perf_counter() - began))
        assert status == 200 and body["choices"][0]["message"]["content"] == "hello", body
        memory.append(rss_mb(process.pid))
        stop(process)
    return figure(health), figure(chat), figure(memory, 1)


def measure_nginx(binary, directory):
    started, memory = [], []
    for _ in range(ROUNDS):
        port = free_port()
        conf = pathlib.Path(directory) / "nginx.conf"
        conf.write_text(
            f"daemon off; worker_processes 1; pid {directory}/pid; error_log /dev/null;\n"
            f"events {{}}\nhttp {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;\n"
            f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
            f"server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }} }}\n"
        )
        began = time.perf_counter()
        process = subprocess.Popen([binary, "-p", directory, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(first_answer(port, began))
        memory.append(rss_mb(process.pid))
        stop(process)
    return figure(started), figure(memory, 1)


def measure_model(data, key):
    """Seconds that the first answer of the local model takes more than the second: loading it. None without the model."""
    shown = refit("model", "show", MODEL, "--json", data=str(CACHE / "data")) if (CACHE / "data").exists() else None
    if shown is None or refit("model", "pull", json.loads(shown)["path"], "--name", MODEL, data=data) is None:
        note(f"the model is not in {CACHE}/data (./test pulls it): its load time is left out")
        return None, None
    loads, memory = [], []
    body = {"model": f"local/{MODEL}", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    for _ in range(3):
        process, port, began = start(data)
        first_answer(port, began)
        times = []
        for _ in range(2):
            asked = time.perf_counter()
            status, reply = post(port, "/v1/chat/completions", body, key)
            times.append(time.perf_counter() - asked)
            assert status == 200, reply
        loads.append(times[0] - times[1])
        memory.append(rss_mb(process.pid))
        stop(process)
    return figure(loads, 3), figure(memory, 1)


def main():
    with tempfile.TemporaryDirectory() as data:
        key = json.loads(refit("key", "create", "bench", "--json", data=data))["key"]
        note("refit")
        health, chat, memory = measure_refit(data, key)
        note("local model")
        load, model_memory = measure_model(data, key)
        peer = nginx()
        note("nginx" if peer else "nginx could not be had: no ratio")
        started, peer_memory = measure_nginx(peer, data) if peer else (None, None)
    figures = {"health_ms": health, "chat_ms": chat, "rss_mb": memory, "model_load_s": load, "model_rss_mb": model_memory,
               "nginx_ms": started, "nginx_rss_mb": peer_memory}
    ratios = {"health_over_nginx": round(health["median"] / started["median"], 2)} if started else {}
    result("startup", figures, ratios, {"health_ms": (health["median"], "<=", 50), "rss_mb": (memory["median"], "<=", 40)})


if __name__ == "__main__":
    main()
